// The upsampled coarse map plus the cropped skip, in one pass over the output: see rows.h.

#include "cpu/ops.h"
#include "cpu/rows.h"

namespace fcn_fast::FCN_FAST_ISA {

void skip_fuse(const Map& coarse, const Map& skip, int64_t top, int64_t left, const Grid& grid, const Map& output) {
  dispatch(coarse.type, [&](auto t) { sample_rows<decltype(t)>(coarse, grid, output, &skip, top, left); });
}

}  // namespace fcn_fast::FCN_FAST_ISA
