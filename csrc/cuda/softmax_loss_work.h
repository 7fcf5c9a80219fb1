// What one thread of the CUDA softmax loss does, for host and device.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"
#include "cuda/softmax.h"
#include "cuda/softmax_loss_plan.h"

namespace fcn_fast::cuda {

constexpr int32_t kIgnored = -1, kBad = -2;

// What a kernel is given; pixels are those of one image. Classes side by side: all images are one, of image_pixels each.
template <class A> struct Work {
  const void* logits;
  int64_t images, pixels, image_pixels;
  int32_t classes;
  const void* labels;
  Type label_type;
  int64_t ignore_index;
  const A *class_weight, *pixel_weight;  // null: 1
  A hard, even;                          // what the label's -log softmax counts, and every class's
  A *loss, *saved;                       // forward; loss only where it is a map, saved where there is a gradient to come
  void* grad;                            // backward, as all that follows
  const A *normaliser, *grad_output, *total_weight;  // grad_output null: 1
  bool per_pixel, mean;
  A inverse_divisor;

  FCN_FAST_HOST_DEVICE int32_t label(int64_t at) const {
    int64_t label;
    switch (label_type) {
      case Type::u8: label = static_cast<const uint8_t*>(labels)[at]; break;
      case Type::i16: label = static_cast<const int16_t*>(labels)[at]; break;
      case Type::i32: label = static_cast<const int32_t*>(labels)[at]; break;
      default: label = static_cast<const int64_t*>(labels)[at];
    }
    return known(label);
  }
  // A label as it was read, or kIgnored, or kBad.
  FCN_FAST_HOST_DEVICE int32_t known(int64_t label) const {
    if (label == ignore_index) return kIgnored;
    return label < 0 || label >= classes ? kBad : int32_t(label);
  }
  FCN_FAST_HOST_DEVICE A weight_of(int32_t c) const { return class_weight ? class_weight[c] : A(1); }
  FCN_FAST_HOST_DEVICE A weight_at(int64_t at) const { return pixel_weight ? pixel_weight[at] : A(1); }
};

// What pixels add to the sums.
template <class A> struct Sums {
  A loss = 0, weight = 0;
  int64_t bad = INT64_MAX;
  template <class B> FCN_FAST_HOST_DEVICE void add(const Sums<B>& other) {
    loss += other.loss;
    weight += other.weight;
    bad = bad < other.bad ? bad : other.bad;
  }
};

// The classes of a pixel that are a thread's, in its order: start, start + step and so on, after the last one 0.
struct Order {
  int32_t start, step, count;
};

// Calls f(j, whole) for groups of K among count classes: from the j-th on. Of the last group, not whole, some are missing.
template <int K, class F> FCN_FAST_HOST_DEVICE void in_groups(int32_t count, const F& f) {
  int32_t j = 0;
  for (; j + K <= count; j += K) f(j, std::true_type{});
  if (j < count) f(j, std::false_type{});
}

// The j-th group of V neighbouring pixels' logits, a stride from class to class; for what is missing, the last one again.
template <class T, int V, int K> struct Group {
  int32_t first, step, count;
  Pack<T, V> at[K];

  template <class WHOLE>
  FCN_FAST_HOST_DEVICE Group(const T* x, int64_t stride, int32_t classes, Order order, int32_t j, WHOLE)
      : first(order.start + j * order.step), step(order.step), count(WHOLE::value ? K : order.count - j) {
    if (first >= classes) first -= classes;
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] = Pack<T, V>::load(x + class_of(k < count ? k : count - 1) * stride);
  }
  FCN_FAST_HOST_DEVICE int32_t class_of(int k) const { return first + k * step; }
};

// Adds a thread's classes to the softmax of V neighbouring pixels, K loads in flight. kTogether by kTogether, whatever K and
// V, so that a pixel has the same bits in every batch.
constexpr int kTogether = 4;
template <int K, class T, int V, bool SMOOTH>
FCN_FAST_HOST_DEVICE void add_classes(const Work<arithmetic_t<T>>& w, const T* x, int64_t stride, Order order,
                                      Softmax<arithmetic_t<T>, SMOOTH> (&softmax)[V]) {
  using A = arithmetic_t<T>;
  in_groups<K>(order.count, [&](int32_t j, auto whole) {
    const Group<T, V, K> group(x, stride, w.classes, order, j, whole);
#pragma unroll
    for (int part = 0; part < K; part += kTogether) {
      A weights[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
        weights[k] = SMOOTH && part + k < group.count ? w.weight_of(group.class_of(part + k)) : A(0);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A column[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k)
          column[k] = part + k < group.count ? A(Storage<T>::read(group.at[part + k].at[v])) : -A(INFINITY);
        softmax[v].add(column, weights);
      }
    }
  });
}

