// A tile is a run of pixels of one image, all classes. Forward reads it once, a block of classes at a time: each pixel's
// largest logit so far and the sum of exponentials below it stay in the cache. Backward needs one pass: with largest and
// log-sum saved every gradient stands alone. Both are bound by memory: one read forward; one read and one write backward.

#include "cpu/labels.h"
#include "cpu/ops.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

// Classes whose logits are in registers together: half of the registers.
template <class A> inline constexpr int kBlock = FCN_FAST_VECTOR_BYTES == 64 ? 8 : 4;
template <int n> struct Count { FCN_FAST_INLINE constexpr operator int() const { return n; } };

// f(c, count) over [c, classes) in blocks of n classes, and what is left in halves of them.
template <int n, class F> FCN_FAST_INLINE void in_blocks(int64_t c, int64_t classes, const F& f) {
  for (; c + n <= classes; c += n) f(c, Count<n>{});
  if constexpr (n > 1) in_blocks<n / 2>(c, classes, f);
}

// The tiles of n images.
struct Tiles {
  int64_t pixels, tile, per_image, count;
  Tiles(const Map& logits, int64_t tile) : pixels(logits.h * logits.w), tile(tile) {
    per_image = ceil_div(pixels, tile);
    count = logits.n * per_image;
  }
};

// f(p, c, x, count) with the logits x of count classes from c on, of the vector of pixels from p on, all of a tile; c
// ascends. Lanes past the tile's end are zero.
template <class T, class F>
FCN_FAST_INLINE void for_each_block(const T* tile, const Map& logits, int64_t size, const F& f) {
  using A = arithmetic_t<T>;
  const int64_t pixels = logits.h * logits.w, classes = logits.c;
  if (logits.channels_last) {
    // Rows of n classes of n pixels, turned around; the next n pixels are on their way meanwhile.
    constexpr int n = kLanes<A>;
    for (int64_t p = 0; p < size; p += n) {
      const T* pixel = tile + p * classes;
      const int64_t rows = smaller(size - p, int64_t(n));
      for (int64_t first = 0; first < classes; first += n) {
        const int64_t columns = smaller(classes - first, int64_t(n));
        Vec<A> x[n] = {};
        if (rows == n && columns == n) {
          for (int i = 0; i < n; ++i) x[i] = load(pixel + i * classes + first);
        } else {
          for (int64_t i = 0; i < rows; ++i) x[i] = columns == n ? load(pixel + i * classes + first) : load(pixel + i * classes + first, columns);
        }
        for (int64_t i = 0; i < n * n; i += 64 / sizeof(T)) __builtin_prefetch(pixel + n * (classes + first) + i);
        transpose<A>(x);
        in_blocks<kBlock<A>>(0, columns, [&](int64_t c, auto count) { f(p, first + c, x + c, count); });
      }
    }
    return;
  }
  in_blocks<kBlock<A>>(0, classes, [&](int64_t c, auto count) {
    // The planes lie in other pages, where the hardware starts to look ahead anew, if at all: do it for it, a block ahead.
    const T *from = tile + c * pixels, *ahead[count];
    for (int k = 0; k < count; ++k) {
      const int64_t plane = c + kBlock<A> + k;
      ahead[k] = tile + (plane < classes ? plane * pixels : plane % classes * pixels + size);
    }
    Vec<A> x[count];
    int64_t p = 0;
    for (; p + kLanes<A> <= size; p += kLanes<A>) {
      for (int k = 0; k < count; ++k) {
        x[k] = load(from + k * pixels + p);
        __builtin_prefetch(ahead[k] + p);
      }
      f(p, c, x, count);
    }
    if (p == size) return;
    for (int k = 0; k < count; ++k) x[k] = load(from + k * pixels + p, size - p);
    f(p, c, x, count);
  });
}

// Each pixel's logit of its label, of a tile; of a pixel without one any logit.
template <class T>
void pick(const T* tile, const Map& logits, const int32_t* label, int64_t size, arithmetic_t<T>* __restrict out) {
  const int64_t of_class = logits.channels_last ? 1 : logits.h * logits.w, of_pixel = logits.channels_last ? logits.c : 1;
  for (int64_t p = 0; p < size; ++p) out[p] = to_arithmetic(tile[larger(label[p], 0) * of_class + p * of_pixel]);
}

