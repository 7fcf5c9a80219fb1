// What bindings.cpp and the CUDA softmax loss say to each other: neither torch's headers nor CUDA's. Pointers are to
// memory of the current device, and the stream is a cudaStream_t.
#pragma once

#include "cpu/kernels.h"

namespace fcn_fast::cuda {

// Bytes of scratch that softmax_loss needs.
int64_t softmax_loss_scratch(const Map& logits);

// As Kernels::softmax_loss. first_bad: on the device, the flat position of the first label out of range, or INT64_MAX.
// Returns what CUDA reports, null if nothing.
const char* softmax_loss(const Map& logits, const Targets&, void* loss, void* saved, void* total_weight, int64_t* first_bad,
                         void* scratch, void* stream);
const char* softmax_loss_backward(const void* grad_output, const Map& logits, const Targets&, const void* saved,
                                  const void* total_weight, const Map& grad, void* stream);

// The loss, a scalar, and its gradient in one: each logit is read once. The mean's divisor is total_weight.
int64_t softmax_loss_and_gradient_scratch(const Map& logits);
const char* softmax_loss_and_gradient(const Map& logits, const Targets&, void* loss, const Map& grad, void* total_weight,
                                      int64_t* first_bad, void* scratch, void* stream);

// gradient *= *factor, in place and without reading it where that is 1. The factor is of the loss's type.
const char* scale_gradient(void* gradient, int64_t count, Type type, const void* factor, void* stream);

// Copies to the host and waits for the stream.
const char* to_host(void* to, const void* from, int64_t bytes, void* stream);

}  // namespace fcn_fast::cuda