// What log softmax is of V pixels: logit - largest - log_sum.
template <class A, int V> struct Normaliser {
  A largest[V], log_sum[V];
};

template <int V, class A> FCN_FAST_HOST_DEVICE Normaliser<A, V> saved_normaliser(const Work<A>& w, int64_t at) {
  Normaliser<A, V> normaliser;
  load_line(w.normaliser + at, normaliser.largest);
  load_line(w.normaliser + w.images * w.pixels + at, normaliser.log_sum);
  return normaliser;
}

template <class A, int V> FCN_FAST_HOST_DEVICE void read_labels(const Work<A>& w, int64_t at, int32_t (&label)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) label[v] = w.label(at + v);
}

// The end of the forward pass of pixels from ``at`` on.
template <class T, int V, bool SMOOTH>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> finish(const Work<arithmetic_t<T>>& w, const T* x, int64_t stride, int64_t at,
                                                  const int32_t (&label)[V], const Softmax<arithmetic_t<T>, SMOOTH> (&softmax)[V],
                                                  Normaliser<arithmetic_t<T>, V>& normaliser) {
  using A = arithmetic_t<T>;
  A value[V];
  Sums<A> sums;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A largest = normaliser.largest[v] = softmax[v].largest, log_sum = normaliser.log_sum[v] = log_of(softmax[v].sum);
    value[v] = label[v] == kBad ? A(NAN) : A(0);
    if (label[v] >= 0) {
      const A weight = w.weight_of(label[v]), pixel = w.weight_at(at + v), own = Storage<T>::read(x[label[v] * stride + v]);
      value[v] = w.hard * weight * (log_sum - (own - largest));
      if (SMOOTH) value[v] += w.even * (softmax[v].weights * log_sum - softmax[v].smooth);
      value[v] *= pixel;
      sums.weight += weight * pixel;
    }
    sums.loss += value[v];
    if (label[v] == kBad && sums.bad > at + v) sums.bad = at + v;
  }
  if (w.saved) {
    store_line(normaliser.largest, w.saved + at);
    store_line(normaliser.log_sum, w.saved + w.images * w.pixels + at);
  }
  if (w.loss) store_line(value, w.loss + at);
  return sums;
}

// What a pixel's gradient is made of: whole * softmax - even * class_weight, and less own at its label.
template <class A> struct Gradient {
  int32_t label = kIgnored;
  A own = 0, even = 0, whole = 0, largest = 0, log_sum = 0;

  // class_sum: of the class weights, where there is smoothing.
  FCN_FAST_HOST_DEVICE void prepare(const Work<A>& w, int64_t at, int32_t own_label, A class_sum) {
    label = own_label;
    if (label == kBad) whole = A(NAN);
    A scale = w.inverse_divisor;
    if (w.mean) scale = *w.total_weight == 0 ? A(0) : 1 / *w.total_weight;
    if (label < 0 || scale == 0) return;
    // The scale by itself first: half of a product of all may be too small a number.
    const A arrives = w.grad_output ? w.grad_output[w.per_pixel ? at : 0] : A(1);
    const A pixel = arrives * scale * w.weight_at(at);
    own = pixel * w.hard * w.weight_of(label);
    even = pixel * w.even;
    whole = own + even * class_sum;
  }
  template <bool SMOOTH> FCN_FAST_HOST_DEVICE A of(A x, int32_t c, A class_weight) const {
    A value = mul_add(whole, exp_of(x - largest - log_sum), c == label ? -own : A(0));
    if (SMOOTH) value = mul_add(-even, class_weight, value);
    return whole == 0 ? A(0) : value;  // an ignored pixel has none, whatever its logits
  }
};

