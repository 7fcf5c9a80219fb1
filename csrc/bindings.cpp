// The operators' CPU kernels, registered through LibTorch's stable ABI, and the facts of this build. Schemas, fakes and
// derivatives are Python's (fcn_fast/ops): arguments arrive checked.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef FCN_FAST_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "build_facts.h"
#include "cpu/kernels.h"
#include "cuda/softmax_loss.h"

namespace fcn_fast {

void parallel_for(int64_t n, void* context, void (*body)(void*, int64_t, int64_t)) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Numbers = std::vector<int64_t>;

// The kernels for this machine; ATEN_CPU_CAPABILITY lowers the choice as it does PyTorch's own.
std::pair<const char*, const Kernels*> choose() {
#ifdef FCN_FAST_X86
  const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = wish ? wish : "avx512";
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && limit != "default" && limit != "avx2") return {"avx512", &avx512::kernels};
  if (avx2 && limit != "default") return {"avx2", &avx2::kernels};
#endif
  return {"baseline", &baseline::kernels};
}
const auto [isa, kernels] = choose();

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    case ScalarType::Byte: return Type::u8;
    case ScalarType::Short: return Type::i16;
    case ScalarType::Int: return Type::i32;
    case ScalarType::Long: return Type::i64;
    default: throw std::invalid_argument("fcn_fast: a dtype that the operators do not take");
  }
}

ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Strides of channels_last and nothing else; a layout that could be either counts as contiguous.
bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (t.size(axis) != 1 && t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

// The tensor itself where kernels can read it, else a contiguous copy.
Tensor readable(const Tensor& t) {
  return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t);
}
Tensor readable(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  return torch::stable::contiguous(t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Uninitialised memory. Fresh pages of a large output cost more than writing it: ask for big ones before they are touched.
Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype, bool channels_last = false) {
  Tensor out = [&] {
    try {
      return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                                  channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    } catch (const std::exception&) {  // the stable ABI keeps PyTorch's reason to itself; it is memory
      std::string sizes;
      for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
      throw std::runtime_error("fcn_fast: no memory for a result of shape (" + sizes + ")");
    }
  }();
#ifdef __linux__
  if (!out.is_cpu()) return out;
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr()), end = begin + out.numel() * out.element_size();
  const uintptr_t first = (begin + page - 1) / page * page;
  if (first + page <= end) madvise(reinterpret_cast<void*>(first), (end - first) / page * page, MADV_HUGEPAGE);
#endif
  return out;
}

// (N, C, *) as (n, c, h, w); one row of pixels unless it is 4-d.
Map map_of(const Tensor& t) {
  int64_t pixels = 1;
  for (int64_t axis = 2; axis < t.dim(); ++axis) pixels *= t.size(axis);
  const bool image = t.dim() == 4;
  return {const_cast<void*>(t.const_data_ptr()), type_of(t), t.size(0), t.size(1), image ? t.size(2) : 1,
          image ? t.size(3) : pixels, is_channels_last(t)};
}

Grid grid_of(const Numbers& g, int64_t height, int64_t width) {
  const bool zero = g[8] != 0;
  return {{height, g[0], g[2], g[4], g[6], zero}, {width, g[1], g[3], g[5], g[7], zero}};
}

