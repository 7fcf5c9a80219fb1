// Vectors as wide as the instruction set, in the compilers' own vector types; loads and stores convert half precision.
#pragma once

#include <cmath>

#ifdef __x86_64__
#include <immintrin.h>
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#include "cpu/common.h"

namespace fcn_fast::FCN_FAST_ISA {

template <class A> struct VecOf;
template <> struct VecOf<float> {
  typedef float type __attribute__((vector_size(FCN_FAST_VECTOR_BYTES)));
  typedef int32_t integer;
  typedef int32_t ints __attribute__((vector_size(FCN_FAST_VECTOR_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(FCN_FAST_VECTOR_BYTES)));
  typedef uint16_t halves __attribute__((vector_size(FCN_FAST_VECTOR_BYTES / 2)));
};
template <> struct VecOf<double> {
  typedef double type __attribute__((vector_size(FCN_FAST_VECTOR_BYTES)));
  typedef int64_t integer;
  typedef int64_t ints __attribute__((vector_size(FCN_FAST_VECTOR_BYTES)));
};
template <class A> using Vec = typename VecOf<A>::type;
template <class A> using Ints = typename VecOf<A>::ints;  // also what a comparison gives: 0 or -1 a lane
template <class A> using Int = typename VecOf<A>::integer;
template <class A> inline constexpr int kLanes = FCN_FAST_VECTOR_BYTES / sizeof(A);

using Bits = VecOf<float>::bits;
using Halves = VecOf<float>::halves;

// A weighted number, but a weight of zero makes even infinity nothing.
template <class A> FCN_FAST_INLINE A weighted(A weight, A value) { return weight == 0 ? A(0) : weight * value; }

// Minus zero, not plus: only that leaves every value as it is, so only that compiles to nothing.
template <class A> FCN_FAST_INLINE Vec<A> splat(A value) { return value - Vec<A>{}; }
template <class To, class From> FCN_FAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
template <class V> FCN_FAST_INLINE V load_raw(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

// a * b + c, rounded once where the machine can. The build switches the compiler's own contraction off, so that one
// formula gives the same bits wherever it is inlined.
FCN_FAST_INLINE float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FCN_FAST_INLINE double mul_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
FCN_FAST_INLINE Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
FCN_FAST_INLINE Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// base[index] in every lane.
template <class A> FCN_FAST_INLINE Vec<A> gather(const A* base, const int32_t* index) {
#if FCN_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_i32gather_ps(_mm512_loadu_si512(index), base, 4);
#elif FCN_FAST_VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm256_i32gather_ps(base, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
#endif
  Vec<A> out;
  for (int i = 0; i < kLanes<A>; ++i) out[i] = base[index[i]];
  return out;
}

// Lanes of a and b in turn, from their lower halves (half 0) or their upper ones (half 1).
template <class A, int half> FCN_FAST_INLINE Vec<A> interleave(Vec<A> a, Vec<A> b) {
  constexpr int n = kLanes<A>;
  Ints<A> order{};
  for (int i = 0; i < n; ++i) order[i] = Int<A>(half * (n / 2) + i / 2 + (i % 2 ? n : 0));
#ifdef __clang__
  Vec<A> out;
  for (int i = 0; i < n; ++i) out[i] = order[i] < n ? a[order[i]] : b[order[i] - n];
  return out;
#else
  return __builtin_shuffle(a, b, order);
#endif
}
// Turns kLanes vectors of kLanes numbers around.
template <class A> FCN_FAST_INLINE void transpose(Vec<A>* v) {
  constexpr int n = kLanes<A>;
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
    Vec<A> out[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      out[2 * i] = interleave<A, 0>(v[i], v[i + n / 2]);
      out[2 * i + 1] = interleave<A, 1>(v[i], v[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = out[i];
  }
}

// The larger of each lane; where either is NaN, b.
template <class V> FCN_FAST_INLINE V vmax(V a, V b) { return a > b ? a : b; }
template <class V> FCN_FAST_INLINE V vmin(V a, V b) { return a < b ? a : b; }
FCN_FAST_INLINE Vec<float> vabs(Vec<float> v) { return bit_cast<Vec<float>>(bit_cast<Bits>(v) & 0x7fffffffu); }
FCN_FAST_INLINE Vec<double> vabs(Vec<double> v) { return v < 0 ? -v : v; }

template <class A, class V, class F> FCN_FAST_INLINE A fold(const V& v, const F& f) {
  A lanes[kLanes<A>];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<A> / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = f(lanes[i], lanes[i + width]);
  return lanes[0];
}
template <class A> FCN_FAST_INLINE A sum_of(Vec<A> v) {
#if FCN_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return _mm512_reduce_add_ps((__m512)v);
#endif
  return fold<A>(v, [](A a, A b) { return a + b; });
}
// out[k] = the sum of v[k]'s lanes, for K vectors at once: half the shuffles of K sums on their own.
template <class A, int K> FCN_FAST_INLINE void sums_of(const Vec<A>* v, A* out) {
#if FCN_FAST_VECTOR_BYTES >= 32
  if constexpr (sizeof(A) == 4 && K % 8 == 0) {
    for (int k = 0; k < K; k += 8) {
      __m256 h[8];
      for (int i = 0; i < 8; ++i) {
#if FCN_FAST_VECTOR_BYTES == 64
        h[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[k + i]), _mm512_extractf32x8_ps((__m512)v[k + i], 1));
#else
        h[i] = (__m256)v[k + i];
#endif
      }
      for (int width = 8; width > 2; width /= 2)
        for (int i = 0; i < width / 2; ++i) h[i] = _mm256_hadd_ps(h[2 * i], h[2 * i + 1]);
      const __m256 low = _mm256_permute2f128_ps(h[0], h[1], 0x20), high = _mm256_permute2f128_ps(h[0], h[1], 0x31);
      _mm256_storeu_ps(reinterpret_cast<float*>(out + k), _mm256_add_ps(low, high));
    }
    return;
  }
  if constexpr (sizeof(A) == 4 && K == 4) {
    __m128 h[4];
    for (int i = 0; i < 4; ++i) {
#if FCN_FAST_VECTOR_BYTES == 64
      const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm512_extractf32x8_ps((__m512)v[i], 1));
#else
      const __m256 half = (__m256)v[i];
#endif
      h[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    _mm_storeu_ps(reinterpret_cast<float*>(out), _mm_hadd_ps(_mm_hadd_ps(h[0], h[1]), _mm_hadd_ps(h[2], h[3])));
    return;
  }
#endif
  for (int k = 0; k < K; ++k) out[k] = sum_of<A>(v[k]);
}
template <class A> FCN_FAST_INLINE A max_of(Vec<A> v) {
#if FCN_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return _mm512_reduce_max_ps((__m512)v);
#endif
  return fold<A>(v, [](A a, A b) { return a > b ? a : b; });
}
template <class A> FCN_FAST_INLINE bool any(const Ints<A>& mask) {
#if FCN_FAST_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif FCN_FAST_VECTOR_BYTES == 32
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  uint64_t halves[2];
  __builtin_memcpy(halves, &mask, sizeof(halves));
  return (halves[0] | halves[1]) != 0;
#endif
}

// --- half precision: every step is exact but the one rounding, to nearest even, of a store
// Numbers of 16 bits to 32 and back, which compilers make two halves of.
FCN_FAST_INLINE Bits extended(Halves h) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Bits)_mm512_cvtepu16_epi32((__m256i)h);
#elif FCN_FAST_VECTOR_BYTES == 32
  return (Bits)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Bits);
#endif
}
FCN_FAST_INLINE Halves truncated(Bits bits) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, Halves);
#endif
}
FCN_FAST_INLINE Vec<float> widen(Halves h, BF16) { return bit_cast<Vec<float>>(extended(h) << 16); }
FCN_FAST_INLINE Halves narrow(Vec<float> v, BF16) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = Bits{} + 0x7fc0u;
  return truncated((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}
FCN_FAST_INLINE Vec<float> widen(Halves h, F16) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_cvtph_ps((__m256i)h);
#elif FCN_FAST_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps((__m128i)h);
#else
  const Bits bits = extended(h);
  const Bits sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const Bits normal = magnitude + (112u << 23);
  // Subnormal: put the digits below 2^-14 and take 2^-14 away.
  const Bits subnormal = bit_cast<Bits>(bit_cast<Vec<float>>(magnitude + (113u << 23)) - 0x1p-14f);
  const Bits special = magnitude | 0x7f800000u;
  const Bits result = magnitude >= (0x7c00u << 13) ? special : (magnitude < (0x400u << 13) ? subnormal : normal);
  return bit_cast<Vec<float>>(result | sign);
#endif
}
FCN_FAST_INLINE Halves narrow(Vec<float> v, F16) {
#if FCN_FAST_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif FCN_FAST_VECTOR_BYTES == 32
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Bits bits = bit_cast<Bits>(v);
  const Bits sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: adding 0.5 rounds the digits to half's last place.
  const Bits subnormal = bit_cast<Bits>(bit_cast<Vec<float>>(magnitude) + 0.5f) - (126u << 23);
  const Bits infinite = Bits{} + 0x7c00u, nan = Bits{} + 0x7e00u;
  const Bits special = magnitude > 0x7f800000u ? nan : infinite;
  const Bits result = magnitude >= (143u << 23) ? special : (magnitude < (113u << 23) ? subnormal : normal);
  return truncated(result | sign);
#endif
}

