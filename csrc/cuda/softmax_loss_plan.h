// How the CUDA softmax loss shares out pixels among threads.
#pragma once

#include "cpu/kernels.h"

namespace fcn_fast::cuda {

constexpr int kWarp = 32, kBanks = 32;  // of shared memory, 4 bytes each
constexpr int kTogether = 4;  // classes whose exponentials are added up by themselves
constexpr int kMultiprocessors = 132;  // an H100's, which are to be filled; whatever the device, so that all add in the same order

// Classes, filled up to a multiple of kTogether as tiles of planes are.
FCN_FAST_HOST_DEVICE inline int32_t filled(int32_t classes) { return (classes + kTogether - 1) / kTogether * kTogether; }

// kPlanes: a thread owns ``pack`` neighbouring pixels, whose classes lie a plane apart. kRows: a thread owns a pixel, whose
// classes lie side by side, and a block brings its pixels to shared memory. kLanes: a warp owns such a pixel.
enum class Share { kPlanes, kRows, kLanes };

struct Plan {
  Share share;
  int64_t images, pixels;  // classes side by side: all images are one
  int pack = 1, threads = 128, shared = 0;
  int64_t tiles, blocks;   // blocks of an image, and of all

  explicit Plan(const Map& logits) : images(logits.n), pixels(logits.h * logits.w) {
    const int64_t size = logits.type == Type::f64 ? 8 : logits.type == Type::f32 ? 4 : 2;
    if (!logits.channels_last && pixels != 1) {
      share = Share::kPlanes;
      const int wide = int(16 / size);
      const bool aligned = pixels % wide == 0 && reinterpret_cast<uintptr_t>(logits.data) % 16 == 0;
      if (aligned && images * tiles_of(threads * wide) >= kFill) pack = wide;
      while (threads > kWarp && images * tiles_of(threads * pack) < kFill) threads /= 2;
      tiles = tiles_of(threads * pack);
    } else {
      pixels *= images;
      images = 1;
      const int64_t row = logits.c * size;
      share = row * kWarp <= kShared && logits.c <= kLongest ? Share::kRows : Share::kLanes;
      if (share == Share::kRows) {
        while (threads > kWarp && (row * threads > kShared || tiles_of(threads) < kFill)) threads /= 2;
        shared = int(row * threads);
      }
      tiles = tiles_of(share == Share::kRows ? threads : threads / kWarp);
    }
    blocks = images * tiles;
  }

 private:
  // Two blocks for each multiprocessor: with fewer, threads do less each and blocks are smaller.
  static constexpr int64_t kFill = 2 * kMultiprocessors;
  // The shared memory of a block: two blocks fit into the smallest multiprocessors, seven into an H100's. And the most
  // classes for one thread to go through.
  static constexpr int64_t kShared = 32 << 10, kLongest = 256;

  int64_t tiles_of(int64_t at_once) const { return (pixels + at_once - 1) / at_once; }
};

// Of forward and gradient in one kernel: a block brings its pixels, all their classes, to shared memory, and goes on to others.
// A thread owns ``pack`` neighbouring pixels of kPlanes, one of kRows.
struct Tiles {
  static constexpr int64_t kLeast = 3;  // blocks of a multiprocessor
  Share share;
  bool fit;  // else there is not enough shared memory, or too little for enough threads
  int64_t images, pixels;
  int pack = 1, threads = 128, shared = 0;
  int64_t tiles;  // of an image
  int blocks;

  Tiles(const Map& logits, int64_t most_shared) : images(logits.n), pixels(logits.h * logits.w) {
    const int64_t size = logits.type == Type::f64 ? 8 : logits.type == Type::f32 ? 4 : 2;
    if (!logits.channels_last && pixels != 1) {
      share = Share::kPlanes;
      // Four bytes a thread, one bank each; a tile's rows are then whole 16 bytes.
      if (size == 2 && pixels % 8 == 0 && reinterpret_cast<uintptr_t>(logits.data) % 16 == 0) pack = 2;
    } else {
      share = Share::kRows;
      pixels *= images;
      images = 1;
    }
    const int64_t of_thread = (share == Share::kPlanes ? filled(int32_t(logits.c)) : logits.c) * size * pack;
    while (threads > kWarp && ((of_thread * threads + kReserved) * kWaiting > most_shared || images * tiles_of(threads * pack) < kFill)) threads /= 2;
    shared = int(of_thread * threads);
    fit = (of_thread * kWarp + kReserved) * kLeast <= most_shared;
    tiles = tiles_of(threads * pack);
    blocks = int(images * tiles < kMost ? images * tiles : kMost);
  }

 private:
  // Blocks of a multiprocessor that wait for memory while others compute, if threads need not become fewer than a warp for it;
  // and what each takes beside its tile, by itself and for CUDA.
  static constexpr int64_t kWaiting = 5, kReserved = 1152;
  static constexpr int64_t kFill = 2 * kMultiprocessors, kMost = 24 * kMultiprocessors;

  int64_t tiles_of(int64_t at_once) const { return (pixels + at_once - 1) / at_once; }
};

}  // namespace fcn_fast::cuda
