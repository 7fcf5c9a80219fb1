// What the targets say of a run of pixels: which logit each looks up, and how much it counts. Shared by both losses.
#pragma once

#include "cpu/simd.h"

namespace fcn_fast::FCN_FAST_ISA {

inline constexpr int32_t kIgnored = -1, kBad = -2;

// The sums of one tile. Tiles are the same whatever the thread count, and are added in order.
struct Partial {
  double loss = 0, weight = 0;
  int64_t bad = INT64_MAX;
};

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

  // The classes of a run of pixels, kIgnored or kBad.
  void labels(int64_t first, int64_t count, int32_t* label) const {
    switch (targets_.type) {
      case Type::u8: return read_labels(static_cast<const uint8_t*>(targets_.labels) + first, count, label);
      case Type::i16: return read_labels(static_cast<const int16_t*>(targets_.labels) + first, count, label);
      case Type::i32: return read_labels(static_cast<const int32_t*>(targets_.labels) + first, count, label);
      default: return read_labels(static_cast<const int64_t*>(targets_.labels) + first, count, label);
    }
  }

  // What a run of pixels needs. label: its class, kIgnored or kBad; own: what its class's -log softmax counts;
  // NaN for a bad label, 0 for an ignored one; even: what every class's counts, smoothed.
  void read(int64_t first, int64_t count, int32_t* label, A* own, A* even) const {
    labels(first, count, label);
    const A hard = this->hard, smooth = this->smooth;  // own could be an alias of the members, and no vector of it made
    for (int64_t i = 0; i < count; ++i) own[i] = label[i] >= 0 ? hard : (label[i] == kBad ? A(NAN) : A(0));
    if (targets_.class_weight)
      for (int64_t i = 0; i < count; ++i) own[i] *= class_weight_[larger(label[i], 0)];
    if (smooth != 0)
      for (int64_t i = 0; i < count; ++i) even[i] = label[i] >= 0 ? smooth : A(0);
    if (!targets_.pixel_weight) return;
    const A* weight = static_cast<const A*>(targets_.pixel_weight) + first;
    for (int64_t i = 0; i < count; ++i) own[i] = own[i] == 0 ? own[i] : own[i] * weight[i];
    if (smooth != 0)
      for (int64_t i = 0; i < count; ++i) even[i] = even[i] == 0 ? even[i] : even[i] * weight[i];
  }

  // The total weight of these pixels, and the first label out of range.
  Partial count(int64_t first, int64_t count, const int32_t* label) const {
    Partial partial;
    int64_t valid = 0, bad = 0;
    for (int64_t i = 0; i < count; ++i) {
      valid += label[i] >= 0;
      bad += label[i] == kBad;
    }
    partial.weight = double(valid);
    if (targets_.class_weight || targets_.pixel_weight) {
      const A* weight = static_cast<const A*>(targets_.pixel_weight);
      partial.weight = 0;
      for (int64_t i = 0; i < count; ++i)
        if (label[i] >= 0) partial.weight += double(class_weight_[label[i]]) * (weight ? weight[first + i] : A(1));
    }
    for (int64_t i = 0; bad && i < count; ++i)
      if (label[i] == kBad) partial.bad = smaller(partial.bad, first + i);
    return partial;
  }

  A hard, smooth, class_sum;

 private:
  template <class L> void read_labels(const L* labels, int64_t count, int32_t* label) const {
    const int64_t ignored = targets_.ignore_index, classes = classes_;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t value = labels[i];
      label[i] = value == ignored ? kIgnored : (uint64_t(value) < uint64_t(classes) ? int32_t(value) : kBad);
    }
  }

  const Targets& targets_;
  int64_t classes_;
  Buffer<A> class_weight_;
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
