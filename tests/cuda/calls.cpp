// The CUDA softmax loss for tests, in an emulator of a GPU.
#include "cuda/softmax_loss.h"

#include <vector>

#include "emulator.h"

using namespace fcn_fast;

namespace {

// type, n, c, h, w, channels_last, the labels' type, ignore_index, reduction
Map map_of(const int64_t* n, void* data) { return {data, Type(n[0]), n[1], n[2], n[3], n[4], n[5] != 0}; }
Targets targets_of(const int64_t* n, double label_smoothing, void** p) {
  return {p[0], Type(n[6]), n[7], p[1], p[2], Reduction(n[8]), label_smoothing};
}

}  // namespace

// p: logits, labels, class weights, pixel weights, then what the call takes. What CUDA reports, null if nothing.
extern "C" const char* forward(void** p, const int64_t* n, double label_smoothing, int order) {
  emulator::order = order;
  emulator::error.clear();
  const Map logits = map_of(n, p[0]);
  std::vector<char> scratch(cuda::softmax_loss_scratch(logits), char(0xff));
  return cuda::softmax_loss(logits, targets_of(n, label_smoothing, p + 1), p[4], p[5], p[6], static_cast<int64_t*>(p[7]), scratch.data(),
                            nullptr);
}
extern "C" const char* backward(void** p, const int64_t* n, double label_smoothing, int order) {
  emulator::order = order;
  emulator::error.clear();
  return cuda::softmax_loss_backward(p[4], map_of(n, p[0]), targets_of(n, label_smoothing, p + 1), p[5], p[6], map_of(n, p[7]), nullptr);
}
extern "C" const char* loss_and_gradient(void** p, const int64_t* n, double label_smoothing, int order) {
  emulator::order = order;
  emulator::error.clear();
  const Map logits = map_of(n, p[0]);
  std::vector<char> scratch(cuda::softmax_loss_and_gradient_scratch(logits), char(0xff));
  return cuda::softmax_loss_and_gradient(logits, targets_of(n, label_smoothing, p + 1), p[4], map_of(n, p[7]), p[5],
                                         static_cast<int64_t*>(p[6]), scratch.data(), nullptr);
}
extern "C" const char* scale(void* gradient, int64_t count, int type, const void* factor) {
  emulator::order = 0;
  emulator::error.clear();
  return cuda::scale_gradient(gradient, count, Type(type), factor, nullptr);
}
