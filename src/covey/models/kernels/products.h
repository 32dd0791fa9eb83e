// Products of small matrices, eight rows at a time, by the instruction that multiplies pairs of bfloat16 and adds them to
// float32 (dpbf16):
//     dot  rows [8][E] times columns in blocks of 16, laid out [E / 2][16][2]: sums over E
//     mix  rows [8][n] times rows laid out [n / 2][E][2]: sums over n
#pragma once

#include "vectors.h"

namespace {

constexpr int64_t kRows = 8;

// Part of a head's rows: `count` of them, `stride` apart.
struct Rows {
  const bf16* first;
  int64_t stride;
  int64_t count;
};

// out[r][lane] = rows[r] . column of the block
void dot(const bf16* const* rows, const bf16* block, int64_t num_pairs, float* out, int64_t stride) {
  __m512 sums[kRows];
  for (int r = 0; r < kRows; r++) sums[r] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < num_pairs; pair++) {
    const __m512bh columns = pairs(block + pair * 2 * kLanes);
    for (int r = 0; r < kRows; r++) {
      sums[r] = _mm512_dpbf16_ps(sums[r], broadcast_pair(reinterpret_cast<const uint32_t*>(rows[r])[pair]), columns);
    }
  }
  for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out + r * stride, sums[r]);
}

// out[r] (+)= rows[r] times the laid-out rows; rows[r] = rows + r * row_stride, out[r] = out + r * width
template <bool kAdds>
void mix(const bf16* rows, int64_t row_stride, const bf16* laid_out, int64_t num_pairs, float* out, int64_t width) {
  for (int64_t e = 0; e < width; e += 2 * kLanes) {
    __m512 sums[kRows][2];
    for (int r = 0; r < kRows; r++) {
      for (int half = 0; half < 2; half++) {
        sums[r][half] = kAdds ? _mm512_loadu_ps(out + r * width + e + half * kLanes) : _mm512_setzero_ps();
      }
    }
    for (int64_t pair = 0; pair < num_pairs; pair++) {
      const bf16* from = laid_out + (pair * width + e) * 2;
      const __m512bh low = pairs(from), high = pairs(from + 2 * kLanes);
      for (int r = 0; r < kRows; r++) {
        const __m512bh weight = broadcast_pair(reinterpret_cast<const uint32_t*>(rows + r * row_stride)[pair]);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], weight, low);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], weight, high);
      }
    }
    for (int r = 0; r < kRows; r++) {
      _mm512_storeu_ps(out + r * width + e, sums[r][0]);
      _mm512_storeu_ps(out + r * width + e + kLanes, sums[r][1]);
    }
  }
}

// The rows as columns of blocks, [E / 2][16][2] each, zeros behind the last: for `dot`. Starts at column `at`.
void lay_out_columns(const Rows& rows, int64_t head_dim, int64_t at, bf16* blocks) {
  for (int64_t n = 0; n < rows.count; n++) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(rows.first + n * rows.stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(blocks + (at + n) / kLanes * kLanes * head_dim) + (at + n) % kLanes;
    for (int64_t pair = 0; pair < head_dim / 2; pair++) to[pair * kLanes] = from[pair];
  }
}

// The rows in pairs, [n / 2][E][2], for `mix`. Starts at row `at`.
void lay_out_pairs(const Rows& rows, int64_t head_dim, int64_t at, bf16* laid_out) {
  for (int64_t n = 0; n < rows.count; n++) {
    bf16* to = laid_out + (at + n) / 2 * head_dim * 2 + (at + n) % 2;
    const bf16* from = rows.first + n * rows.stride;
    for (int64_t e = 0; e < head_dim; e++) to[2 * e] = from[e];
  }
}

}  // namespace
