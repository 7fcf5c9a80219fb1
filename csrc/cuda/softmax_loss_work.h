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

  // A label as it was read, or kIgnored, or kBad.
  FCN_FAST_HOST_DEVICE int32_t known(int64_t label) const {
    if (label == ignore_index) return kIgnored;
    return uint64_t(label) >= uint64_t(classes) ? kBad : int32_t(label);
  }
  FCN_FAST_HOST_DEVICE A weight_of(int32_t c) const { return class_weight ? class_weight[c] : A(1); }
  FCN_FAST_HOST_DEVICE A weight_at(int64_t at) const { return pixel_weight ? pixel_weight[at] : A(1); }
};

// Whether what is read and what is written, if anything is, begins at 16 bytes.
template <class A> FCN_FAST_HOST_DEVICE bool are_aligned(const Work<A>& w) {
  return (reinterpret_cast<uintptr_t>(w.logits) | reinterpret_cast<uintptr_t>(w.grad)) % 16 == 0;
}

// f(all labels), as pointers of their type.
template <class A, class F> FCN_FAST_HOST_DEVICE void with_labels(const Work<A>& w, const F& f) {
  switch (w.label_type) {
    case Type::u8: return f(static_cast<const uint8_t*>(w.labels));
    case Type::i16: return f(static_cast<const int16_t*>(w.labels));
    case Type::i32: return f(static_cast<const int32_t*>(w.labels));
    default: return f(static_cast<const int64_t*>(w.labels));
  }
}

// What counts of V neighbouring pixels from ``at`` on, beside their logits.
template <class A, int V> struct Pixels {
  int64_t at;
  int32_t label[V];
  A of_class[V], of_pixel[V];  // weights

  Pixels() = default;
  FCN_FAST_HOST_DEVICE Pixels(const Work<A>& w, int64_t at) : at(at) {
    with_labels(w, [&](const auto* labels) {
#pragma unroll
      for (int v = 0; v < V; ++v) label[v] = w.known(labels[at + v]);
    });
#pragma unroll
    for (int v = 0; v < V; ++v) of_class[v] = of_pixel[v] = 1;
    if (w.class_weight)
#pragma unroll
      for (int v = 0; v < V; ++v) of_class[v] = label[v] >= 0 ? w.class_weight[label[v]] : A(1);
    if (w.pixel_weight)
#pragma unroll
      for (int v = 0; v < V; ++v) of_pixel[v] = w.pixel_weight[at + v];
  }
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

// The classes of a pixel that are a thread's, in its order: start, start + step and so on, after the last one 0. WHOLE: the
// count is a multiple of kTogether, with classes of logit -inf and no weight after the last one. PACK: classes that are read
// and written at once, side by side; of kTogether of them the one at k is the (k ^ flip)-th.
template <bool WHOLE = false, int PACK = 1> struct Order {
  int32_t start, step, count, flip = 0;
};

// Calls f(j, number, whole) for groups of K among an order's classes: from the j-th on. Of the last group, not whole, some are
// missing; of packs it has but one.
template <int K, bool WHOLE, int PACK, class F> FCN_FAST_HOST_DEVICE void in_groups(const Order<WHOLE, PACK>& order, const F& f) {
  int32_t j = 0;
  for (; j + K <= order.count; j += K) f(j, std::integral_constant<int, K>{}, std::true_type{});
  if constexpr (WHOLE && K > kTogether) {
    for (; j < order.count; j += kTogether) f(j, std::integral_constant<int, kTogether>{}, std::true_type{});
  } else if constexpr (PACK > 1) {
    static_assert(K == 2 * PACK);
    if (j < order.count) f(j, std::integral_constant<int, PACK>{}, std::true_type{});
  } else if constexpr (!WHOLE) {
    if (j < order.count) f(j, std::integral_constant<int, K>{}, std::false_type{});
  }
}

// V numbers as they are computed with.
template <class T, int V> FCN_FAST_HOST_DEVICE void unpack(const Pack<T, V>& pack, arithmetic_t<T> (&x)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) x[v] = Storage<T>::read(pack.at[v]);
}

