// bfloat16 vectors of 16 lanes, for processors with AVX512-BF16: bfloat16 in memory, float32 in registers.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using bf16 = uint16_t;

constexpr int64_t kLanes = 16;
constexpr int64_t kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;

inline float widened(bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __m512 widened(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load(const bf16* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m512 load_some(const bf16* from, __mmask16 mask) {
  return _mm512_mask_blend_ps(mask, _mm512_set1_ps(kMasked), widened(_mm256_maskz_loadu_epi16(mask, from)));
}

// Sixteen values of a row from place i on, kMasked behind its end.
inline __m512 load_within(const bf16* row, int64_t i, int64_t length) {
  const int64_t left = length - i;
  return left >= kLanes ? load(row + i) : load_some(row + i, __mmask16((1u << left) - 1));
}

inline __m256i rounded(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

inline void store(bf16* to, __m512 values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(values)); }

// Begin to bring what lies there into the caches. It need not exist.
inline void fetch(const bf16* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

inline __m512bh pairs(const void* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

inline __m512bh broadcast_pair(uint32_t pair) { return reinterpret_cast<__m512bh>(_mm512_set1_epi32(int(pair))); }

// e^x = 2^n e^r with |r| <= ln(2) / 2, and e^r by its series: the first term left out is below 1e-8.
// Below -110 the result is 0. NaN stays NaN: the maximum of two numbers returns the second one if either is NaN.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);  // ln 2 in two parts; the first times n is exact
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / factorial));
  }
  return _mm512_scalef_ps(sum, n);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline float norm_factor(float sum_of_squares, int64_t width, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / float(width) + eps);
}

}  // namespace
