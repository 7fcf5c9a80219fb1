// The per-pixel softmax loss. What a thread does is softmax_loss_work.h's, how pixels are shared out softmax_loss_plan.h's;
// here blocks start their threads and add up what they found: in a fixed order, so the same bits on every run, and in double
// precision from the warp on.
//
// forward_* and backward_*: the first saves two numbers a pixel for the second. tile_* do both at once for a tile of pixels
// in shared memory, where the gradient takes the logits' place: a thread owns a pixel there, or two in half precision where
// they lie side by side. Before them a mean has weigh, for its weight is in every gradient.
//
// *_planes, but for tiles: a thread owns 16 bytes of neighbouring pixels, or one pixel where rows are not aligned or pixels
// few, and loops over the classes. *_rows: a block copies the classes of its pixels, which lie side by side, to shared memory
// and back in 16 bytes a thread; there a thread owns a pixel. *_lanes: a warp owns a pixel of many classes.
//
// All are bound by memory: one read forward, one read and one write backward, and of tiles one read and one write in all.
// Instructions an element (sm_90, half precision, without smoothing), of which one and a quarter or one are exponentials:
// planes 8 forward and 9 backward, rows 9 and 9, tiles 16, of rows 18, or 10, 9 and 20 where classes are even in number; and a
// pixel some 100 forward and 50 backward, in tiles 230 with all that copies and finds them. At 19 classes a tile's are about 29
// an element, which is some 60 % of an H100's issue slots at its full bandwidth; in float32 35, and 40 %.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/softmax_loss.h"
#include "cuda/softmax_loss_plan.h"
#include "cuda/softmax_loss_work.h"

namespace fcn_fast::cuda {

template <> struct Storage<__nv_bfloat16> {
  FCN_FAST_HOST_DEVICE static float read(__nv_bfloat16 x) { return __bfloat162float(x); }
  FCN_FAST_HOST_DEVICE static __nv_bfloat16 write(float x) { return __float2bfloat16(x); }
};
// Two at a time, of which one is the upper half of 32 bits as it is.
template <int V>
  requires(V % 2 == 0)
FCN_FAST_HOST_DEVICE void unpack(const Pack<__nv_bfloat16, V>& pack, float (&x)[V]) {
#pragma unroll
  for (int v = 0; v < V; v += 2) {
    uint32_t pair;
    memcpy(&pair, &pack.at[v], sizeof pair);
    const uint32_t bits[2] = {pair << 16, pair & 0xffff0000};
    memcpy(&x[v], bits, sizeof bits);
  }
}
template <> struct Storage<__half> {
  FCN_FAST_HOST_DEVICE static float read(__half x) { return __half2float(x); }
  FCN_FAST_HOST_DEVICE static __half write(float x) { return __float2half(x); }
};

namespace {

// Threads of a block, at most, and blocks that share a multiprocessor, at least: a bound on their registers, 80 a thread in
// float, 128 with its eight pixels in half and 168 in double precision.
constexpr int kThreads = 128;
template <class T> constexpr int kBlocks = sizeof(T) == 8 ? 3 : sizeof(T) == 2 ? 4 : 6;

template <class A> __device__ void add_lanes(Sums<A>& sums, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    sums.loss += __shfl_xor_sync(~0u, sums.loss, distance);
    sums.weight += __shfl_xor_sync(~0u, sums.weight, distance);
  }
  if (!__any_sync(~0u, sums.bad != INT64_MAX)) return;
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const int64_t other = __shfl_xor_sync(~0u, sums.bad, distance);
    sums.bad = sums.bad < other ? sums.bad : other;
  }
}

// Adds the sums of a block's threads, always the same two first. THREADS: at most.
template <int THREADS, class A> __device__ void add_block(Sums<A> sums, Sums<double>* result) {
  constexpr int kWarps = THREADS / kWarp;
  __shared__ Sums<double> warps[kWarps];
  add_lanes(sums, kWarp);
  Sums<double> total;
  total.add(sums);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  total = threadIdx.x < blockDim.x / kWarp ? warps[threadIdx.x] : Sums<double>{};
  add_lanes(total, kWarps);
  if (threadIdx.x == 0) *result = total;
}

