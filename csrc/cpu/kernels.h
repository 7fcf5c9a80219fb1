// What bindings.cpp and the CPU kernels say to each other. No torch types, no containers: every file of csrc/cpu is
// compiled once per instruction set, and a library template instantiated there could be linked into all of them.
#pragma once

#include <cstdint>

#include "grid.h"

namespace fcn_fast {

enum class Type { f32, f64, bf16, f16, u8, i16, i32, i64 };

// (n, c, h, w), contiguous or channels_last.
struct Map {
  void* data;
  Type type;
  int64_t n, c, h, w;
  bool channels_last;
};

enum Reduction { kNone, kMean, kSum, kFull, kBatch };

// The first label out of range.
struct BadLabel {
  int64_t position = INT64_MAX;  // flat; INT64_MAX if there is none
};

// The targets of n x pixels labels and how each counts. Weights are in the dtype of the arithmetic.
struct Targets {
  const void* labels;
  Type type;
  int64_t ignore_index;
  const void* class_weight;  // null: 1
  const void* pixel_weight;  // null: 1
  Reduction reduction;
  double label_smoothing;
};

struct Kernels {
  void (*bilinear_upsample)(const Map& input, const Grid&, const Map& output);
  void (*bilinear_upsample_backward)(const Map& grad_output, const Grid&, const Map& grad_input);
  // The skip is read from (top, left).
  void (*skip_fuse)(const Map& coarse, const Map& skip, int64_t top, int64_t left, const Grid&, const Map& output);
  // loss: one number, or one a pixel; saved: null, or (2, n, pixels), see fcn_fast/reference.py; total_weight: one number.
  BadLabel (*softmax_loss)(const Map& logits, const Targets&, void* loss, void* saved, void* total_weight);
  void (*softmax_loss_backward)(const void* grad_output, const Map& logits, const Targets&, const void* saved,
                                const void* total_weight, const Map& grad);
  // saved: null, or the gradient of the loss (a map in the dtype of the arithmetic, laid out as logits).
  BadLabel (*upsample_softmax_loss)(const Map& logits, const Targets&, const Grid&, void* loss, void* saved);
  void (*upsample_argmax)(const Map& logits, const Grid&, void* labels, Type type);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

// PyTorch's thread pool: body(context, begin, end) over parts of [0, n). Defined in bindings.cpp.
void parallel_for(int64_t n, void* context, void (*body)(void* context, int64_t begin, int64_t end));

}  // namespace fcn_fast
