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
  Tiles(const Map& logits, int64_t element) : pixels(logits.h * logits.w) {
    tile = smaller(larger((128 << 10) / (logits.c * element) / 64 * 64, int64_t(64)), int64_t(1024));
    per_image = ceil_div(pixels, tile);
    count = logits.n * per_image;
  }
};

// Tile [first, first + size) of an image as rows of one class each, and each pixel's largest logit.
template <class T, class A>
void load_tile(const T* image, const Map& logits, int64_t pixels, int64_t first, int64_t size, int64_t stride, A* rows, A* largest) {
  for (int64_t c = 0; c < logits.c; ++c) {
    A* row = rows + c * stride;
    if (logits.channels_last) {
      for (int64_t p = 0; p < size; ++p) row[p] = to_arithmetic(image[(first + p) * logits.c + c]);
    } else {
      // The next class lies in other pages, where the hardware starts to look ahead anew: do it for it.
      const T* from = image + c * pixels + first;
      for (int64_t p = 0; c + 1 < logits.c && p < size; p += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + pixels + p);
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
  const Tiles tiles(logits, sizeof(A));
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
  const Tiles tiles(logits, sizeof(A));
  const double scale = scale_of(targets.reduction, total_weight, logits.n, tiles.pixels);
  const bool none = targets.reduction == kNone;
  const A grad = none ? A(1) : A(scale) * grad_output[0];
  parallel(tiles.count, [&](int64_t begin, int64_t end) {
    const int64_t stride = round_up(smaller(tiles.tile, tiles.pixels), kLanes<A>);
    // A pixel's gradient is whole * softmax - even * class_weight, and less own at its label.
    const Buffer<A> whole(stride), even(stride), own(stride), at_label(stride);
    const Buffer<int32_t> labels(stride);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiles.per_image, first = unit % tiles.per_image * tiles.tile;
      const int64_t size = smaller(tiles.tile, tiles.pixels - first), at = n * tiles.pixels + first;
      const T* image = static_cast<const T*>(logits.data) + n * logits.c * tiles.pixels;
      T* out = static_cast<T*>(output.data) + n * logits.c * tiles.pixels;
      const A *largest = saved + at, *log_sum = largest + logits.n * tiles.pixels;
      const auto element = [&](int64_t c, int64_t p) {
        return logits.channels_last ? (first + p) * logits.c + c : c * tiles.pixels + first + p;
      };
      rule.read(at, size, labels, own, even);
      for (int64_t p = 0; p < size; ++p) {
        const A arrives = none ? grad_output[at + p] : grad;
        own[p] = own[p] == 0 ? own[p] : own[p] * arrives;
        if (rule.smooth != 0) even[p] = even[p] == 0 ? even[p] : even[p] * arrives;
        whole[p] = rule.smooth != 0 ? own[p] + even[p] * rule.class_sum : own[p];
        at_label[p] = labels[p] < 0 ? A(0) : to_arithmetic(image[element(labels[p], p)]);
      }
      const auto gradient = [](Vec<A> x, Vec<A> largest, Vec<A> log_sum, Vec<A> whole) {
        const Vec<A> value = whole * exp(x - largest - log_sum);
        return whole == 0 ? Vec<A>{} : value;  // an ignored pixel has none, whatever its logits
      };
      if (logits.channels_last) {
        for (int64_t p = 0; p < size; ++p)
          transform(out + (first + p) * logits.c, logits.c, [&](const auto& load) {
            const Vec<A> value = gradient(load(image + (first + p) * logits.c), splat(largest[p]), splat(log_sum[p]), splat(A(whole[p])));
            return rule.smooth == 0 ? value : value - load(rule.class_weight()) * A(even[p]);
          });
      } else {
        for (int64_t c = 0; c < logits.c; ++c)
          transform(out + c * tiles.pixels + first, size, [&](const auto& load) {
            const Vec<A> value = gradient(load(image + c * tiles.pixels + first), load(largest), load(log_sum), load(static_cast<const A*>(whole)));
            return rule.smooth == 0 ? value : value - load(static_cast<const A*>(even)) * rule.class_weight()[c];
          });
      }
      // The label's own element again, in full precision up to its one store: own * (softmax - 1), which keeps its
      // digits where the softmax is almost 1.
      for (int64_t p = 0; p < size; p += kLanes<A>)
        store(at_label + p, exp(load<A>(at_label + p) - load(largest + p) - load(log_sum + p)));
      for (int64_t p = 0; p < size; ++p) {
        if (labels[p] < 0) continue;
        A value = own[p] * (at_label[p] - 1);
        if (rule.smooth != 0) value += even[p] * (rule.class_sum * at_label[p] - rule.class_weight()[labels[p]]);
        out[element(labels[p], p)] = to_storage<T>(whole[p] == 0 ? A(0) : value);
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