// The sum of the class weights, where there is smoothing; by whole warps.
template <class A> __device__ A class_sum(const Work<A>& w) {
  if (w.even == 0) return 0;
  A sum = 0;
#pragma unroll 1
  for (int32_t c = threadIdx.x % kWarp; c < w.classes; c += kWarp) sum += w.weight_of(c);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

template <class T, int V, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    forward_planes(const __grid_constant__ Work<arithmetic_t<T>> w, int64_t tiles, Sums<double>* blocks) {
  add_block<kThreads>(forward_planes<T, V, SMOOTH>(w, {blockIdx.x, tiles, int(threadIdx.x), int(blockDim.x)}), blocks + blockIdx.x);
}

template <class T, int V, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) backward_planes(const __grid_constant__ Work<arithmetic_t<T>> w, int64_t tiles) {
  backward_planes<T, V, SMOOTH>(w, {blockIdx.x, tiles, int(threadIdx.x), int(blockDim.x)}, class_sum(w));
}

// Brings a block's rows to shared memory.
template <class T> __device__ T* fetch(const Work<arithmetic_t<T>>& w, const Rows& block) {
  extern __shared__ uint4 shared[];
  T* rows = reinterpret_cast<T*>(shared);
  copy_rows(static_cast<const T*>(w.logits) + block.first * w.classes, rows, block.pixels * w.classes, are_aligned(w), threadIdx.x,
            blockDim.x, [](const T* from, T* to) { __pipeline_memcpy_async(to, from, 16); });
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  return rows;
}

template <class T, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) forward_rows(const __grid_constant__ Work<arithmetic_t<T>> w, Sums<double>* blocks) {
  const Rows block(blockIdx.x, blockDim.x, w.pixels);
  const T* rows = fetch<T>(w, block);
  add_block<kThreads>(forward_row<T, SMOOTH>(w, rows, block, threadIdx.x), blocks + blockIdx.x);
}

// And takes the gradient in their place from there.
template <class T> __device__ void put(const Work<arithmetic_t<T>>& w, const Rows& block, const T* rows) {
  copy_rows<T>(rows, static_cast<T*>(w.grad) + block.first * w.classes, block.pixels * w.classes, are_aligned(w), threadIdx.x,
               blockDim.x, [](const T* from, T* to) { Pack<T, 16 / sizeof(T)>::load(from).store(to); });
}

template <class T, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) backward_rows(const __grid_constant__ Work<arithmetic_t<T>> w) {
  const Rows block(blockIdx.x, blockDim.x, w.pixels);
  T* rows = fetch<T>(w, block);
  backward_row<T, SMOOTH>(w, rows, block, threadIdx.x, class_sum(w));
  __syncthreads();
  put(w, block, rows);
}

template <class T, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) forward_lanes(const __grid_constant__ Work<arithmetic_t<T>> w, Sums<double>* blocks) {
  const int64_t pixel = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  auto softmax = forward_lane<T, SMOOTH>(w, pixel, lane);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    decltype(softmax) other;
    other.largest = __shfl_xor_sync(~0u, softmax.largest, distance);
    other.sum = __shfl_xor_sync(~0u, softmax.sum, distance);
    if (SMOOTH) {
      other.smooth = __shfl_xor_sync(~0u, softmax.smooth, distance);
      other.weights = __shfl_xor_sync(~0u, softmax.weights, distance);
    }
    softmax.merge(other);
  }
  add_block<kThreads>(finish_lanes<T>(w, pixel, lane, softmax), blocks + blockIdx.x);
}