template <class T> BadLabel forward(const Map& logits, const Targets& targets, void* loss, void* saved, void* total_weight) {
  using A = arithmetic_t<T>;
  const LossRule<A> rule(targets, logits.c);
  const Tiles tiles(logits, 1024);
  const Buffer<Partial> partials(tiles.count);
  parallel(tiles.count, [&](int64_t begin, int64_t end) {
    const int64_t stride = round_up(smaller(tiles.tile, tiles.pixels), kLanes<A>);
    const Buffer<A> largest(stride), log_sum(stride), smoothed(stride), own(stride), even(stride), losses(stride);
    const Buffer<int32_t> label(stride);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiles.per_image, first = unit % tiles.per_image * tiles.tile;
      const int64_t size = smaller(tiles.tile, tiles.pixels - first), at = n * tiles.pixels + first;
      const T* tile = static_cast<const T*>(logits.data) + n * logits.c * tiles.pixels + first * (logits.channels_last ? logits.c : 1);
      for_each_block(tile, logits, size, [&](int64_t p, int64_t c, const Vec<A>* x, auto count) {
        const Vec<A> before = c ? load(largest + p) : splat(A(-INFINITY));
        Vec<A> now = before;
        for (int k = 0; k < count; ++k) now = vmax(x[k], now);
        const Vec<A> shift = now == A(-INFINITY) ? Vec<A>{} : now;  // so that classes masked with -inf count nothing
        Vec<A> sum = c ? load(log_sum + p) * exp(before - shift) : Vec<A>{};
        for (int k = 0; k < count; ++k) sum += exp(x[k] - shift);
        store(largest + p, now);
        store(log_sum + p, sum);
      });
      for (int64_t p = 0; p < size; p += kLanes<A>) store(log_sum + p, log(load(log_sum + p)));
      if (rule.smooth != 0)
        for_each_block(tile, logits, size, [&](int64_t p, int64_t c, const Vec<A>* x, auto count) {
          Vec<A> sum = c ? load(smoothed + p) : Vec<A>{};
          for (int k = 0; k < count; ++k) sum += (x[k] - load(largest + p)) * rule.class_weight()[c + k];
          store(smoothed + p, sum);
        });
      rule.read(at, size, label, own, even);
      Partial partial = rule.count(at, size, label);
      pick(tile, logits, label, size, static_cast<A*>(losses));
      Vec<A> total{};
      for (int64_t p = 0; p < size; p += kLanes<A>) {
        const Vec<A> weight = load<A>(own + p);
        const Vec<A> less = load<A>(largest + p) - load<A>(losses + p) + load<A>(log_sum + p);
        Vec<A> value = weight == 0 ? Vec<A>{} : weight * less;
        if (rule.smooth != 0) {
          const Vec<A> even_weight = load<A>(even + p);
          value += even_weight == 0 ? Vec<A>{} : even_weight * (load<A>(log_sum + p) * rule.class_sum - load<A>(smoothed + p));
        }
        store(losses + p, value);
        if (p + kLanes<A> <= size) total += value;
        else for (int64_t k = 0; k < size - p; ++k) partial.loss += value[k];
        if (p / kLanes<A> % 16 == 15 || p + kLanes<A> >= size) {  // few numbers a sum in float, or its rounding shows
          partial.loss += sum_of<A>(total);
          total = Vec<A>{};
        }
      }
      if (targets.reduction == kNone) std::memcpy(static_cast<A*>(loss) + at, losses, size * sizeof(A));
      partials[unit] = partial;
      if (saved) {
        A* out = static_cast<A*>(saved) + at;
        std::memcpy(out, largest, size * sizeof(A));
        std::memcpy(out + logits.n * tiles.pixels, log_sum, size * sizeof(A));
      }
    }
  });
  const Partial total = total_of(partials, tiles.count);
  *static_cast<A*>(total_weight) = A(total.weight);
  if (targets.reduction != kNone)
    *static_cast<A*>(loss) = A(reduced(total, scale_of(targets.reduction, total.weight, logits.n, tiles.pixels)));
  return {total.bad};
}

