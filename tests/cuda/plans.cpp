// How the CUDA softmax loss shares out a tensor of this type, shape, layout and address modulo 16, for tests.
#include "cuda/softmax_loss_plan.h"

using namespace fcn_fast;

namespace {

// type, n, c, h, w, channels_last
Map map_of(const int64_t* n, int64_t address) { return {reinterpret_cast<void*>(address), Type(n[0]), n[1], n[2], n[3], n[4], n[5] != 0}; }

}  // namespace

extern "C" void plan(const int64_t* n, int64_t address, int64_t* out) {
  const cuda::Plan p(map_of(n, address));
  const int64_t numbers[] = {int64_t(p.share), p.pack, p.threads, p.shared, p.images, p.pixels, p.tiles, p.blocks};
  for (int i = 0; i < 8; ++i) out[i] = numbers[i];
}

// Of forward and gradient in one, with so much shared memory.
extern "C" void tiles(const int64_t* n, int64_t address, int64_t most_shared, int64_t* out) {
  const cuda::Tiles p(map_of(n, address), most_shared);
  const int64_t numbers[] = {int64_t(p.share), p.fit, p.pack, p.threads, p.shared, p.tiles, p.blocks};
  for (int i = 0; i < 7; ++i) out[i] = numbers[i];
}