// The j-th group of V neighbouring pixels' logits, a stride from class to class; for what is missing, the last one again.
template <class T, int V, int PACK, int K> struct Group {
  static_assert(V == 1 || PACK == 1);
  int32_t first, step, count, flip;
  Pack<T, V * PACK> at[K / PACK];

  template <bool ALL, class S, class WHOLE>
  FCN_FAST_HOST_DEVICE Group(const T* x, S stride, int32_t classes, const Order<ALL, PACK>& order, int32_t j, WHOLE)
      : first(order.start + j * order.step), step(order.step), count(WHOLE::value ? K : order.count - j), flip(order.flip) {
    if (PACK > 1 && first >= classes) first -= classes;
#pragma unroll
    for (int k = 0; k < K; k += PACK) at[k / PACK] = Pack<T, V * PACK>::load(x + class_of(k < count ? k : count - PACK) * stride);
  }
  FCN_FAST_HOST_DEVICE int32_t class_of(int k) const { return first + (PACK > 1 ? k ^ flip : k) * step; }
};

// Adds a thread's classes to the softmax of V neighbouring pixels, K loads in flight. kTogether by kTogether, whatever K and
// V, so that a pixel has the same bits in every batch.
template <int K, class T, int V, bool SMOOTH, bool ALL, int PACK, class S>
FCN_FAST_HOST_DEVICE void add_classes(const Work<arithmetic_t<T>>& w, const T* x, S stride, const Order<ALL, PACK>& order,
                                      Softmax<arithmetic_t<T>, SMOOTH> (&softmax)[V]) {
  using A = arithmetic_t<T>;
  in_groups<K>(order, [&](int32_t j, auto in_all, auto whole) {
    const Group<T, V, PACK, in_all.value> group(x, stride, w.classes, order, j, whole);
#pragma unroll
    for (int part = 0; part < in_all.value; part += kTogether) {
      constexpr int N = in_all.value < kTogether ? in_all.value : kTogether;
      A weights[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const int32_t c = group.class_of(part + k);
        weights[k] = SMOOTH && part + k < group.count && c < w.classes ? w.weight_of(c) : A(0);
      }
      A x[N / PACK][V * PACK];
#pragma unroll
      for (int k = 0; k < N; k += PACK) unpack(group.at[(part + k) / PACK], x[k / PACK]);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A column[N];
#pragma unroll
        for (int k = 0; k < N; ++k) column[k] = part + k < group.count ? x[k / PACK][k % PACK * V + v] : -A(INFINITY);
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

// The end of the forward pass; SAVE: with what it leaves for each pixel.
template <bool SAVE = true, class T, int V, bool SMOOTH, class S>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> finish(const Work<arithmetic_t<T>>& w, const T* x, S stride, const Pixels<arithmetic_t<T>, V>& p,
                                                  const Softmax<arithmetic_t<T>, SMOOTH> (&softmax)[V]) {
  using A = arithmetic_t<T>;
  A value[V];
  Sums<A> sums;
  Normaliser<A, V> normaliser;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int32_t label = p.label[v];
    const A largest = normaliser.largest[v] = softmax[v].largest, log_sum = normaliser.log_sum[v] = log_of(softmax[v].sum);
    value[v] = label == kBad ? A(NAN) : A(0);
    if (label >= 0) {
      const A own = Storage<T>::read(x[label * stride + v]);
      value[v] = w.hard * p.of_class[v] * (log_sum - (own - largest));
      if (SMOOTH) value[v] += w.even * (softmax[v].weights * log_sum - softmax[v].smooth);
      value[v] *= p.of_pixel[v];
      sums.weight += p.of_class[v] * p.of_pixel[v];
    }
    sums.loss += value[v];
    if (label == kBad && sums.bad > p.at + v) sums.bad = p.at + v;
  }
  if (SAVE && w.saved) {
    store_line(normaliser.largest, w.saved + p.at);
    store_line(normaliser.log_sum, w.saved + w.images * w.pixels + p.at);
  }
  if (SAVE && w.loss) store_line(value, w.loss + p.at);
  return sums;
}

// What all gradients have in common.
template <class A> struct Common {
  A scale;      // of the reduction
  A class_sum;  // of the class weights, where there is smoothing
};
template <class A> FCN_FAST_HOST_DEVICE A scale_of(const Work<A>& w, A total_weight) {
  if (!w.mean) return w.inverse_divisor;
  return total_weight == 0 ? A(0) : 1 / total_weight;
}

// What a pixel's gradient is made of: share * exp(logit - largest) - even * class_weight, and less own at its label.
template <class A> struct Gradient {
  int32_t label = kIgnored;
  A own = 0, even = 0, whole = 0, share, largest;

  // arrives: what the pixel's loss is differentiated by, with the reduction's scale.
  template <bool SMOOTH, int V>
  FCN_FAST_HOST_DEVICE void prepare(const Work<A>& w, const Pixels<A, V>& p, int v, A arrives, A of_largest, A inverse_sum,
                                    const Common<A>& common) {
    label = p.label[v];
    largest = of_largest;
    if (label == kBad) whole = A(NAN);
    if (label >= 0 && common.scale != 0) {
      const A pixel = arrives * p.of_pixel[v];
      whole = own = pixel * w.hard * p.of_class[v];
      if (SMOOTH) {
        even = pixel * w.even;
        whole += even * common.class_sum;
      }
    }
    // Not a number where a class weight is infinite, as an ignored pixel's even part would be.
    share = mul_add(whole, inverse_sum, SMOOTH ? 0 * common.class_sum : A(0));
  }
  // less: own at the label, else 0.
  template <bool SMOOTH> FCN_FAST_HOST_DEVICE A of(A x, A less, A class_weight) const {
    const A value = mul_add(share, exp_of(x - largest), -less);
    return SMOOTH ? mul_add(-even, class_weight, value) : value;
  }
  // An ignored pixel has no gradient, whatever its logits; where they are not finite, not by itself.
  FCN_FAST_HOST_DEVICE bool is_nothing() const { return whole == 0 && share != 0; }
};

// Writes the gradient of a thread's classes of V neighbouring pixels. IN_PLACE of the logits, which are then in shared
// memory: there the labels' are written once more afterwards, for less than looking for them among all.
template <bool SMOOTH, int K, bool IN_PLACE, int V, class T, bool ALL, int PACK, class S>
FCN_FAST_HOST_DEVICE void write_gradient(const Work<arithmetic_t<T>>& w, const T* x, T* grad, S stride, const Order<ALL, PACK>& order,
                                         const Gradient<arithmetic_t<T>> (&gradient)[V]) {
  using A = arithmetic_t<T>;
  const A* const class_weight = SMOOTH ? w.class_weight : nullptr;
  A own[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (IN_PLACE && gradient[v].label >= 0) own[v] = Storage<T>::read(x[gradient[v].label * stride + v]);
  in_groups<K>(order, [&](int32_t j, auto in_all, auto whole) {
    const Group<T, V, PACK, in_all.value> group(x, stride, w.classes, order, j, whole);
#pragma unroll
    for (int k = 0; k < in_all.value; k += PACK) {
      if (k >= group.count) break;
      const int32_t c = group.class_of(k);
      A weight[PACK];
#pragma unroll
      for (int i = 0; i < PACK; ++i) weight[i] = class_weight && c + i < w.classes ? class_weight[c + i] : A(1);
      A logit[V * PACK];
      unpack(group.at[k / PACK], logit);
      Pack<T, V * PACK> pack;
#pragma unroll
      for (int v = 0; v < V * PACK; ++v) {
        const A less = !IN_PLACE && c + v / V == gradient[v % V].label ? gradient[v % V].own : A(0);
        pack.at[v] = Storage<T>::write(gradient[v % V].template of<SMOOTH>(logit[v], less, weight[v / V]));
      }
      pack.template store<!IN_PLACE>(grad + c * stride);
    }
  });
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const Gradient<A>& g = gradient[v];
    if (IN_PLACE && g.label >= 0)
      grad[g.label * stride + v] = Storage<T>::write(g.template of<SMOOTH>(own[v], g.own, class_weight ? class_weight[g.label] : A(1)));
    if (g.is_nothing())
#pragma unroll 1
      for (int32_t j = 0; j < order.count; ++j) {
        const int32_t c = order.start + j * order.step;
        grad[(c < w.classes ? c : c - w.classes) * stride + v] = Storage<T>::write(A(0));
      }
  }
}

// Of what is saved for it.
template <bool SMOOTH, int K, int V, bool IN_PLACE = false, class T, class ORDER, class S>
FCN_FAST_HOST_DEVICE void backward(const Work<arithmetic_t<T>>& w, const T* x, T* grad, S stride, const ORDER& order, int64_t at,
                                   arithmetic_t<T> class_sum) {
  using A = arithmetic_t<T>;
  const Pixels<A, V> pixels(w, at);
  const auto normaliser = saved_normaliser<V>(w, at);
  const Common<A> common{scale_of(w, *w.total_weight), class_sum};
  Gradient<A> gradient[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    // The scale by itself first: half of a product of all may be too small a number.
    const A arrives = common.scale * (w.grad_output ? w.grad_output[w.per_pixel ? at + v : 0] : A(1));
    gradient[v].template prepare<SMOOTH>(w, pixels, v, arrives, normaliser.largest[v], exp_of(-normaliser.log_sum[v]), common);
  }
  write_gradient<SMOOTH, K, IN_PLACE>(w, x, grad, stride, order, gradient);
}

// Forward, and at once the gradient in the logits' place.
template <bool SMOOTH, int K, int V, class T, class ORDER, class S>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> forward_and_gradient(const Work<arithmetic_t<T>>& w, T* x, S stride, const ORDER& order,
                                                                const Pixels<arithmetic_t<T>, V>& pixels,
                                                                const Common<arithmetic_t<T>>& common) {
  using A = arithmetic_t<T>;
  Softmax<A, SMOOTH> softmax[V];
  add_classes<K>(w, x, stride, order, softmax);
  const auto sums = finish<false>(w, x, stride, pixels, softmax);
  Gradient<A> gradient[V];
#pragma unroll
  for (int v = 0; v < V; ++v) gradient[v].template prepare<SMOOTH>(w, pixels, v, common.scale, softmax[v].largest, inverse_of(softmax[v].sum), common);
  write_gradient<SMOOTH, K, true>(w, x, x, stride, order, gradient);
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
  const Pixels<arithmetic_t<T>, V> pixels(w, at);
  Softmax<arithmetic_t<T>, SMOOTH> softmax[V];
  add_classes<kAbreast<V>>(w, x, w.pixels, Order<>{0, 1, w.classes}, softmax);
  return finish(w, x, w.pixels, pixels, softmax);
}

template <class T, int V, bool SMOOTH>
FCN_FAST_HOST_DEVICE void backward_planes(const Work<arithmetic_t<T>>& w, const Planes<V>& p, arithmetic_t<T> class_sum) {
  if (p.first >= w.pixels) return;
  const int64_t at = p.image * w.classes * w.pixels + p.first;
  backward<SMOOTH, kAbreast<V>, V>(w, static_cast<const T*>(w.logits) + at, static_cast<T*>(w.grad) + at, w.pixels,
                                   Order<>{0, 1, w.classes}, p.image * w.pixels + p.first, class_sum);
}

// A tile of planes in shared memory: what is a warp's lies together, class by class, V pixels a lane.
template <class T, int V> struct Tile {
  static constexpr int32_t kLine = kWarp * V, kPack = 16 / sizeof(T);
  int32_t classes, thread, pixels;  // pixels: of a whole tile
  int32_t at, first;                // in 16 bytes at a time: the thread's pixels, and its first class of every kPack / V
  bool aligned;

  FCN_FAST_HOST_DEVICE Tile(const Work<arithmetic_t<T>>& w, int thread, int threads)
      : classes(w.classes), thread(thread), pixels(threads * V), at(thread % (pixels / kPack) * kPack),
        first(thread / (pixels / kPack)), aligned(w.pixels % kPack == 0 && are_aligned(w)) {}

  FCN_FAST_HOST_DEVICE int32_t line(int32_t pixel) const { return pixel / kLine * kLine * filled(classes) + pixel % kLine; }

  // A thread's part in copying count pixels from x on, whose classes are ``plane`` apart in memory: with copy(memory, shared,
  // true), of 16 bytes, where they are aligned, else with copy(memory, shared, false), of one number. Of every tile it is the
  // same part.
  template <class F> FCN_FAST_HOST_DEVICE void copy(T* x, int64_t plane, T* tile, int32_t count, const F& copy) const {
    if (V * sizeof(T) >= 4 && aligned) {  // a single pixel of two bytes is one for not being aligned
      if (at >= count) return;  // pixels are whole packs, as a plane is
      T *from = x + first * plane + at, *to = tile + line(at) + first * kLine;
#pragma unroll 4
      for (int32_t c = first; c < classes; c += kPack / V, from += kPack / V * plane, to += kPack / V * kLine) copy(from, to, std::true_type{});
      return;
    }
    for (int32_t i = thread; i < count; i += pixels / V) {
      T *from = x + i, *to = tile + line(i);
#pragma unroll 4
      for (int32_t c = 0; c < classes; ++c, from += plane, to += kLine) copy(from, to, std::false_type{});
    }
  }

  // The thread's own pixels, and what is put in place of the classes that there are not.
  FCN_FAST_HOST_DEVICE T* own(T* tile) const { return tile + line(thread * V); }
  FCN_FAST_HOST_DEVICE void fill(T* own) const {
    Pack<T, V> nothing;
#pragma unroll
    for (int v = 0; v < V; ++v) nothing.at[v] = Storage<T>::write(-arithmetic_t<T>(INFINITY));
#pragma unroll 1
    for (int32_t c = classes; c < filled(classes); ++c) nothing.store(own + c * kLine);
  }
};

// Rows: one pixel, whose classes lie side by side in shared memory.
struct Rows {
  int64_t first;   // pixel of the block
  int32_t pixels;  // of the block
  FCN_FAST_HOST_DEVICE Rows(int64_t block, int threads, int64_t all) : first(block * threads) {
    pixels = all - first < threads ? int32_t(all - first) : threads;
  }
};

// A thread's part in copying a block's rows, 16 bytes at a time where they are aligned; copy(from, to) does 16 bytes.
template <class T, class F>
FCN_FAST_HOST_DEVICE void copy_rows(const T* from, T* to, int32_t count, bool aligned, int thread, int threads, const F& copy) {
  constexpr int kPack = 16 / sizeof(T);
  const int32_t packed = aligned ? count / kPack * kPack : 0;
  for (int32_t i = thread * kPack; i < packed; i += threads * kPack) copy(from + i, to + i);
  for (int32_t i = packed + thread; i < count; i += threads) to[i] = from[i];
}

// The order of a pixel in an odd number of classes: rows then begin in as many banks as there are.
template <class A> FCN_FAST_HOST_DEVICE Order<> odd_order(const Work<A>& w) { return {0, 1, w.classes}; }

// In an even number: two classes are read at once, by kAtOnce threads at a time, which is what all banks hold. Of those, as many
// as ``meeting`` have rows that begin in the same banks, and each of them begins with another pair, the first or the second of
// a group. Which one is a matter of the pixel's place in its image, so that it has the same bits in every batch. In double
// precision the compiler writes the two one by one.
template <class T> FCN_FAST_HOST_DEVICE Order<false, 2> even_order(const Work<arithmetic_t<T>>& w, int64_t pixel) {
  constexpr int32_t kAtOnce = kBanks * 4 / (2 * sizeof(T));
  const int32_t pairs = w.classes / 2, even = pairs & -pairs, meeting = even < kAtOnce ? even : kAtOnce;
  if (meeting > 1 && w.image_pixels % kAtOnce != 0) pixel %= w.image_pixels;  // else the place is the same without dividing
  const int32_t pair = int32_t(pixel % kAtOnce) * meeting / kAtOnce;
  return {pair / 2 * kTogether, 1, w.classes, pair % 2 * 2};
}

// f(the pixel's order)
template <class T, class F> FCN_FAST_HOST_DEVICE auto in_order(const Work<arithmetic_t<T>>& w, int64_t pixel, const F& f) {
  if (w.classes % 2 != 0) return f(odd_order(w));
  return f(even_order<T>(w, pixel));
}

template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE Sums<arithmetic_t<T>> forward_row(const Work<arithmetic_t<T>>& w, const T* rows, const Rows& block, int thread) {
  if (thread >= block.pixels) return {};
  const T* x = rows + thread * w.classes;
  const int64_t pixel = block.first + thread;
  const Pixels<arithmetic_t<T>, 1> pixels(w, pixel);
  Softmax<arithmetic_t<T>, SMOOTH> softmax[1];
  in_order<T>(w, pixel, [&](const auto& order) { add_classes<kTogether>(w, x, 1, order, softmax); });
  return finish(w, x, 1, pixels, softmax);
}

// In place.
template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE void backward_row(const Work<arithmetic_t<T>>& w, T* rows, const Rows& block, int thread, arithmetic_t<T> class_sum) {
  if (thread >= block.pixels) return;
  T* x = rows + thread * w.classes;
  const int64_t pixel = block.first + thread;
  in_order<T>(w, pixel, [&](const auto& order) { backward<SMOOTH, kTogether, 1, true>(w, x, x, 1, order, pixel, class_sum); });
}

// Lanes: one pixel's classes, side by side, shared out among the lanes of a warp.
FCN_FAST_HOST_DEVICE inline Order<> lane_order(int32_t classes, int lane) {
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
  const Pixels<arithmetic_t<T>, 1> pixels(w, pixel);
  const Softmax<arithmetic_t<T>, SMOOTH> softmax[1] = {of_all};
  return finish(w, static_cast<const T*>(w.logits) + pixel * w.classes, 1, pixels, softmax);
}

template <class T, bool SMOOTH>
FCN_FAST_HOST_DEVICE void backward_lane(const Work<arithmetic_t<T>>& w, int64_t pixel, int lane, arithmetic_t<T> class_sum) {
  if (pixel >= w.pixels) return;
  const int64_t at = pixel * w.classes;
  backward<SMOOTH, kAbreast<1>, 1>(w, static_cast<const T*>(w.logits) + at, static_cast<T*>(w.grad) + at, 1, lane_order(w.classes, lane),
                                   pixel, class_sum);
}

}  // namespace fcn_fast::cuda
