// The kernels of one instruction set, one a file; kernels.cpp puts them into the table.
#pragma once

#include "cpu/kernels.h"

namespace fcn_fast::FCN_FAST_ISA {

void bilinear_upsample(const Map& input, const Grid& grid, const Map& output);
void bilinear_upsample_backward(const Map& grad_output, const Grid& grid, const Map& grad_input);
void skip_fuse(const Map& coarse, const Map& skip, int64_t top, int64_t left, const Grid& grid, const Map& output);
BadLabel softmax_loss(const Map& logits, const Targets& targets, void* loss, void* saved, void* total_weight);
void softmax_loss_backward(const void* grad_output, const Map& logits, const Targets& targets, const void* saved,
                           const void* total_weight, const Map& grad);
BadLabel upsample_softmax_loss(const Map& logits, const Targets& targets, const Grid& grid, void* loss, void* saved);
void upsample_argmax(const Map& logits, const Grid& grid, void* labels, Type type);

}  // namespace fcn_fast::FCN_FAST_ISA
