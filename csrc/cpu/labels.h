// What the targets say of a run of pixels: which logit each looks up, and how much it counts. Shared by both losses.
#pragma once

#include "cpu/simd.h"

namespace fcn_fast::FCN_FAST_ISA {

inline constexpr int32_t kIgnored = -1, kBad = -2;

// How the loss of a pixel is put together, all classes alike:
// loss = pixel * (hard * (lse - x[label]) + smooth * (class_sum * lse - sum of class_weight * x)).
template <class A> class LossRule {
 public:
  LossRule(const Targets& targets, int64_t classes)
      : targets_(targets), classes_(classes), class_weight_(classes) {
    class_sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      class_weight_[c] = targets.class_weight ? static_cast<const A*>(targets.class_weight)[c] : A(1);
      class_sum += class_weight_[c];
    }
    hard = A(1 - targets.label_smoothing);
    smooth = A(targets.label_smoothing / double(classes));
  }

  const A* class_weight() const { return class_weight_; }
  // Label i as a class, kIgnored or kBad.
  int32_t label(int64_t i) const {
    const int64_t label = label_at(targets_.labels, targets_.type, i);
    if (label == targets_.ignore_index) return kIgnored;
    return label < 0 || label >= classes_ ? kBad : int32_t(label);
  }
  A pixel_weight(int64_t i) const {
    return targets_.pixel_weight ? static_cast<const A*>(targets_.pixel_weight)[i] : A(1);
  }

  A hard, smooth, class_sum;

 private:
  const Targets& targets_;
  int64_t classes_;
  Buffer<A> class_weight_;
};

// The sums of one tile. Tiles are the same whatever the thread count, and are added in order.
struct Partial {
  double loss = 0, weight = 0;
  int64_t bad = INT64_MAX;
};

// Everything the tiles found.
inline Partial total_of(const Partial* partials, int64_t count) {
  Partial total;
  for (int64_t i = 0; i < count; ++i) {
    total.loss += partials[i].loss;
    total.weight += partials[i].weight;
    total.bad = smaller(total.bad, partials[i].bad);
  }
  return total;
}

// What the sum over pixels is multiplied by; a mean over nothing is 0.
inline double scale_of(Reduction reduction, double total_weight, int64_t n, int64_t pixels) {
  switch (reduction) {
    case kMean: return total_weight == 0 ? 0 : 1 / total_weight;
    case kFull: return 1 / double(larger(n * pixels, int64_t(1)));
    case kBatch: return 1 / double(larger(n, int64_t(1)));
    default: return 1;
  }
}

// The reduced loss. Pixels without weight make a mean of 0 even where their loss is infinite.
inline double reduced(const Partial& total, double scale) { return scale == 0 ? 0 : total.loss * scale; }

}  // namespace fcn_fast::FCN_FAST_ISA