template <class T, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) backward_lanes(const __grid_constant__ Work<arithmetic_t<T>> w) {
  backward_lane<T, SMOOTH>(w, (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp, threadIdx.x % kWarp, class_sum(w));
}

// Blocks: of weigh, a multiple of a warp's lanes; of scale.
constexpr int kWeighing = (4 * kMultiprocessors + kWarp - 1) / kWarp * kWarp, kScaling = 8 * kMultiprocessors;

// The weights of a thread's pixels, whose labels it reads 16 bytes at a time where they are aligned.
template <class L, class A> __device__ A weights_of(const Work<A>& w, const L* labels) {
  constexpr int kPack = 16 / sizeof(L);
  const int64_t pixels = w.images * w.pixels;
  const bool aligned = reinterpret_cast<uintptr_t>(labels) % 16 == 0;
  A sum = 0;
#pragma unroll 2
  for (int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPack; first < pixels; first += int64_t(gridDim.x) * kThreads * kPack) {
    Pack<L, kPack> label;
    if (aligned && first + kPack <= pixels) label = Pack<L, kPack>::load(labels + first);
    else
#pragma unroll
      for (int k = 0; k < kPack; ++k) label.at[k] = first + k < pixels ? labels[first + k] : L(0);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const int32_t known = w.known(label.at[k]);
      if (first + k < pixels && known >= 0) sum += w.weight_of(known) * w.weight_at(first + k);
    }
  }
  return sum;
}

// The weights of all labels, before a mean is made of them.
template <class A> __global__ void __launch_bounds__(kThreads) weigh(const __grid_constant__ Work<A> w, double* blocks) {
  Sums<A> sums;
  with_labels(w, [&](const auto* labels) { sums.weight = weights_of(w, labels); });
  __shared__ Sums<double> total;
  add_block<kThreads>(sums, &total);
  if (threadIdx.x == 0) blocks[blockIdx.x] = total.weight;
}

// The sum of what weigh's blocks found, by each warp for itself.
__device__ inline double add_weights(const double* blocks) {
  double found[kWeighing / kWarp], sum = 0;
#pragma unroll
  for (int i = 0; i < kWeighing / kWarp; ++i) found[i] = blocks[i * kWarp + threadIdx.x % kWarp];
#pragma unroll
  for (int i = 0; i < kWeighing / kWarp; ++i) sum += found[i];
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

// What the gradients of a mean, or another reduction, have in common.
template <class A> __device__ Common<A> common_of(const Work<A>& w, const double* weights) {
  return {scale_of(w, w.mean ? A(add_weights(weights)) : A(0)), class_sum(w)};
}

// Forward and gradient of tiles, each of which is read once and written once.
template <class T, int V, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    tile_planes(const __grid_constant__ Work<arithmetic_t<T>> w, const double* weights, int64_t tiles, Sums<double>* blocks) {
  using A = arithmetic_t<T>;
  extern __shared__ uint4 shared[];
  T* const tile = reinterpret_cast<T*>(shared);
  const Tile<T, V> part(w, threadIdx.x, blockDim.x);
  T* const own = part.own(tile);
  const int32_t mine = threadIdx.x * V;
  const Common<A> common = common_of(w, weights);
  Sums<A> sums;
  // Where the next tile is so much further on, without dividing again.
  const int64_t images = gridDim.x / tiles, ahead = gridDim.x % tiles;
  int64_t image = blockIdx.x / tiles, t = blockIdx.x % tiles;
  while (image < w.images) {
    const int64_t first = t * part.pixels, at = image * w.pixels + first + mine, begin = image * w.classes * w.pixels + first;
    const int32_t pixels = w.pixels - first < part.pixels ? int32_t(w.pixels - first) : part.pixels;
    part.copy(static_cast<T*>(const_cast<void*>(w.logits)) + begin, w.pixels, tile, pixels, [](const T* memory, T* shared, auto pack) {
      if constexpr (decltype(pack)::value) __pipeline_memcpy_async(shared, memory, 16);
      else *shared = *memory;
    });
    __pipeline_commit();
    part.fill(own);
    Pixels<A, V> own_pixels;
    if (mine < pixels) own_pixels = {w, at};
    __pipeline_wait_prior(0);
    __syncthreads();
    if (mine < pixels)
      sums.add(forward_and_gradient<SMOOTH, kAbreast<V>>(w, own, part.kLine, Order<true>{0, 1, filled(w.classes)}, own_pixels, common));
    __syncthreads();
    part.copy(static_cast<T*>(w.grad) + begin, w.pixels, tile, pixels, [](T* memory, const T* shared, auto pack) {
      if constexpr (decltype(pack)::value) Pack<T, 16 / sizeof(T)>::load(shared).store(memory);
      else *memory = *shared;
    });
    // The next tile's logits are copied to where the same thread has just copied from.
    image += images;
    if ((t += ahead) >= tiles) {
      t -= tiles;
      ++image;
    }
  }
  add_block<kThreads>(sums, blocks + blockIdx.x);
}

template <class T, bool SMOOTH>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    tile_rows(const __grid_constant__ Work<arithmetic_t<T>> w, const double* weights, int64_t tiles, Sums<double>* blocks) {
  using A = arithmetic_t<T>;
  const Common<A> common = common_of(w, weights);
  Sums<A> sums;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Rows block(t, blockDim.x, w.pixels);
    const int64_t pixel = block.first + threadIdx.x;
    T* rows = fetch<T>(w, block);
    if (int32_t(threadIdx.x) < block.pixels) {
      const Pixels<A, 1> own(w, pixel);
      sums.add(in_order<T>(w, pixel, [&](const auto& order) {
        return forward_and_gradient<SMOOTH, kTogether>(w, rows + threadIdx.x * w.classes, 1, order, own, common);
      }));
    }
    __syncthreads();
    put(w, block, rows);
    __syncthreads();
  }
  add_block<kThreads>(sums, blocks + blockIdx.x);
}