template <class T> FCN_FAST_INLINE Vec<arithmetic_t<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) return widen(load_raw<Halves>(p), T{});
  else return load_raw<Vec<T>>(p);
}
template <class T> FCN_FAST_INLINE void store(T* p, Vec<arithmetic_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const Halves halves = narrow(v, T{});
    __builtin_memcpy(p, &halves, sizeof(halves));
  } else {
    __builtin_memcpy(p, &v, sizeof(v));
  }
}
// The first n < kLanes elements; the other lanes are zero.
template <class T> FCN_FAST_INLINE Vec<arithmetic_t<T>> load(const T* p, int64_t n) {
#if FCN_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  if constexpr (sizeof(T) == 2) return widen((Halves)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p), T{});
#endif
  T lanes[kLanes<arithmetic_t<T>>] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
template <class T> FCN_FAST_INLINE void store(T* p, Vec<arithmetic_t<T>> v, int64_t n) {
#if FCN_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 2) return _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(v, T{}));
#endif
  T lanes[kLanes<arithmetic_t<T>>];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}
FCN_FAST_INLINE float to_arithmetic(float value) { return value; }
FCN_FAST_INLINE double to_arithmetic(double value) { return value; }
FCN_FAST_INLINE float to_arithmetic(BF16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }
FCN_FAST_INLINE float to_arithmetic(F16 value) {
#if FCN_FAST_VECTOR_BYTES >= 32
  return _cvtsh_ss(value.bits);
#else
  F16 lanes[kLanes<float>] = {value};
  return load(lanes)[0];
#endif
}
template <class T> FCN_FAST_INLINE T to_storage(arithmetic_t<T> value) {
  if constexpr (sizeof(T) == 2) {
    const Halves halves = narrow(splat(value), T{});
    return T{uint16_t(halves[0])};
  } else {
    return value;
  }
}

// The elements from i on, of any array: a vector of them, or the first n of one.
struct At {
  int64_t i, n = -1;
  template <class T> FCN_FAST_INLINE Vec<arithmetic_t<T>> operator()(const T* p) const {
    return n < 0 ? load(p + i) : load(p + i, n);
  }
  template <class T> FCN_FAST_INLINE void prefetch(const T* p) const { __builtin_prefetch(p + i); }
};

// out[i] = f(at), where at(p) is the vector at p + i. The last vector overlaps the one before it, so f may see an
// element twice and out must not be read by f.
template <class T, class F> FCN_FAST_INLINE void transform(T* out, int64_t n, const F& f) {
  constexpr int lanes = kLanes<arithmetic_t<T>>;
  if (n >= lanes) {
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store(out + i, f(At{i}));
    if (i < n) store(out + n - lanes, f(At{n - lanes}));
  } else {
    store(out, f(At{0, n}), n);
  }
}

// The same past the caches, for an output so large that it would only push other things out of them: no line is read
// before it is overwritten. Ends with a fence, so that other threads see it.
template <class T, class F> FCN_FAST_INLINE void transform_streaming(T* out, int64_t n, const F& f) {
#if FCN_FAST_VECTOR_BYTES >= 32
  constexpr int lanes = kLanes<arithmetic_t<T>>;
  constexpr int64_t bytes = lanes * sizeof(T);
  if (n >= 2 * lanes) {
    const auto value = [&](int64_t i) { return f(At{i}); };
    const int64_t beyond = reinterpret_cast<uintptr_t>(out) % bytes;
    int64_t i = beyond ? (bytes - beyond) / int64_t(sizeof(T)) : 0;
    if (beyond) store(out, value(0));
    for (; i + lanes <= n; i += lanes) {
      alignas(64) T line[lanes];
      store(line, value(i));
      if constexpr (bytes == 64) {
#if FCN_FAST_VECTOR_BYTES == 64
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i), _mm512_load_si512(line));
#endif
      } else if constexpr (bytes == 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i), _mm256_load_si256(reinterpret_cast<const __m256i*>(line)));
      } else {
        _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), _mm_load_si128(reinterpret_cast<const __m128i*>(line)));
      }
    }
    if (i < n) store(out + n - lanes, value(n - lanes));
    _mm_sfence();
    return;
  }