// Writes the gradient of a thread's classes of V neighbouring pixels from ``at`` on; x and grad may be the same.
template <bool SMOOTH, int K, int V, class T>
FCN_FAST_HOST_DEVICE void write_gradient(const Work<arithmetic_t<T>>& w, const T* x, int64_t stride, T* grad, int64_t grad_stride, Order order,
                                         int64_t at, const int32_t (&label)[V], const Normaliser<arithmetic_t<T>, V>& normaliser,
                                         arithmetic_t<T> class_sum) {
  using A = arithmetic_t<T>;
  Gradient<A> gradient[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    gradient[v].prepare(w, at + v, label[v], class_sum);
    gradient[v].largest = normaliser.largest[v];
    gradient[v].log_sum = normaliser.log_sum[v];
  }
  const A* const class_weight = SMOOTH && w.even != 0 ? w.class_weight : nullptr;
  in_groups<K>(order.count, [&](int32_t j, auto whole) {
    Group<T, V, K> group(x, stride, w.classes, order, j, whole);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= group.count) break;
      const int32_t c = group.class_of(k);
      const A weight = class_weight ? class_weight[c] : A(1);
      Pack<T, V>& pack = group.at[k];
#pragma unroll
      for (int v = 0; v < V; ++v) pack.at[v] = Storage<T>::write(gradient[v].template of<SMOOTH>(Storage<T>::read(pack.at[v]), c, weight));
      pack.store(grad + c * grad_stride);
    }
  });
}

// As write_gradient, of what is saved for it.
template <int K, int V, class T>
FCN_FAST_HOST_DEVICE void backward(const Work<arithmetic_t<T>>& w, const T* x, T* grad, int64_t stride, Order order, int64_t at,
                                   arithmetic_t<T> class_sum) {
  int32_t label[V];
  read_labels(w, at, label);
  write_gradient<true, K>(w, x, stride, grad, stride, order, at, label, saved_normaliser<V>(w, at), class_sum);
}

// Forward, and at once the gradient.
template <bool SMOOTH, int K, int V, class T>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> forward_and_gradient(const Work<arithmetic_t<T>>& w, const T* x, int64_t stride, T* grad,
                                                                int64_t grad_stride, Order order, int64_t at, const int32_t (&label)[V],
                                                                arithmetic_t<T> class_sum) {
  Softmax<arithmetic_t<T>, SMOOTH> softmax[V];
  add_classes<K>(w, x, stride, order, softmax);
  Normaliser<arithmetic_t<T>, V> normaliser;
  const auto sums = finish(w, x, stride, at, label, softmax, normaliser);
  write_gradient<SMOOTH, K>(w, x, stride, grad, grad_stride, order, at, label, normaliser, class_sum);
  return sums;
}

// Planes: V neighbouring pixels of an image, class by class. Blocks of ``threads`` threads, ``tiles`` of them an image.
template <int V> constexpr int kAbreast = V == 1 ? 8 : 4;  // loads in flight

template <int V> struct Planes {
  int64_t image, first;
  FCN_FAST_HOST_DEVICE Planes(int64_t block, int64_t tiles, int thread, int threads)
      : image(block / tiles), first((block % tiles * threads + thread) * V) {}
};

template <class T, int V, bool SMOOTH>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> forward_planes(const Work<arithmetic_t<T>>& w, const Planes<V>& p) {
  if (p.first >= w.pixels) return {};
  const T* x = static_cast<const T*>(w.logits) + p.image * w.classes * w.pixels + p.first;
  const int64_t at = p.image * w.pixels + p.first;
  int32_t label[V];
  read_labels(w, at, label);
  Softmax<arithmetic_t<T>, SMOOTH> softmax[V];
  add_classes<kAbreast<V>>(w, x, w.pixels, {0, 1, w.classes}, softmax);
  Normaliser<arithmetic_t<T>, V> normaliser;
  return finish(w, x, w.pixels, at, label, softmax, normaliser);
}

template <class T, int V>
FCN_FAST_HOST_DEVICE void backward_planes(const Work<arithmetic_t<T>>& w, const Planes<V>& p, arithmetic_t<T> class_sum) {
  if (p.first >= w.pixels) return;
  const int64_t at = p.image * w.classes * w.pixels + p.first;
  backward<kAbreast<V>, V>(w, static_cast<const T*>(w.logits) + at, static_cast<T*>(w.grad) + at, w.pixels, {0, 1, w.classes},
                           p.image * w.pixels + p.first, class_sum);
}

// A thread's part in copying a tile of planes, pixels that lie at x and ``plane`` apart, to shared memory, ``row`` apart: 16
// bytes at a time where they are aligned. copy(from, to) does 16 bytes.
template <class T, class F>
FCN_FAST_HOST_DEVICE void copy_planes(const T* x, int64_t plane, T* tile, int32_t row, int32_t classes, int32_t pixels, int thread,
                                      int threads, const F& copy) {
  constexpr int kPack = 16 / sizeof(T);
  if (plane % kPack == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
    const int packs = row / kPack, at = thread % packs * kPack;
    if (at >= pixels) return;  // pixels are whole packs, as a plane is
    for (int32_t c = thread / packs; c < classes; c += threads / packs) copy(x + c * plane + at, tile + c * row + at);
    return;
  }
#pragma unroll 4
  for (int32_t c = 0; c < classes; ++c)
    for (int32_t at = thread; at < pixels; at += threads) tile[c * row + at] = x[c * plane + at];
}