// gradient *= factor, in place. What a loss is differentiated by is nearly always 1.
template <class T> __global__ void __launch_bounds__(kThreads) scale(T* gradient, int64_t count, const arithmetic_t<T>* factor) {
  using A = arithmetic_t<T>;
  const A by = *factor;
  if (by == 1) return;
  constexpr int kPack = 16 / sizeof(T);
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, threads = int64_t(gridDim.x) * kThreads;
  for (int64_t i = thread * kPack; i + kPack <= count; i += threads * kPack) {
    auto pack = Pack<T, kPack>::load(gradient + i);
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.at[k] = Storage<T>::write(Storage<T>::read(pack.at[k]) * by);
    pack.store(gradient + i);
  }
  const int64_t rest = count / kPack * kPack + thread;
  if (rest < count) gradient[rest] = Storage<T>::write(Storage<T>::read(gradient[rest]) * by);
}

// One block adds the blocks' sums.
template <class A>
__global__ void __launch_bounds__(1024) add_blocks(const Sums<double>* blocks, int64_t count, A* loss, A* total_weight, int64_t* first_bad,
                                                   bool mean, double inverse_divisor) {
  Sums<double> sums;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sums.add(blocks[i]);
  __shared__ Sums<double> total;
  add_block<1024>(sums, &total);
  if (threadIdx.x != 0) return;
  *total_weight = A(total.weight);
  *first_bad = total.bad;
  // Nothing but weightless pixels: a mean of 0, whatever 0 * inf would have been.
  if (loss) *loss = A(!mean ? total.loss * inverse_divisor : total.weight == 0 ? 0 : total.loss / total.weight);
}

// f(a value of the storage type)
template <class F> void dispatch(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::bf16: return f(__nv_bfloat16{});
    default: return f(__half{});
  }
}

// plan: a Plan or Tiles.
template <class A, class P> Work<A> work_of(const Map& logits, const Targets& targets, const P& plan) {
  Work<A> w{};
  w.logits = logits.data;
  w.images = plan.images;
  w.pixels = plan.pixels;
  w.image_pixels = logits.h * logits.w;
  w.classes = int32_t(logits.c);
  w.labels = targets.labels;
  w.label_type = targets.type;
  w.ignore_index = targets.ignore_index;
  w.class_weight = static_cast<const A*>(targets.class_weight);
  w.pixel_weight = static_cast<const A*>(targets.pixel_weight);
  w.hard = A(1 - targets.label_smoothing);
  w.even = A(targets.label_smoothing / double(logits.c));
  w.per_pixel = targets.reduction == kNone;
  w.mean = targets.reduction == kMean;
  return w;
}

