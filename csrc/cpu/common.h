// Small tools of the CPU kernels. Everything here lives in the namespace of one instruction set.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/kernels.h"

#define FCN_FAST_INLINE inline __attribute__((always_inline))

namespace fcn_fast::FCN_FAST_ISA {

// Storage types of half precision; arithmetic happens in float.
struct BF16 { uint16_t bits; };
struct F16 { uint16_t bits; };

template <class T> struct Arithmetic { using type = T; };
template <> struct Arithmetic<BF16> { using type = float; };
template <> struct Arithmetic<F16> { using type = float; };
template <class T> using arithmetic_t = typename Arithmetic<T>::type;

// Call f with a value of the storage type.
template <class F> FCN_FAST_INLINE void dispatch(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::bf16: return f(BF16{});
    case Type::f16: return f(F16{});
    default: __builtin_unreachable();
  }
}

template <class T> FCN_FAST_INLINE T smaller(T a, T b) { return a < b ? a : b; }
template <class T> FCN_FAST_INLINE T larger(T a, T b) { return a < b ? b : a; }
FCN_FAST_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FCN_FAST_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Uninitialised memory, aligned to a cache line, with a vector's room to read and write past its end.
template <class T> class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, round_up(size * int64_t(sizeof(T)) + 128, 64)))) {
    if (!data_) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  operator T*() const { return data_; }
  const T* operator+() const { return data_; }

 private:
  T* data_;
};

// body(begin, end) over parts of [0, n), on PyTorch's threads.
template <class F> void parallel(int64_t n, const F& body) {
  if (n <= 0) return;
  parallel_for(n, const_cast<void*>(static_cast<const void*>(&body)),
               [](void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); });
}

// Where the two taps of every output pixel of an axis lie, and what they weigh. Both indices are inside the map; a tap
// of weight zero points where its partner does.
template <class A> struct Taps {
  Buffer<int32_t> low, high;
  Buffer<A> low_weight, high_weight;
  Buffer<int32_t> cell;  // floor(src): at least -1 and below in, but for outputs all outside a zero border, -2 or in

  explicit Taps(const Axis& axis)
      : low(axis.out), high(axis.out), low_weight(axis.out), high_weight(axis.out), cell(axis.out) {
    for (int64_t i = 0; i < axis.out; ++i) {
      int64_t remainder;
      const int64_t index = axis.cell(i, remainder);
      // The weights as fcn_fast/reference.py rounds them.
      A weights[2] = {A(axis.unit - remainder) / A(axis.unit), A(remainder) / A(axis.unit)};
      int64_t taps[2] = {index, index + 1};
      for (int k = 0; k < 2; ++k) {
        if (axis.zero && (taps[k] < 0 || taps[k] >= axis.in)) weights[k] = 0;
        taps[k] = smaller(larger(taps[k], int64_t(0)), axis.in - 1);
      }
      if (taps[0] == taps[1] && !axis.zero) {
        weights[0] = 1;
        weights[1] = 0;
      }
      if (weights[0] == 0) taps[0] = taps[1];
      if (weights[1] == 0) taps[1] = taps[0];
      low[i] = int32_t(taps[0]);
      high[i] = int32_t(taps[1]);
      low_weight[i] = weights[0];
      high_weight[i] = weights[1];
      const int64_t outside = axis.zero ? 1 : 0;
      cell[i] = int32_t(smaller(larger(index, -1 - outside), axis.in - 1 + outside));
    }
  }
};

// The transpose of Taps: the contiguous run of outputs that read coarse pixel i, [begin[i], end[i]), and the weight of
// each at weights[offset[i]] and on.
template <class A> struct Footprints {
  Buffer<int32_t> begin, end, offset;
  Buffer<A> weights;

  Footprints(const Axis& axis, const Taps<A>& taps)
      : begin(axis.in), end(axis.in), offset(axis.in), weights(2 * axis.out) {
    for (int64_t i = 0; i < axis.in; ++i) begin[i] = end[i] = 0;
    for (int64_t x = 0; x < axis.out; ++x) {
      if (taps.low_weight[x] != 0) include(taps.low[x], x);
      if (taps.high_weight[x] != 0) include(taps.high[x], x);
    }
    int32_t total = 0;
    for (int64_t i = 0; i < axis.in; ++i) {
      offset[i] = total;
      for (int32_t x = begin[i]; x < end[i]; ++x) {
        A weight = 0;
        if (taps.low[x] == i) weight += taps.low_weight[x];
        if (taps.high[x] == i) weight += taps.high_weight[x];
        weights[total++] = weight;
      }
    }
  }

 private:
  void include(int32_t i, int64_t x) {
    if (begin[i] == end[i]) begin[i] = int32_t(x);
    end[i] = int32_t(x) + 1;
  }
};

}  // namespace fcn_fast::FCN_FAST_ISA