#endif
  transform(out, n, f);
}

// exp of x <= 88, to about one unit in the last place; below -87 it is 0, NaN stays NaN.
// 2^n * (1 + r + r^2 Q(r)), Q the minimax polynomial of degree 4 on |r| <= ln 2 / 2.
FCN_FAST_INLINE Vec<float> exp(Vec<float> x) {
  const Vec<float> kept = vmax(splat(-87.0f), x);
  const Vec<float> magic = mul_add(kept, splat(1.44269504f), splat(12582912.0f));  // 1.5 * 2^23 rounds to whole numbers
  const Vec<float> n = magic - 12582912.0f;
  const Vec<float> r = mul_add(n, splat(-1.42860677e-06f), mul_add(n, splat(-0.693145752f), kept));
  Vec<float> q = splat(1.381482800e-03f);
  q = mul_add(q, r, splat(8.368709924e-03f));
  q = mul_add(q, r, splat(4.166838323e-02f));
  q = mul_add(q, r, splat(1.666652071e-01f));
  q = mul_add(q, r, splat(4.999999347e-01f));
  const Vec<float> power = bit_cast<Vec<float>>((bit_cast<Bits>(magic) << 23) + 0x3f800000u);
  const Vec<float> y = (mul_add(q, r * r, r) + 1.0f) * power;
  return x < -87.0f ? Vec<float>{} : y;
}
FCN_FAST_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// log of a normal positive number, to about one unit in the last place; of anything else, whatever libm says.
// n ln 2 + f - f^2 / 2 + f^3 P(f), P the minimax polynomial of degree 7 on [1/sqrt 2 - 1, sqrt 2 - 1].
FCN_FAST_INLINE Vec<float> log(Vec<float> x) {
  const Ints<float> usual = (x >= 0x1p-126f) & (x <= 3.4e38f);
  const Bits bits = bit_cast<Bits>(x) - 0x3f3504f3u;  // 1/sqrt 2, so that the exponent below counts from there
  const Vec<float> n = __builtin_convertvector(bit_cast<Ints<float>>(bits) >> 23, Vec<float>);
  const Vec<float> f = bit_cast<Vec<float>>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  Vec<float> p = splat(-7.634601924e-02f);
  p = mul_add(p, f, splat(1.276158656e-01f));
  p = mul_add(p, f, splat(-1.316014205e-01f));
  p = mul_add(p, f, splat(1.420175331e-01f));
  p = mul_add(p, f, splat(-1.662336161e-01f));
  p = mul_add(p, f, splat(2.000122732e-01f));
  p = mul_add(p, f, splat(-2.500082090e-01f));
  p = mul_add(p, f, splat(3.333333170e-01f));
  const Vec<float> square = f * f;
  Vec<float> tail = mul_add(square * f, p, square * -0.5f);
  tail = mul_add(n, splat(-2.12194440e-04f), tail);
  Vec<float> y = mul_add(n, splat(0.693359375f), tail + f);
  if (any<float>(~usual)) {
    for (int i = 0; i < kLanes<float>; ++i)
      if (!usual[i]) y[i] = std::log(x[i]);
  }
  return y;
}
FCN_FAST_INLINE Vec<double> log(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

}  // namespace fcn_fast::FCN_FAST_ISA