std::optional<Tensor> readable(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

Targets targets_of(const Tensor& target, const std::optional<Tensor>& weight, const std::optional<Tensor>& pixel_weight,
                   int64_t ignore_index, int64_t reduction, double label_smoothing) {
  return {target.const_data_ptr(), type_of(target), ignore_index, weight ? weight->const_data_ptr() : nullptr,
          pixel_weight ? pixel_weight->const_data_ptr() : nullptr, Reduction(reduction), label_smoothing};
}

// label_at: the bad label, on the host.
void raise_for(const BadLabel& bad, const void* label_at, const Tensor& target, int64_t classes, int64_t ignore_index) {
  std::string index;
  int64_t rest = bad.position;
  for (int64_t axis = target.dim() - 1; axis >= 0; --axis) {
    index = std::to_string(rest % target.size(axis)) + (index.empty() ? "" : ", ") + index;
    rest /= target.size(axis);
  }
  int64_t label = 0;
  switch (type_of(target)) {
    case Type::u8: label = *static_cast<const uint8_t*>(label_at); break;
    case Type::i16: label = *static_cast<const int16_t*>(label_at); break;
    case Type::i32: label = *static_cast<const int32_t*>(label_at); break;
    default: label = *static_cast<const int64_t*>(label_at);
  }
  throw std::invalid_argument("target: expected labels from 0 to " + std::to_string(classes - 1) +
                              " or ignore_index " + std::to_string(ignore_index) + ", got " + std::to_string(label) + " at [" + index + "]");
}

const void* label_at(const Tensor& target, int64_t position) {
  return static_cast<const char*>(target.const_data_ptr()) + position * target.element_size();
}

void raise_for(const BadLabel& bad, const Tensor& target, int64_t classes, int64_t ignore_index) {
  if (bad.position != INT64_MAX) raise_for(bad, label_at(target, bad.position), target, classes, ignore_index);
}

Tensor bilinear_upsample(const Tensor& input, const Numbers& grid) {
  const Tensor in = readable(input);
  const Map map = map_of(in);
  Tensor out = empty(in, {map.n, map.c, grid[0], grid[1]}, in.scalar_type(), map.channels_last);
  Map out_map = map_of(out);
  out_map.channels_last = map.channels_last;
  kernels->bilinear_upsample(map, grid_of(grid, map.h, map.w), out_map);
  return out;
}

Tensor bilinear_upsample_backward(const Tensor& grad_output, const Numbers& in_size, const Numbers& grid) {
  const Tensor grad = readable(grad_output);
  const Map map = map_of(grad);
  Tensor out = empty(grad, {map.n, map.c, in_size[0], in_size[1]}, grad.scalar_type(), map.channels_last);
  Map out_map = map_of(out);
  out_map.channels_last = map.channels_last;
  kernels->bilinear_upsample_backward(map, grid_of(grid, in_size[0], in_size[1]), out_map);
  return out;
}

Tensor skip_fuse(const Tensor& coarse, const Tensor& skip, const Numbers& crop, const Numbers& grid) {
  const Tensor in = readable(coarse);
  const Map map = map_of(in);
  const Tensor added = readable(skip, map.channels_last);
  Map added_map = map_of(added);
  Tensor out = empty(in, {map.n, map.c, grid[0], grid[1]}, in.scalar_type(), map.channels_last);
  Map out_map = map_of(out);
  added_map.channels_last = out_map.channels_last = map.channels_last;
  kernels->skip_fuse(map, added_map, crop[0], crop[1], grid_of(grid, map.h, map.w), out_map);
  return out;
}

std::vector<int64_t> shape_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

std::tuple<Tensor, Tensor, Tensor> softmax_loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                                const std::optional<Tensor>& pixel_weight, int64_t ignore_index, int64_t reduction,
                                                double label_smoothing, bool check_labels, bool with_grad) {
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const ScalarType dtype = accumulate_type(x);
  std::vector<int64_t> shape = shape_of(target);
  Tensor loss = empty(x, reduction == kNone ? shape : std::vector<int64_t>{}, dtype);
  shape.insert(shape.begin(), 2);
  Tensor saved = empty(x, with_grad ? shape : std::vector<int64_t>{0}, dtype);
  Tensor total_weight = empty(x, {}, dtype);
  const BadLabel bad = kernels->softmax_loss(
      map_of(x), targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing), loss.mutable_data_ptr(),
      with_grad ? saved.mutable_data_ptr() : nullptr, total_weight.mutable_data_ptr());
  if (check_labels) raise_for(bad, labels, x.size(1), ignore_index);
  return {loss, saved, total_weight};
}

Tensor softmax_loss_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& pixel_weight, const Tensor& saved, const Tensor& total_weight,
                             int64_t ignore_index, int64_t reduction, double label_smoothing) {
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target), grad = torch::stable::contiguous(grad_output);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const Map map = map_of(x);
  Tensor out = empty(x, shape_of(x), x.scalar_type(), map.channels_last);
  Map out_map = map;
  out_map.data = out.mutable_data_ptr();
  kernels->softmax_loss_backward(grad.const_data_ptr(), map,
                                 targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing),
                                 saved.const_data_ptr(), total_weight.const_data_ptr(), out_map);
  return out;
}