// Rows: one pixel, whose classes lie side by side in shared memory.
struct Rows {
  int64_t first;   // pixel of the block
  int32_t pixels;  // of the block
  FCN_FAST_HOST_DEVICE Rows(int64_t block, int threads, int64_t all) : first(block * threads) {
    pixels = all - first < threads ? int32_t(all - first) : threads;
  }
};

// A thread's part in copying a block's rows, 16 bytes at a time where they are aligned; copy(from, to) does 16 bytes.
template <class T, class F> FCN_FAST_HOST_DEVICE void copy_rows(const T* from, T* to, int32_t count, int thread, int threads, const F& copy) {
  constexpr int kPack = 16 / sizeof(T);
  const bool aligned = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
  const int32_t packed = aligned ? count / kPack * kPack : 0;
  for (int32_t i = thread * kPack; i < packed; i += threads * kPack) copy(from + i, to + i);
  for (int32_t i = packed + thread; i < count; i += threads) to[i] = from[i];
}

// Where rows are so far apart that all threads would read the same bank, each begins with another group.
template <class A> FCN_FAST_HOST_DEVICE Order row_order(const Work<A>& w, int64_t pixel) {
  const int32_t groups = w.classes % kTogether ? 1 : w.classes / kTogether;
  return {groups == 1 ? 0 : int32_t(pixel % w.image_pixels % groups) * kTogether, 1, w.classes};
}

template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> forward_row(const Work<arithmetic_t<T>>& w, const T* rows, const Rows& block, int thread) {
  if (thread >= block.pixels) return {};
  const T* x = rows + thread * w.classes;
  const int64_t pixel = block.first + thread;
  const int32_t label[1] = {w.label(pixel)};
  Softmax<arithmetic_t<T>, SMOOTH> softmax[1];
  add_classes<kTogether>(w, x, 1, row_order(w, pixel), softmax);
  Normaliser<arithmetic_t<T>, 1> normaliser;
  return finish(w, x, 1, pixel, label, softmax, normaliser);
}

// In place.
template <class T>
FCN_FAST_HOST_DEVICE void backward_row(const Work<arithmetic_t<T>>& w, T* rows, const Rows& block, int thread, arithmetic_t<T> class_sum) {
  if (thread >= block.pixels) return;
  T* x = rows + thread * w.classes;
  const int64_t pixel = block.first + thread;
  backward<kTogether, 1>(w, x, x, 1, row_order(w, pixel), pixel, class_sum);
}

// Lanes: one pixel's classes, side by side, shared out among the lanes of a warp.
FCN_FAST_HOST_DEVICE inline Order lane_order(int32_t classes, int lane) {
  return {lane, kWarp, (classes - lane + kWarp - 1) / kWarp};
}

template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE Softmax<arithmetic_t<T>, SMOOTH> forward_lane(const Work<arithmetic_t<T>>& w, int64_t pixel, int lane) {
  Softmax<arithmetic_t<T>, SMOOTH> softmax[1];
  if (pixel < w.pixels)
    add_classes<kAbreast<1>>(w, static_cast<const T*>(w.logits) + pixel * w.classes, 1, lane_order(w.classes, lane), softmax);
  return softmax[0];
}

// By one lane, with the softmax of them all.
template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> finish_lanes(const Work<arithmetic_t<T>>& w, int64_t pixel, int lane,
                                                        const Softmax<arithmetic_t<T>, SMOOTH>& of_all) {
  if (lane != 0 || pixel >= w.pixels) return {};
  const int32_t label[1] = {w.label(pixel)};
  const Softmax<arithmetic_t<T>, SMOOTH> softmax[1] = {of_all};
  Normaliser<arithmetic_t<T>, 1> normaliser;
  return finish(w, static_cast<const T*>(w.logits) + pixel * w.classes, 1, pixel, label, softmax, normaliser);
}

template <class T>
FCN_FAST_HOST_DEVICE void backward_lane(const Work<arithmetic_t<T>>& w, int64_t pixel, int lane, arithmetic_t<T> class_sum) {
  if (pixel >= w.pixels) return;
  const int64_t at = pixel * w.classes;
  backward<kAbreast<1>, 1>(w, static_cast<const T*>(w.logits) + at, static_cast<T*>(w.grad) + at, 1, lane_order(w.classes, lane), pixel,
                           class_sum);
}

}  // namespace fcn_fast::cuda