double inverse_divisor(const Map& logits, Reduction reduction) {
  const int64_t images = logits.n, all = logits.n * logits.h * logits.w;
  if (reduction == kFull) return 1 / double(all > 1 ? all : 1);
  if (reduction == kBatch) return 1 / double(images > 1 ? images : 1);
  return 1;
}

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class T, bool SMOOTH> void forward(const Work<arithmetic_t<T>>& w, const Plan& plan, Sums<double>* sums, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const dim3 grid(plan.blocks);
  if (plan.share == Share::kLanes) forward_lanes<T, SMOOTH><<<grid, plan.threads, 0, stream>>>(w, sums);
  else if (plan.share == Share::kRows) forward_rows<T, SMOOTH><<<grid, plan.threads, plan.shared, stream>>>(w, sums);
  else if (plan.pack > 1) forward_planes<T, V, SMOOTH><<<grid, plan.threads, 0, stream>>>(w, plan.tiles, sums);
  else forward_planes<T, 1, SMOOTH><<<grid, plan.threads, 0, stream>>>(w, plan.tiles, sums);
}

template <class T, bool SMOOTH> void backward(const Work<arithmetic_t<T>>& w, const Plan& plan, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const dim3 grid(plan.blocks);
  if (plan.share == Share::kLanes) backward_lanes<T, SMOOTH><<<grid, plan.threads, 0, stream>>>(w);
  else if (plan.share == Share::kRows) backward_rows<T, SMOOTH><<<grid, plan.threads, plan.shared, stream>>>(w);
  else if (plan.pack > 1) backward_planes<T, V, SMOOTH><<<grid, plan.threads, 0, stream>>>(w, plan.tiles);
  else backward_planes<T, 1, SMOOTH><<<grid, plan.threads, 0, stream>>>(w, plan.tiles);
}

// Shared memory that a block of the current device can ask for.
int64_t most_shared() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <class T, bool SMOOTH>
void make_gradient(const Work<arithmetic_t<T>>& w, const Tiles& plan, const double* weights, Sums<double>* sums, cudaStream_t stream) {
  constexpr int V = sizeof(T) == 2 ? 2 : 1;
  const auto launch = [&](auto kernel) {
    // The same for all plans: another thread may launch the kernel too.
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(most_shared() / Tiles::kLeast));
    kernel<<<plan.blocks, plan.threads, plan.shared, stream>>>(w, weights, plan.tiles, sums);
  };
  if (plan.share == Share::kRows) launch(tile_rows<T, SMOOTH>);
  else if (plan.pack > 1) launch(tile_planes<T, V, SMOOTH>);
  else launch(tile_planes<T, 1, SMOOTH>);
}

}  // namespace

int64_t softmax_loss_scratch(const Map& logits) { return Plan(logits).blocks * int64_t(sizeof(Sums<double>)); }

const char* softmax_loss(const Map& logits, const Targets& targets, void* loss, void* saved, void* total_weight, int64_t* first_bad,
                         void* scratch, void* on_stream) {
  const auto stream = static_cast<cudaStream_t>(on_stream);
  const Plan plan(logits);
  Sums<double>* sums = static_cast<Sums<double>*>(scratch);
  dispatch(logits.type, [&](auto t) {
    using T = decltype(t);
    using A = arithmetic_t<T>;
    Work<A> w = work_of<A>(logits, targets, plan);
    w.loss = w.per_pixel ? static_cast<A*>(loss) : nullptr;
    w.saved = static_cast<A*>(saved);
    if (plan.blocks) {
      if (w.even != 0) forward<T, true>(w, plan, sums, stream);
      else forward<T, false>(w, plan, sums, stream);
    }
    add_blocks<A><<<1, 1024, 0, stream>>>(sums, plan.blocks, w.per_pixel ? nullptr : static_cast<A*>(loss),
                                          static_cast<A*>(total_weight), first_bad, w.mean,
                                          inverse_divisor(logits, targets.reduction));
  });
  return last_error();
}

