// A tile is a run of pixels of one image, all classes. Forward copies it to a scratch that stays in cache (planes of a
// power-of-two size would evict each other there), finds each pixel's largest logit on the way, then sums the
// exponentials. Backward needs one pass: with largest and log-sum saved every gradient stands alone. Both are bound by
// memory: one read forward; one read and one write backward.

#include "cpu/labels.h"
#include "cpu/ops.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

constexpr int kAbreast = 4;  // vectors of pixels whose exponentials are in flight together

// The tiles of n images.
struct Tiles {
  int64_t pixels, tile, per_image, count;
  Tiles(const Map& logits, int64_t tile) : pixels(logits.h * logits.w), tile(tile) {
    per_image = ceil_div(pixels, tile);
    count = logits.n * per_image;
  }
};

// The next class lies in other pages, where the hardware starts to look ahead anew: do it for it.
template <class T> FCN_FAST_INLINE void prefetch(const T* row, int64_t size) {
  for (int64_t p = 0; p < size; p += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + p);
}

// Tile [first, first + size) of an image as rows of one class each, and each pixel's largest logit.
template <class T, class A>
void load_tile(const T* image, const Map& logits, int64_t pixels, int64_t first, int64_t size, int64_t stride, A* rows, A* largest) {
  for (int64_t c = 0; c < logits.c; ++c) {
    A* row = rows + c * stride;
    if (logits.channels_last) {
      for (int64_t p = 0; p < size; ++p) row[p] = to_arithmetic(image[(first + p) * logits.c + c]);
    } else {
      const T* from = image + c * pixels + first;
      prefetch(from + pixels, c + 1 < logits.c ? size : 0);
      transform(row, size, [&](const auto& at) { return at(from); });
    }
    for (int64_t p = 0; p < size; p += kLanes<A>) {
      const Vec<A> x = load(row + p);
      store(largest + p, c == 0 ? x : vmax(x, load(largest + p)));
    }
  }
}

template <class T> BadLabel forward(const Map& logits, const Targets& targets, void* loss, void* saved, void* total_weight) {
  using A = arithmetic_t<T>;
  const LossRule<A> rule(targets, logits.c);
  // What fits into 128 KB with all its classes.
  const int64_t fits = (128 << 10) / (logits.c * int64_t(sizeof(A))) / 64 * 64;
  const Tiles tiles(logits, smaller(larger(fits, int64_t(64)), int64_t(1024)));
  const Buffer<Partial> partials(tiles.count);
  parallel(tiles.count, [&](int64_t begin, int64_t end) {
    const int64_t stride = round_up(smaller(tiles.tile, tiles.pixels), kAbreast * kLanes<A>);
    const Buffer<A> rows(logits.c * stride), largest(stride), log_sum(stride), smoothed(stride);
    const Buffer<A> own(stride), even(stride), log_likelihood(stride), losses(stride);
    const Buffer<int32_t> label(stride);
    // The lanes past a tile's end are computed and left; let them be numbers.
    std::memset(rows, 0, logits.c * stride * sizeof(A));
    std::memset(largest, 0, stride * sizeof(A));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiles.per_image, first = unit % tiles.per_image * tiles.tile;
      const int64_t size = smaller(tiles.tile, tiles.pixels - first), at = n * tiles.pixels + first;
      const T* image = static_cast<const T*>(logits.data) + n * logits.c * tiles.pixels;
      load_tile(image, logits, tiles.pixels, first, size, stride, static_cast<A*>(rows), static_cast<A*>(largest));
      for (int64_t p = 0; p < size; p += kAbreast * kLanes<A>) {
        Vec<A> shift[kAbreast], sum[kAbreast] = {};
        for (int k = 0; k < kAbreast; ++k) shift[k] = load(largest + p + k * kLanes<A>);
        for (int64_t c = 0; c < logits.c; ++c)
          for (int k = 0; k < kAbreast; ++k) sum[k] += exp(load(rows + c * stride + p + k * kLanes<A>) - shift[k]);
        for (int k = 0; k < kAbreast; ++k) store(log_sum + p + k * kLanes<A>, log(sum[k]));
      }
      for (int64_t p = 0; p < size && rule.smooth != 0; p += kLanes<A>) {
        Vec<A> sum{};
        for (int64_t c = 0; c < logits.c; ++c) sum += (load(rows + c * stride + p) - load(largest + p)) * rule.class_weight()[c];
        store(smoothed + p, sum);
      }
      rule.read(at, size, label, own, even);
      Partial partial = rule.count(at, size, label);
      for (int64_t p = 0; p < size; ++p)
        log_likelihood[p] = label[p] < 0 ? A(0) : rows[label[p] * stride + p] - largest[p] - log_sum[p];
      Vec<A> total{};
      for (int64_t p = 0; p < size; p += kLanes<A>) {
        const Vec<A> weight = load<A>(own + p);
        Vec<A> value = weight == 0 ? Vec<A>{} : -weight * load<A>(log_likelihood + p);
        if (rule.smooth != 0) {
          const Vec<A> even_weight = load<A>(even + p);
          value += even_weight == 0 ? Vec<A>{} : even_weight * (load<A>(log_sum + p) * rule.class_sum - load<A>(smoothed + p));
        }
        store(losses + p, value);
        if (p + kLanes<A> <= size) total += value;
        else for (int64_t k = 0; k < size - p; ++k) partial.loss += value[k];
      }
      partial.loss += sum_of<A>(total);
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
    // A pixel's gradient is whole * softmax - even * class_weight, and less own at its label.
    const Buffer<A> whole(stride), even(stride), own(stride), label(stride);
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
      const auto gradient = [](Vec<A> x, Vec<A> largest, Vec<A> log_sum, Vec<A> whole, Vec<A> own, Ints<A> is_label) {
        const Vec<A> less = is_label ? -own : Vec<A>{};
        const Vec<A> value = mul_add(whole, exp(x - largest - log_sum), less);
        return whole == 0 ? Vec<A>{} : value;  // an ignored pixel has none, whatever its logits
      };
      if (logits.channels_last) {
        for (int64_t p = 0; p < size; ++p)
          transform(out + (first + p) * logits.c, logits.c, [&](const auto& load) {
            const Vec<A> value = gradient(load(image + (first + p) * logits.c), splat(largest[p]), splat(log_sum[p]),
                                          splat(whole[p]), splat(own[p]), load(classes) == splat(label[p]));
            return rule.smooth == 0 ? value : value - load(rule.class_weight()) * even[p];
          });
      } else {
        for (int64_t c = 0; c < logits.c; ++c) {
          const T* from = image + c * tiles.pixels + first;
          prefetch(from + tiles.pixels, c + 1 < logits.c ? size : 0);
          const auto value_of = [&](const auto& load) {
            const Vec<A> value = gradient(load(from), load(largest), load(log_sum), load(+whole), load(+own),
                                          load(+label) == splat(classes[c]));
            return rule.smooth == 0 ? value : value - load(+even) * rule.class_weight()[c];
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
