// An online softmax and the packs of numbers that it reads, for host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "grid.h"

namespace fcn_fast::cuda {

template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };
template <class T> using arithmetic_t = typename Arithmetic<T>::type;

// How a number is kept in memory; half precision, which a C++ compiler need not know, is in softmax_loss.cu.
template <class T> struct Storage {
  FCN_FAST_HOST_DEVICE static T read(T x) { return x; }
  FCN_FAST_HOST_DEVICE static T write(T x) { return x; }
};

// exp(x) is 2^(x log2 e), which the hardware has. No x is above 0, and what the product's rounding costs is lost in a sum
// that is at least 1, as is what is too small for a normal number.
FCN_FAST_HOST_DEVICE inline float exp_of(float x) {
  const float exponent = x * 1.4426950408889634f;
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
#else
  return std::exp2(exponent);
#endif
}
FCN_FAST_HOST_DEVICE inline double exp_of(double x) { return exp(x); }
FCN_FAST_HOST_DEVICE inline float inverse_of(float x) {
#ifdef __CUDA_ARCH__
  float result;  // within a unit in the last place
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}
FCN_FAST_HOST_DEVICE inline double inverse_of(double x) { return 1 / x; }
FCN_FAST_HOST_DEVICE inline float mul_add(float a, float b, float c) { return fmaf(a, b, c); }
FCN_FAST_HOST_DEVICE inline double mul_add(double a, double b, double c) { return fma(a, b, c); }
FCN_FAST_HOST_DEVICE inline float log_of(float x) { return logf(x); }
FCN_FAST_HOST_DEVICE inline double log_of(double x) { return log(x); }
FCN_FAST_HOST_DEVICE inline float larger(float a, float b) { return fmaxf(a, b); }
FCN_FAST_HOST_DEVICE inline double larger(double a, double b) { return fmax(a, b); }

// V numbers that are loaded and stored in one instruction.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
  T at[V];

  FCN_FAST_HOST_DEVICE static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
  // GLOBAL: to memory, where nothing is read again soon; else shared.
  template <bool GLOBAL = true> FCN_FAST_HOST_DEVICE void store(T* to) const {
#ifdef __CUDA_ARCH__
    // The compiler would store one member after the other.
    if constexpr (sizeof(Pack) == 16 && GLOBAL) return __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(this));
    if constexpr (V > 1 && !GLOBAL) {
      using Bits = std::conditional_t<sizeof(Pack) == 16, uint4, std::conditional_t<sizeof(Pack) == 8, uint2, uint32_t>>;
      *reinterpret_cast<Bits*>(to) = *reinterpret_cast<const Bits*>(this);
      return;
    }
#endif
    *reinterpret_cast<Pack*>(to) = *this;
  }
};

// V numbers in as few packs as hold them.
template <class A, int V> FCN_FAST_HOST_DEVICE void load_line(const A* from, A (&line)[V]) {
  constexpr int P = V * sizeof(A) > 16 ? 16 / sizeof(A) : V;
#pragma unroll
  for (int v = 0; v < V; v += P) {
    const auto pack = Pack<A, P>::load(from + v);
#pragma unroll
    for (int i = 0; i < P; ++i) line[v + i] = pack.at[i];
  }
}
template <class A, int V> FCN_FAST_HOST_DEVICE void store_line(const A (&line)[V], A* to) {
  constexpr int P = V * sizeof(A) > 16 ? 16 / sizeof(A) : V;
#pragma unroll
  for (int v = 0; v < V; v += P) {
    Pack<A, P> pack;
#pragma unroll
    for (int i = 0; i < P; ++i) pack.at[i] = line[v + i];
    pack.store(to + v);
  }
}

// The softmax of a pixel over the classes seen so far. SMOOTH: also their sum of class_weight * (logit - largest).
template <class A, bool SMOOTH> struct Softmax {
  // Never -inf: where all logits so far are, the sum stays 0.
  A largest = std::numeric_limits<A>::lowest(), sum = 0, smooth = 0, weights = 0;

  template <int K> FCN_FAST_HOST_DEVICE void add(const A (&x)[K], const A (&class_weight)[K]) {
    A most = largest;
#pragma unroll
    for (int k = 0; k < K; ++k) most = larger(most, x[k]);
    A more = 0;  // by itself, as so many small ones added to a large sum one by one would lose digits
    if (SMOOTH) smooth += weighed(largest - most, weights);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      more += exp_of(x[k] - most);
      if (SMOOTH) {
        smooth += weighed(x[k] - most, class_weight[k]);
        weights += class_weight[k];
      }
    }
    sum = mul_add(sum, exp_of(largest - most), more);
    largest = most;
  }

  FCN_FAST_HOST_DEVICE void merge(const Softmax& other) {
    const A most = larger(largest, other.largest);
    sum = sum * exp_of(largest - most) + other.sum * exp_of(other.largest - most);
    if (SMOOTH) {
      smooth += weighed(largest - most, weights) + other.smooth + weighed(other.largest - most, other.weights);
      weights += other.weights;
    }
    largest = most;
  }

 private:
  // What has no weight counts for nothing, be it infinite.
  FCN_FAST_HOST_DEVICE static A weighed(A x, A weight) { return weight == 0 ? A(0) : x * weight; }
};

}  // namespace fcn_fast::cuda