std::tuple<Tensor, Tensor> upsample_softmax_loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& pixel_weight, const Numbers& grid, int64_t ignore_index,
                                                 int64_t reduction, double label_smoothing, bool check_labels, bool with_grad) {
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const ScalarType dtype = accumulate_type(x);
  const Map map = map_of(x);
  const bool gradient = with_grad && reduction != kNone;
  Tensor loss = empty(x, reduction == kNone ? shape_of(target) : std::vector<int64_t>{}, dtype);
  Tensor saved = empty(x, gradient ? shape_of(x) : std::vector<int64_t>{0}, dtype, gradient && map.channels_last);
  const BadLabel bad =
      kernels->upsample_softmax_loss(map, targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing),
                                     grid_of(grid, map.h, map.w), loss.mutable_data_ptr(), gradient ? saved.mutable_data_ptr() : nullptr);
  if (check_labels) raise_for(bad, labels, x.size(1), ignore_index);
  return {loss, saved};
}

Tensor upsample_argmax(const Tensor& logits, const Numbers& grid, ScalarType dtype) {
  const Tensor x = readable(logits);
  const Map map = map_of(x);
  Tensor out = empty(x, {map.n, grid[0], grid[1]}, dtype);
  kernels->upsample_argmax(map, grid_of(grid, map.h, map.w), out.mutable_data_ptr(), type_of(out));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fcn_fast, CPU, m) {
  m.impl("bilinear_upsample", TORCH_BOX(&bilinear_upsample));
  m.impl("bilinear_upsample_backward", TORCH_BOX(&bilinear_upsample_backward));
  m.impl("skip_fuse", TORCH_BOX(&skip_fuse));
  m.impl("softmax_loss", TORCH_BOX(&softmax_loss));
  m.impl("softmax_loss_backward", TORCH_BOX(&softmax_loss_backward));
  m.impl("upsample_softmax_loss", TORCH_BOX(&upsample_softmax_loss));
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

#ifdef FCN_FAST_CUDA

// The device of a tensor for as long as this lives, and PyTorch's stream there.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
  explicit Device(const Tensor& t) : Device(t.get_device_index()) {}
  explicit Device(int32_t index) : guard(index) {
    // Not through torch's macro for this, whose name changed after 2.11.
    if (aoti_torch_get_current_cuda_stream(index, &stream) != AOTI_TORCH_SUCCESS)
      throw std::runtime_error("fcn_fast, CUDA: PyTorch has no current stream");
  }
};

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("fcn_fast, CUDA: ") + error);
}

void raise_for(const Tensor& first_bad, const Tensor& labels, int64_t classes, int64_t ignore_index, const Device& device) {
  BadLabel bad;
  check(cuda::to_host(&bad.position, first_bad.const_data_ptr(), sizeof bad.position, device.stream));
  if (bad.position == INT64_MAX) return;
  int64_t label = 0;
  check(cuda::to_host(&label, label_at(labels, bad.position), labels.element_size(), device.stream));
  raise_for(bad, &label, labels, classes, ignore_index);
}

// A profiler of PyTorch names the operators; emit_nvtx makes ranges of them, so none are made here.
std::tuple<Tensor, Tensor, Tensor> softmax_loss_cuda(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                                     const std::optional<Tensor>& pixel_weight, int64_t ignore_index, int64_t reduction,
                                                     double label_smoothing, bool check_labels, bool with_grad) {
  const Device device(logits);
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const Map map = map_of(x);
  const ScalarType dtype = accumulate_type(x);
  std::vector<int64_t> shape = shape_of(target);
  Tensor loss = empty(x, reduction == kNone ? shape : std::vector<int64_t>{}, dtype);
  shape.insert(shape.begin(), 2);
  Tensor saved = empty(x, with_grad ? shape : std::vector<int64_t>{0}, dtype);
  Tensor total_weight = empty(x, {}, dtype), first_bad = empty(x, {}, ScalarType::Long);
  Tensor scratch = empty(x, {cuda::softmax_loss_scratch(map)}, ScalarType::Byte);
  check(cuda::softmax_loss(map, targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing),
                           loss.mutable_data_ptr(), with_grad ? saved.mutable_data_ptr() : nullptr, total_weight.mutable_data_ptr(),
                           static_cast<int64_t*>(first_bad.mutable_data_ptr()), scratch.mutable_data_ptr(), device.stream));
  if (check_labels) raise_for(first_bad, labels, x.size(1), ignore_index, device);
  return {loss, saved, total_weight};
}

