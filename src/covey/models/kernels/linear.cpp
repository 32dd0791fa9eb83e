// Products of a few rows with a weight matrix that was laid out for them beforehand, for processors with AVX512-BF16.
//
// y = x W^T + b with x [rows][in], W [out][in], y [rows][out], all bfloat16, sums in float32. W lies in panels of 48 outputs,
//     [panels][in / 2 pairs of inputs][48 outputs][2]
// with zeros behind the last output, so that one load holds a pair of inputs of 16 outputs. Three such loads times 8 rows
// make 24 sums, which is what keeps both multipliers of a core busy; a panel stays in the cache for all rows.

#include "vectors.h"

namespace {

constexpr int kPanel = 3;  // vectors of a panel
constexpr int64_t kPanelWidth = kPanel * kLanes;
constexpr int kTile = 8;
// Rows of one task: enough to use a panel well, few enough that many cores find work in a small matrix.
constexpr int64_t kTaskRows = 64;

struct Product {
  const bf16* x;
  const bf16* weight;  // laid out
  const bf16* bias;    // [out], null: none
  bf16* out;
  int64_t num_rows;
  int64_t num_outputs;
  int64_t num_inputs;
};

// R rows from `row` on times the panel that starts at output `column`.
template <int R>
void multiply_tile(const Product& p, int64_t row, int64_t column) {
  const int64_t num_pairs = p.num_inputs / 2;
  const bf16* panel = p.weight + column * p.num_inputs;
  const uint32_t* x = reinterpret_cast<const uint32_t*>(p.x + row * p.num_inputs);
  __m512 sums[R][kPanel];
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < kPanel; c++) sums[r][c] = _mm512_setzero_ps();
  }
  for (int64_t pair = 0; pair < num_pairs; pair++) {
    __m512bh weights[kPanel];
    for (int c = 0; c < kPanel; c++) {
      const bf16* vector = panel + (pair * kPanel + c) * 2 * kLanes;
      weights[c] = pairs(vector);
      fetch(vector + kPanelWidth * p.num_inputs);  // the same place of the next panel, which comes from memory
    }
    for (int r = 0; r < R; r++) {
      const __m512bh inputs = broadcast_pair(x[r * num_pairs + pair]);
      for (int c = 0; c < kPanel; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], inputs, weights[c]);
    }
  }
  for (int c = 0; c < kPanel; c++) {
    const int64_t first = column + c * kLanes, left = std::min(p.num_outputs - first, kLanes);
    if (left <= 0) break;
    const __mmask16 mask = __mmask16((1u << left) - 1);
    const __m512 bias = p.bias ? widened(_mm256_maskz_loadu_epi16(mask, p.bias + first)) : _mm512_setzero_ps();
    for (int r = 0; r < R; r++) {
      bf16* to = p.out + (row + r) * p.num_outputs + first;
      _mm256_mask_storeu_epi16(to, mask, rounded(_mm512_add_ps(sums[r][c], bias)));
    }
  }
}

void multiply_some(const Product& p, int64_t row, int64_t num_rows, int64_t column) {
  switch (num_rows) {
    case 1: return multiply_tile<1>(p, row, column);
    case 2: return multiply_tile<2>(p, row, column);
    case 3: return multiply_tile<3>(p, row, column);
    case 4: return multiply_tile<4>(p, row, column);
    case 5: return multiply_tile<5>(p, row, column);
    case 6: return multiply_tile<6>(p, row, column);
    case 7: return multiply_tile<7>(p, row, column);
    default: return multiply_tile<kTile>(p, row, column);
  }
}

int64_t panels_of(int64_t num_outputs) { return (num_outputs + kPanelWidth - 1) / kPanelWidth; }

}  // namespace

extern "C" {

// Lay out rows [num_outputs][num_inputs] of a weight matrix. num_inputs: even. `laid_out`: as many outputs as fill panels.
void covey_lay_out(const bf16* weight, bf16* laid_out, int64_t num_outputs, int64_t num_inputs) {
  const int64_t num_pairs = num_inputs / 2;
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels_of(num_outputs); panel++) {
    const int64_t count = std::min(num_outputs - panel * kPanelWidth, kPanelWidth);
    const uint32_t* from = reinterpret_cast<const uint32_t*>(weight) + panel * kPanelWidth * num_pairs;
    uint32_t* to = reinterpret_cast<uint32_t*>(laid_out) + panel * kPanelWidth * num_pairs;
    for (int64_t pair = 0; pair < num_pairs; pair++) {
      for (int64_t n = 0; n < count; n++) to[pair * kPanelWidth + n] = from[n * num_pairs + pair];
      for (int64_t n = count; n < kPanelWidth; n++) to[pair * kPanelWidth + n] = 0;
    }
  }
}

// y = x W^T + b (bias may be null). num_inputs: even.
void covey_linear(const bf16* x, const bf16* weight, const bf16* bias, bf16* out, int64_t num_rows, int64_t num_outputs,
                  int64_t num_inputs) {
  const Product p{x, weight, bias, out, num_rows, num_outputs, num_inputs};
  const int64_t num_panels = panels_of(num_outputs), num_blocks = (num_rows + kTaskRows - 1) / kTaskRows;
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < num_panels * num_blocks; task++) {
    const int64_t column = task / num_blocks * kPanelWidth, first = task % num_blocks * kTaskRows;
    const int64_t end = std::min(first + kTaskRows, num_rows);
    for (int64_t row = first; row < end; row += kTile) multiply_some(p, row, std::min<int64_t>(end - row, kTile), column);
  }
}

}  // extern "C"