const char* softmax_loss_backward(const void* grad_output, const Map& logits, const Targets& targets, const void* saved,
                                  const void* total_weight, const Map& grad, void* on_stream) {
  const auto stream = static_cast<cudaStream_t>(on_stream);
  const Plan plan(logits);
  if (!plan.blocks) return nullptr;
  dispatch(logits.type, [&](auto t) {
    using T = decltype(t);
    using A = arithmetic_t<T>;
    Work<A> w = work_of<A>(logits, targets, plan);
    w.grad = grad.data;
    w.normaliser = static_cast<const A*>(saved);
    w.grad_output = static_cast<const A*>(grad_output);
    w.total_weight = static_cast<const A*>(total_weight);
    w.inverse_divisor = A(inverse_divisor(logits, targets.reduction));
    if (w.even != 0) backward<T, true>(w, plan, stream);
    else backward<T, false>(w, plan, stream);
  });
  return last_error();
}

namespace {
// It is read 16 bytes at a time.
int64_t before_normaliser(const Map& logits) { return (softmax_loss_scratch(logits) + 15) / 16 * 16; }
}  // namespace

int64_t softmax_loss_and_gradient_scratch(const Map& logits) {
  const Tiles plan(logits, most_shared());
  if (plan.fit) return kWeighing * int64_t(sizeof(double)) + plan.blocks * int64_t(sizeof(Sums<double>));
  const int64_t normaliser = 2 * logits.n * logits.h * logits.w * (logits.type == Type::f64 ? 8 : 4);
  return before_normaliser(logits) + normaliser;
}

const char* softmax_loss_and_gradient(const Map& logits, const Targets& targets, void* loss, const Map& grad, void* total_weight,
                                      int64_t* first_bad, void* scratch, void* on_stream) {
  const auto stream = static_cast<cudaStream_t>(on_stream);
  const Tiles plan(logits, most_shared());
  if (!plan.fit) {
    char* normaliser = static_cast<char*>(scratch) + before_normaliser(logits);
    const char* error = softmax_loss(logits, targets, loss, normaliser, total_weight, first_bad, scratch, stream);
    return error ? error : softmax_loss_backward(nullptr, logits, targets, normaliser, total_weight, grad, stream);
  }
  double* weights = static_cast<double*>(scratch);
  Sums<double>* sums = reinterpret_cast<Sums<double>*>(weights + kWeighing);
  const double divisor = inverse_divisor(logits, targets.reduction);
  dispatch(logits.type, [&](auto t) {
    using T = decltype(t);
    using A = arithmetic_t<T>;
    Work<A> w = work_of<A>(logits, targets, plan);
    w.grad = grad.data;
    w.inverse_divisor = A(divisor);
    if (plan.blocks) {
      if (w.mean) weigh<A><<<kWeighing, kThreads, 0, stream>>>(w, weights);
      if (w.even != 0) make_gradient<T, true>(w, plan, weights, sums, stream);
      else make_gradient<T, false>(w, plan, weights, sums, stream);
    }
    add_blocks<A><<<1, 1024, 0, stream>>>(sums, plan.blocks, static_cast<A*>(loss), static_cast<A*>(total_weight), first_bad, w.mean, divisor);
  });
  return last_error();
}

const char* scale_gradient(void* gradient, int64_t count, Type type, const void* factor, void* on_stream) {
  const auto stream = static_cast<cudaStream_t>(on_stream);
  if (!count) return nullptr;
  const int64_t most = (count + kThreads - 1) / kThreads;
  const int blocks = int(most < kScaling ? most : kScaling);
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    scale<T><<<blocks, kThreads, 0, stream>>>(static_cast<T*>(gradient), count, static_cast<const arithmetic_t<T>*>(factor));
  });
  return last_error();
}

const char* to_host(void* to, const void* from, int64_t bytes, void* on_stream) {
  const auto stream = static_cast<cudaStream_t>(on_stream);
  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream);
  cudaStreamSynchronize(stream);
  return last_error();
}

}  // namespace fcn_fast::cuda