std::tuple<Tensor, Tensor> softmax_loss_and_gradient_cuda(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                                          const std::optional<Tensor>& pixel_weight, int64_t ignore_index,
                                                          int64_t reduction, double label_smoothing, bool check_labels) {
  const Device device(logits);
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const Map map = map_of(x);
  const ScalarType dtype = accumulate_type(x);
  Tensor loss = empty(x, {}, dtype), gradient = empty(x, shape_of(x), x.scalar_type(), map.channels_last);
  Tensor total_weight = empty(x, {}, dtype), first_bad = empty(x, {}, ScalarType::Long);
  Tensor scratch = empty(x, {cuda::softmax_loss_and_gradient_scratch(map)}, ScalarType::Byte);
  Map gradient_map = map;
  gradient_map.data = gradient.mutable_data_ptr();
  check(cuda::softmax_loss_and_gradient(map, targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing),
                                        loss.mutable_data_ptr(), gradient_map, total_weight.mutable_data_ptr(),
                                        static_cast<int64_t*>(first_bad.mutable_data_ptr()), scratch.mutable_data_ptr(), device.stream));
  if (check_labels) raise_for(first_bad, labels, x.size(1), ignore_index, device);
  return {loss, gradient};
}

Tensor softmax_loss_backward_cuda(const Tensor& grad_output, const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                  const std::optional<Tensor>& pixel_weight, const Tensor& saved, const Tensor& total_weight,
                                  int64_t ignore_index, int64_t reduction, double label_smoothing) {
  const Device device(logits);
  const Tensor x = readable(logits), labels = torch::stable::contiguous(target), grad = torch::stable::contiguous(grad_output);
  const auto class_weight = readable(weight), weight_map = readable(pixel_weight);
  const Map map = map_of(x);
  Tensor out = empty(x, shape_of(x), x.scalar_type(), map.channels_last);
  Map out_map = map;
  out_map.data = out.mutable_data_ptr();
  check(cuda::softmax_loss_backward(grad.const_data_ptr(), map,
                                    targets_of(labels, class_weight, weight_map, ignore_index, reduction, label_smoothing),
                                    saved.const_data_ptr(), total_weight.const_data_ptr(), out_map, device.stream));
  return out;
}

// No operator: only backward passes of plain tensors call it, and what it does to them nobody may see.
void scale_gradient(uintptr_t gradient, int64_t count, int type, uintptr_t factor, int32_t index) {
  const Device device(index);
  check(cuda::scale_gradient(reinterpret_cast<void*>(gradient), count, Type(type), reinterpret_cast<const void*>(factor), device.stream));
}

STABLE_TORCH_LIBRARY_IMPL(fcn_fast, CUDA, m) {
  m.impl("softmax_loss", TORCH_BOX(&softmax_loss_cuda));
  m.impl("softmax_loss_backward", TORCH_BOX(&softmax_loss_backward_cuda));
  m.impl("softmax_loss_and_gradient", TORCH_BOX(&softmax_loss_and_gradient_cuda));
}

#endif

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> list;
  for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
    end = text.find(' ', begin) == std::string::npos ? text.size() : text.find(' ', begin);
    list.push_back(text.substr(begin, end - begin));
  }
  return list;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels; importing it registers them with PyTorch.";
  m.def(
      "build_facts",
      [] {
        pybind11::dict facts;
        facts["version"] = FCN_FAST_VERSION;
        facts["compiler"] = FCN_FAST_COMPILER;
        facts["torch_built_with"] = FCN_FAST_TORCH_BUILT_WITH;
        facts["torch_abi_target"] = FCN_FAST_TORCH_ABI_TARGET;
        facts["cuda_version"] = FCN_FAST_CUDA_VERSION;
        facts["cuda_archs"] = words(FCN_FAST_CUDA_ARCHS);
        facts["cuda_missing"] = FCN_FAST_CUDA_MISSING;
        facts["isas"] = words(FCN_FAST_ISAS);
        facts["isa"] = isa;
        return facts;
      },
      "What this module was built from and for, and the instruction set chosen on this machine.");
#ifdef FCN_FAST_CUDA
  m.def("scale_gradient", &scale_gradient,
        "Multiply numbers on a GPU in place by another one there: addresses, how many, their type and the device.");
#endif
}

}  // namespace fcn_fast
