// The sampling rule of fcn_fast/grid.py, for host and device: src = (step * dst + origin) / unit in whole numbers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FCN_FAST_HOST_DEVICE __host__ __device__
#else
#define FCN_FAST_HOST_DEVICE
#endif

namespace fcn_fast {

struct Axis {
  int64_t in;    // coarse pixels
  int64_t out;   // output pixels
  int64_t step, origin, unit;
  bool zero;     // taps outside read zero; otherwise the nearest edge pixel

  // floor(src) of output pixel dst, and src - floor(src) as remainder / unit.
  FCN_FAST_HOST_DEVICE int64_t cell(int64_t dst, int64_t& remainder) const {
    const int64_t src = step * dst + origin;
    int64_t quotient = src / unit;
    remainder = src - quotient * unit;
    if (remainder < 0) {
      quotient -= 1;
      remainder += unit;
    }
    return quotient;
  }
};

struct Grid {
  Axis y, x;
};

}  // namespace fcn_fast
