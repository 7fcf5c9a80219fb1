// The threads of the CUDA softmax loss one after the other, on the CPU: the same indices, the same arithmetic.
#include "cuda/softmax_loss_work.h"

#include <vector>

using namespace fcn_fast;
using namespace fcn_fast::cuda;

namespace fcn_fast::cuda {
// For its size: in half precision a thread has eight pixels.
template <> struct Storage<_Float16> {
  static float read(_Float16 x) { return float(x); }
  static _Float16 write(float x) { return _Float16(x); }
};
}  // namespace fcn_fast::cuda

namespace {

struct Launch {
  Share share;
  int pack, threads;
  bool backward;
};

template <class T, int V, bool SMOOTH> void planes(const Work<arithmetic_t<T>>& w, Launch launch, arithmetic_t<T> class_sum, Sums<double>& sums) {
  const int64_t tiles = (w.pixels + launch.threads * V - 1) / (launch.threads * V);
  for (int64_t block = 0; block < w.images * tiles; ++block)
    for (int thread = 0; thread < launch.threads; ++thread) {
      const Planes<V> place(block, tiles, thread, launch.threads);
      if (launch.backward) backward_planes<T, V>(w, place, class_sum);
      else sums.add(forward_planes<T, V, SMOOTH>(w, place));
    }
}

template <class T, bool SMOOTH> void rows(const Work<arithmetic_t<T>>& w, Launch launch, arithmetic_t<T> class_sum, Sums<double>& sums) {
  std::vector<Pack<T, 16 / sizeof(T)>> shared((launch.threads * w.classes * sizeof(T) + 15) / 16);
  T* data = shared.data()->at;
  const auto copy = [](const T* from, T* to) { Pack<T, 16 / sizeof(T)>::load(from).store(to); };
  for (int64_t number = 0; number * launch.threads < w.pixels; ++number) {
    const Rows block(number, launch.threads, w.pixels);
    const int64_t at = block.first * w.classes;
    const int32_t count = block.pixels * w.classes;
    for (int thread = 0; thread < launch.threads; ++thread)
      copy_rows(static_cast<const T*>(w.logits) + at, data, count, thread, launch.threads, copy);
    for (int thread = 0; thread < launch.threads; ++thread) {
      if (launch.backward) backward_row(w, data, block, thread, class_sum);
      else sums.add(forward_row<T, SMOOTH>(w, data, block, thread));
    }
    for (int thread = 0; launch.backward && thread < launch.threads; ++thread)
      copy_rows<T>(data, static_cast<T*>(w.grad) + at, count, thread, launch.threads, copy);
  }
}

template <class T, bool SMOOTH> void lanes(const Work<arithmetic_t<T>>& w, Launch launch, arithmetic_t<T> class_sum, Sums<double>& sums) {
  for (int64_t pixel = 0; pixel < w.pixels + 1; ++pixel) {
    std::vector<Softmax<arithmetic_t<T>, SMOOTH>> softmax(kWarp);
    for (int lane = 0; lane < kWarp; ++lane) {
      if (launch.backward) backward_lane<T>(w, pixel, lane, class_sum);
      else softmax[lane] = forward_lane<T, SMOOTH>(w, pixel, lane);
    }
    // As a warp shuffles.
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const auto before = softmax;
      for (int lane = 0; lane < kWarp; ++lane) softmax[lane].merge(before[lane ^ distance]);
    }
    for (int lane = 0; !launch.backward && lane < kWarp; ++lane) sums.add(finish_lanes<T>(w, pixel, lane, softmax[lane]));
  }
}

template <class T, bool SMOOTH> Sums<double> run(const Work<arithmetic_t<T>>& w, Launch launch) {
  arithmetic_t<T> class_sum = 0;
  for (int32_t c = 0; w.even != 0 && c < w.classes; ++c) class_sum += w.weight_of(c);
  Sums<double> sums;
  if (launch.share == Share::kLanes) lanes<T, SMOOTH>(w, launch, class_sum, sums);
  else if (launch.share == Share::kRows) rows<T, SMOOTH>(w, launch, class_sum, sums);
  else if (launch.pack > 1) planes<T, 16 / sizeof(T), SMOOTH>(w, launch, class_sum, sums);
  else planes<T, 1, SMOOTH>(w, launch, class_sum, sums);
  return sums;
}

template <class T> void run(void** p, const int64_t* n, double smoothing, double inverse_divisor, double* found) {
  using A = arithmetic_t<T>;
  Work<A> w{};
  w.logits = p[0];
  w.labels = p[1];
  w.class_weight = static_cast<const A*>(p[2]);
  w.pixel_weight = static_cast<const A*>(p[3]);
  w.loss = static_cast<A*>(p[4]);
  w.saved = static_cast<A*>(p[5]);
  w.grad = p[6];
  w.grad_output = static_cast<const A*>(p[7]);
  w.total_weight = static_cast<const A*>(p[8]);
  w.normaliser = w.saved;
  w.images = n[0];
  w.classes = int32_t(n[1]);
  w.pixels = n[2];
  w.image_pixels = n[3];
  w.label_type = Type(n[4]);
  w.ignore_index = n[5];
  w.per_pixel = n[6] == kNone;
  w.mean = n[6] == kMean;
  w.hard = A(1 - smoothing);
  w.even = A(smoothing / double(n[1]));
  w.inverse_divisor = A(inverse_divisor);
  const Launch launch{Share(n[7]), int(n[8]), int(n[9]), n[10] != 0};
  const Sums<double> sums = smoothing != 0 ? run<T, true>(w, launch) : run<T, false>(w, launch);
  found[0] = sums.loss;
  found[1] = sums.weight;
  found[2] = sums.bad == INT64_MAX ? -1 : double(sums.bad);
}

}  // namespace

// Pointers may be null where they may be in Work.
extern "C" void run_float32(void** p, const int64_t* n, double smoothing, double inverse_divisor, double* sums) {
  run<float>(p, n, smoothing, inverse_divisor, sums);
}
extern "C" void run_float64(void** p, const int64_t* n, double smoothing, double inverse_divisor, double* sums) {
  run<double>(p, n, smoothing, inverse_divisor, sums);
}
extern "C" void run_float16(void** p, const int64_t* n, double smoothing, double inverse_divisor, double* sums) {
  run<_Float16>(p, n, smoothing, inverse_divisor, sums);
}

// What a tensor of this type, shape, layout and address modulo 16 is dealt out to.
extern "C" void plan(int64_t type, const int64_t* shape, int64_t channels_last, int64_t address, int64_t* out) {
  const Plan p(Map{reinterpret_cast<void*>(address), Type(type), shape[0], shape[1], shape[2], shape[3], channels_last != 0});
  const int64_t numbers[] = {int64_t(p.share), p.pack, p.threads, p.shared, p.images, p.pixels, p.tiles, p.blocks};
  for (int i = 0; i < 8; ++i) out[i] = numbers[i];
}