template <class T>
void backward(const arithmetic_t<T>* grad_output, const Map& logits, const Targets& targets, const arithmetic_t<T>* saved,
              double total_weight, const Map& output) {
  using A = arithmetic_t<T>;
  const LossRule<A> rule(targets, logits.c);
  const Tiles tiles(logits, 1024);
  const double scale = scale_of(targets.reduction, total_weight, logits.n, tiles.pixels);
  const bool none = targets.reduction == kNone;
  const A grad = none ? A(1) : A(scale) * grad_output[0];
  const Buffer<A> class_index(logits.c);
  for (int64_t c = 0; c < logits.c; ++c) class_index[c] = A(c);
  const A* const classes = class_index;
  const bool large = logits.n * logits.c * tiles.pixels * int64_t(sizeof(T)) > (8 << 20);
  parallel(tiles.count, [&](int64_t begin, int64_t end) {
    const int64_t stride = round_up(smaller(tiles.tile, tiles.pixels), kLanes<A>);
    // A pixel's gradient is scaled * exp(x - largest) - even * class_weight, and less own at its label.
    const Buffer<A> whole(stride), scaled(stride), even(stride), own(stride), label(stride);
    const Buffer<int32_t> labels(stride);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiles.per_image, first = unit % tiles.per_image * tiles.tile;
      const int64_t size = smaller(tiles.tile, tiles.pixels - first), at = n * tiles.pixels + first;
      const T* image = static_cast<const T*>(logits.data) + n * logits.c * tiles.pixels;
      T* out = static_cast<T*>(output.data) + n * logits.c * tiles.pixels;
      const A *largest = saved + at, *log_sum = largest + logits.n * tiles.pixels;
      rule.read(at, size, labels, own, even);
      for (int64_t p = 0; p < size; ++p) {
        const A arrives = none ? grad_output[at + p] : grad;
        own[p] = own[p] == 0 ? own[p] : own[p] * arrives;
        if (rule.smooth != 0) even[p] = even[p] == 0 ? even[p] : even[p] * arrives;
        whole[p] = rule.smooth != 0 ? own[p] + even[p] * rule.class_sum : own[p];
        label[p] = A(labels[p]);  // classes are counted in the same type, so that one comparison finds the label
      }
      transform(static_cast<A*>(scaled), size, [&](const auto& at) { return at(+whole) == 0 ? Vec<A>{} : at(+whole) * exp(-at(log_sum)); });
      const auto gradient = [](Vec<A> x, Vec<A> largest, Vec<A> scaled, Vec<A> own, Ints<A> is_label) {
        const Vec<A> value = mul_add(scaled, exp(x - largest), is_label ? -own : Vec<A>{});
        return scaled == 0 ? Vec<A>{} : value;  // an ignored pixel has none, whatever its logits
      };
      const auto smoothed = [&](Vec<A> value, Vec<A> even, Vec<A> weight) { return rule.smooth == 0 ? value : value - even * weight; };
      if (logits.channels_last) {
        for (int64_t p = 0; p < size; ++p)
          transform(out + (first + p) * logits.c, logits.c, [&](const auto& at) {
            const Vec<A> value = gradient(at(image + (first + p) * logits.c), splat(largest[p]), splat(scaled[p]),
                                          splat(own[p]), at(classes) == splat(label[p]));
            return smoothed(value, splat(even[p]), at(rule.class_weight()));
          });
      } else {
        for (int64_t c = 0; c < logits.c; ++c) {
          const T *from = image + c * tiles.pixels + first, *next = c + 1 < logits.c ? from + tiles.pixels : image + first + size;
          const A index = classes[c], weight = rule.class_weight()[c];
          const auto value_of = [&](const auto& at) {
            at.prefetch(next);
            const Vec<A> value = gradient(at(from), at(largest), at(+scaled), at(+own), at(+label) == splat(index));
            return smoothed(value, at(+even), splat(weight));
          };
          if (large) transform_streaming(out + c * tiles.pixels + first, size, value_of);
          else transform(out + c * tiles.pixels + first, size, value_of);
        }
      }
    }
  });
}

}  // namespace

BadLabel softmax_loss(const Map& logits, const Targets& targets, void* loss, void* saved, void* total_weight) {
  BadLabel bad;
  dispatch(logits.type, [&](auto t) { bad = forward<decltype(t)>(logits, targets, loss, saved, total_weight); });
  return bad;
}

void softmax_loss_backward(const void* grad_output, const Map& logits, const Targets& targets, const void* saved,
                           const void* total_weight, const Map& grad) {
  dispatch(logits.type, [&](auto t) {
    using T = decltype(t);
    using A = arithmetic_t<T>;
    backward<T>(static_cast<const A*>(grad_output), logits, targets, static_cast<const A*>(saved),
                double(*static_cast<const A*>(total_weight)), grad);
  });
}

}  // namespace fcn_fast::FCN_FAST_ISA
