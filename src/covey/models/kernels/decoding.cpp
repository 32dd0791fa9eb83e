// What happens between the matrix products of a decoding step, for processors with AVX512-BF16.
//
// bfloat16 in and out, float32 inside. Compiled on first use by build.py, called through ctypes with plain pointers.
// Threads are OpenMP's, from the runtime that torch has loaded: a second pool of threads would fight the first.
//
// Keys and values lie in blocks of 16 positions of one key-value head, E = head_dim:
//     keys    [E / 2 pairs of dimensions][16 positions][2]   one load holds a pair of dimensions of 16 keys
//     values  [8 pairs of positions][E dimensions][2]        one load holds 16 dimensions of a pair of values
// so that the instruction that multiplies pairs and adds them (dpbf16) needs no sum across a register.

#include "vectors.h"

extern "C" {

// residual += branch (may be null); out = residual / sqrt(mean residual^2 + eps) * gain. Width a multiple of 16.
void covey_add_norm(float* residual, const bf16* branch, const float* gain, bf16* out, int64_t num_rows, int64_t width,
                    float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    float* x = residual + row * width;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += kLanes) {
      __m512 values = _mm512_loadu_ps(x + i);
      if (branch) {
        values = _mm512_add_ps(values, load(branch + row * width + i));
        _mm512_storeu_ps(x + i, values);
      }
      squares = _mm512_fmadd_ps(values, values, squares);
    }
    const __m512 factor = _mm512_set1_ps(norm_factor(_mm512_reduce_add_ps(squares), width, eps));
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 normed = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
      store(out + row * width + i, _mm512_mul_ps(normed, _mm512_loadu_ps(gain + i)));
    }
  }
}

// out = x / sqrt(mean x^2 + eps) * gain. Width a multiple of 16.
void covey_norm(const bf16* x, const float* gain, bf16* out, int64_t num_rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 values = load(x + row * width + i);
      squares = _mm512_fmadd_ps(values, values, squares);
    }
    const __m512 factor = _mm512_set1_ps(norm_factor(_mm512_reduce_add_ps(squares), width, eps));
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 normed = _mm512_mul_ps(load(x + row * width + i), factor);
      store(out + row * width + i, _mm512_mul_ps(normed, _mm512_loadu_ps(gain + i)));
    }
  }
}

// out = activation(gate) * up for rows [gate | up], each half `width` wide, a multiple of 16.
// Activation 0: silu, x sigmoid(x). 1: gelu by tanh, x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
void covey_gated(const bf16* gate_up, bf16* out, int64_t num_rows, int64_t width, int32_t activation) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const bf16* gates = gate_up + row * 2 * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 gate = load(gates + i);
      __m512 slope = gate;
      if (activation == 1) {
        const __m512 cube = _mm512_mul_ps(gate, _mm512_mul_ps(gate, gate));
        slope = _mm512_mul_ps(_mm512_set1_ps(1.59576912f), _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), gate));
      }
      const __m512 activated = _mm512_mul_ps(gate, sigmoid(slope));
      store(out + row * width + i, _mm512_mul_ps(activated, load(gates + width + i)));
    }
  }
}

// One step of attention: see covey_attend. Mirrored by `AttendArguments` in engines/native/kernels.py.
struct AttendArguments {
  const bf16* qkv;           // [rows][(heads + 2 kv heads) * E]
  bf16* out;                 // [rows][heads * E]
  const float* query_norm;   // [E], null: none
  const float* key_norm;     // [E], null: none
  const float* cos;          // [positions][E / 2]
  const float* sin;          // [positions][E / 2]
  const int64_t* prompt_slots;    // [rows]
  const int64_t* prompt_lengths;  // [rows]
  const int64_t* ages;            // [rows] positions of its own that a row has in the cache
  const bf16* prompt_keys;   // [slots][kv heads][prompt_blocks] blocks
  const bf16* prompt_values;
  bf16* row_keys;            // [rows][kv heads][row_blocks] blocks
  bf16* row_values;
  int64_t num_rows;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t prompt_blocks;
  int64_t row_blocks;
  int64_t window;            // how many positions a token sees, itself included; 0: all before it
  float scale;
  float eps;
};

}  // extern "C"

namespace {

// Part of what a row sees: positions [begin, end) of a slot.
struct Segment {
  const bf16* keys;
  const bf16* values;
  int64_t begin;
  int64_t end;
  int64_t ahead;  // how far behind each of its numbers the next row's lies, which is fetched meanwhile
  int64_t first_block() const { return begin / kLanes; }
  int64_t num_blocks() const { return end > begin ? (end + kLanes - 1) / kLanes - first_block() : 0; }
};

// Sums that the 32 registers hold beside what is added to them.
constexpr int kMostSums = 24;

// Room of one thread, for the query heads of one key-value head.
struct Scratch {
  std::vector<float> scores;   // [heads][positions]
  std::vector<bf16> weights;   // [heads][positions]
  std::vector<bf16> queries;   // [heads][E]
};

// to = the head at `from`, normed if a gain is given, turned by its position.
void rotate_head(const AttendArguments& a, const bf16* from, const float* gain, int64_t position, bf16* to) {
  const int64_t half = a.head_dim / 2;
  __m512 factor = _mm512_set1_ps(1.0f);
  if (gain) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < a.head_dim; i += kLanes) squares = _mm512_fmadd_ps(load(from + i), load(from + i), squares);
    factor = _mm512_set1_ps(norm_factor(_mm512_reduce_add_ps(squares), a.head_dim, a.eps));
  }
  for (int64_t i = 0; i < half; i += kLanes) {
    __m512 first = load(from + i), second = load(from + half + i);
    if (gain) {
      first = _mm512_mul_ps(_mm512_mul_ps(first, factor), _mm512_loadu_ps(gain + i));
      second = _mm512_mul_ps(_mm512_mul_ps(second, factor), _mm512_loadu_ps(gain + half + i));
    }
    const __m512 cos = _mm512_loadu_ps(a.cos + position * half + i), sin = _mm512_loadu_ps(a.sin + position * half + i);
    store(to + i, _mm512_fmsub_ps(first, cos, _mm512_mul_ps(second, sin)));
    store(to + half + i, _mm512_fmadd_ps(second, cos, _mm512_mul_ps(first, sin)));
  }
}

// Put a key and a value at position `age` of a row's slot.
void keep(const AttendArguments& a, const bf16* key, const bf16* value, int64_t age, bf16* keys, bf16* values) {
  const int64_t block = age / kLanes * kLanes * a.head_dim, place = age % kLanes;
  for (int64_t i = 0; i < a.head_dim / 2; i++) {
    keys[block + (i * kLanes + place) * 2] = key[2 * i];
    keys[block + (i * kLanes + place) * 2 + 1] = key[2 * i + 1];
  }
  for (int64_t e = 0; e < a.head_dim; e++) values[block + (place / 2 * a.head_dim + e) * 2 + place % 2] = value[e];
}

// scores[r][j] = query r . key j * scale for R queries and the positions of a segment; kMasked outside of it.
template <int R>
void score(const AttendArguments& a, const Segment& segment, const bf16* queries, float* scores, int64_t stride) {
  const int64_t num_pairs = a.head_dim / 2;
  const __m512 scale = _mm512_set1_ps(a.scale);
  for (int64_t b = 0; b < segment.num_blocks(); b++) {
    const int64_t start = (segment.first_block() + b) * kLanes;
    const bf16* keys = segment.keys + start * a.head_dim;
    // Two sums for each query: one alone would wait for itself.
    __m512 sums[R][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < num_pairs; i += 2) {
      const bf16 *at_even = keys + i * 2 * kLanes, *at_odd = at_even + 2 * kLanes;
      const __m512bh even = pairs(at_even), odd = pairs(at_odd);
      fetch(at_even + segment.ahead);
      fetch(at_odd + segment.ahead);
      for (int r = 0; r < R; r++) {
        const uint32_t* query = reinterpret_cast<const uint32_t*>(queries + r * a.head_dim);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], broadcast_pair(query[i]), even);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], broadcast_pair(query[i + 1]), odd);
      }
    }
    const int64_t low = std::max<int64_t>(segment.begin - start, 0), high = std::min(segment.end - start, kLanes);
    const __mmask16 inside = __mmask16(((1u << high) - 1) & ~((1u << low) - 1));
    for (int r = 0; r < R; r++) {
      const __m512 product = _mm512_mul_ps(_mm512_add_ps(sums[r][0], sums[r][1]), scale);
      _mm512_storeu_ps(scores + r * stride + b * kLanes, _mm512_mask_blend_ps(inside, _mm512_set1_ps(kMasked), product));
    }
  }
}

// weights = exp(scores - max) in bfloat16. Returns 1 / their sum, so that what is multiplied later adds up to 1.
float soften(float* scores, bf16* weights, int64_t length) {
  __m512 highest = _mm512_set1_ps(kMasked);
  for (int64_t j = 0; j < length; j += kLanes) highest = _mm512_max_ps(highest, _mm512_loadu_ps(scores + j));
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < length; j += kLanes) {
    const __m256i weight = rounded(exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + j), top)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), weight);
    sum = _mm512_add_ps(sum, widened(weight));
  }
  return 1.0f / _mm512_reduce_add_ps(sum);
}

// out[r][e] = sum over segments and positions of weights[r][j] * value j, times factors[r]; D vectors of dimensions at a time.
template <int R, int D>
void mix(const AttendArguments& a, const Segment* segments, const bf16* weights, int64_t stride, const float* factors,
         bf16* out) {
  for (int64_t e = 0; e < a.head_dim; e += D * kLanes) {
    __m512 sums[R][D];
    for (int r = 0; r < R; r++) {
      for (int d = 0; d < D; d++) sums[r][d] = _mm512_setzero_ps();
    }
    const bf16* block_weights = weights;
    for (int s = 0; s < 2; s++) {
      const bf16* values = segments[s].values + segments[s].first_block() * kLanes * a.head_dim + e * 2;
      const int64_t num_pairs = segments[s].num_blocks() * kLanes / 2;
      for (int64_t pair = 0; pair < num_pairs; pair++) {
        __m512bh vectors[D];
        for (int d = 0; d < D; d++) {
          vectors[d] = pairs(values + d * 2 * kLanes);
          fetch(values + d * 2 * kLanes + segments[s].ahead);
        }
        for (int r = 0; r < R; r++) {
          const __m512bh weight = broadcast_pair(reinterpret_cast<const uint32_t*>(block_weights + r * stride)[pair]);
          for (int d = 0; d < D; d++) sums[r][d] = _mm512_dpbf16_ps(sums[r][d], weight, vectors[d]);
        }
        values += 2 * a.head_dim;
      }
      block_weights += segments[s].num_blocks() * kLanes;
    }
    for (int r = 0; r < R; r++) {
      const __m512 factor = _mm512_set1_ps(factors[r]);
      for (int d = 0; d < D; d++) store(out + r * a.head_dim + e + d * kLanes, _mm512_mul_ps(sums[r][d], factor));
    }
  }
}

// Attention of one row over one key-value head, for the R query heads that share it.
template <int R>
void attend_head(const AttendArguments& a, int64_t row, int64_t kv, Scratch& scratch) {
  const int64_t width = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
  const bf16* heads = a.qkv + row * width;
  const int64_t length = a.prompt_lengths[row], age = a.ages[row], position = length + age;
  scratch.queries.resize(R * a.head_dim);
  for (int r = 0; r < R; r++) {
    rotate_head(a, heads + (kv * R + r) * a.head_dim, a.query_norm, position, scratch.queries.data() + r * a.head_dim);
  }
  const int64_t slot_size = a.row_blocks * kLanes * a.head_dim, row_size = a.num_kv_heads * slot_size;
  bf16* row_keys = a.row_keys + row * row_size + kv * slot_size;
  bf16* row_values = a.row_values + row * row_size + kv * slot_size;
  bf16 key[kMaxHeadDim];
  rotate_head(a, heads + (a.num_heads + kv) * a.head_dim, a.key_norm, position, key);
  keep(a, key, heads + (a.num_heads + a.num_kv_heads + kv) * a.head_dim, age, row_keys, row_values);

  const int64_t first = a.window ? std::max<int64_t>(position - a.window + 1, 0) : 0;
  const int64_t prompt = (a.prompt_slots[row] * a.num_kv_heads + kv) * a.prompt_blocks * kLanes * a.head_dim;
  const Segment segments[2] = {
      {a.prompt_keys + prompt, a.prompt_values + prompt, std::min(first, length), length, 0},
      {row_keys, row_values, std::max<int64_t>(first - length, 0), age + 1, row_size},
  };
  const int64_t prompt_width = segments[0].num_blocks() * kLanes;
  const int64_t stride = prompt_width + segments[1].num_blocks() * kLanes;
  scratch.scores.resize(R * stride);
  scratch.weights.resize(R * stride);
  score<R>(a, segments[0], scratch.queries.data(), scratch.scores.data(), stride);
  score<R>(a, segments[1], scratch.queries.data(), scratch.scores.data() + prompt_width, stride);
  float factors[R];
  for (int r = 0; r < R; r++) {
    factors[r] = soften(scratch.scores.data() + r * stride, scratch.weights.data() + r * stride, stride);
  }
  bf16* out = a.out + (row * a.num_heads + kv * R) * a.head_dim;
  if (R * 4 <= kMostSums && a.head_dim % (4 * kLanes) == 0) {
    mix<R, 4>(a, segments, scratch.weights.data(), stride, factors, out);
  } else {
    mix<R, 2>(a, segments, scratch.weights.data(), stride, factors, out);
  }
}

template <int R>
void attend(const AttendArguments& a) {
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    // Row by row for one key-value head: neighbours often share a prompt, which then stays in the cache.
#pragma omp for schedule(static)
    for (int64_t task = 0; task < a.num_kv_heads * a.num_rows; task++) {
      attend_head<R>(a, task % a.num_rows, task / a.num_rows, scratch);
    }
  }
}

}  // namespace

extern "C" {

// Rotate queries and keys (after a norm, if gains are given), keep the new key and value of each row, and attend to the
// row's prompt and to its own positions. head_dim: a multiple of 32, at most 256; at most 8 query heads for each
// key-value head.
void covey_attend(const AttendArguments* a) {
  switch (a->num_heads / a->num_kv_heads) {
    case 1: return attend<1>(*a);
    case 2: return attend<2>(*a);
    case 3: return attend<3>(*a);
    case 4: return attend<4>(*a);
    case 5: return attend<5>(*a);
    case 6: return attend<6>(*a);
    case 7: return attend<7>(*a);
    case 8: return attend<8>(*a);
  }
}

// Draw from softmax(logits / temperature) by inverse CDF in token order: token = the first whose cumulative probability
// exceeds the uniform number. Masses are float32, their sums float64: of blocks first, so that only one block is searched.
void covey_draw(const bf16* logits, const double* numbers, float inverse_temperature, int64_t* tokens, float* logprobs,
                int64_t num_rows, int64_t vocab_size) {
  constexpr int64_t kBlock = 256;
  const int64_t num_blocks = (vocab_size + kBlock - 1) / kBlock;
  const __m512 inverse = _mm512_set1_ps(inverse_temperature);
#pragma omp parallel
  {
    std::vector<double> block_masses(num_blocks);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; row++) {
      const bf16* x = logits + row * vocab_size;
      const auto at = [&](int64_t i) { return load_within(x, i, vocab_size); };
      __m512 highest = _mm512_set1_ps(kMasked);
      for (int64_t i = 0; i < vocab_size; i += kLanes) highest = _mm512_max_ps(highest, at(i));
      const float top = _mm512_reduce_max_ps(highest) * inverse_temperature;
      const auto masses_at = [&](int64_t i) { return exponential(_mm512_fmsub_ps(at(i), inverse, _mm512_set1_ps(top))); };

      double total = 0;
      for (int64_t block = 0; block < num_blocks; block++) {
        __m512d sum = _mm512_setzero_pd();
        const int64_t end = std::min((block + 1) * kBlock, vocab_size);
        for (int64_t i = block * kBlock; i < end; i += kLanes) {
          const __m512 masses = masses_at(i);
          sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(masses)));
          sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(masses, 1)));
        }
        block_masses[block] = _mm512_reduce_add_pd(sum);
        total += block_masses[block];
      }

      double rest = numbers[row] * total;
      int64_t block = 0, last = 0;  // `last` block that has any mass: rounding may leave a rest behind it
      for (int64_t b = 0; b < num_blocks; b++) {
        block = b;
        if (block_masses[b] > 0) last = b;
        if (rest < block_masses[b]) break;
        if (b + 1 == num_blocks) {
          block = last;
          rest = block_masses[last];
          break;
        }
        rest -= block_masses[b];
      }

      int64_t token = block * kBlock;
      bool is_found = false;
      for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, vocab_size) && !is_found; i += kLanes) {
        alignas(64) float masses[kLanes];
        _mm512_store_ps(masses, masses_at(i));
        for (int64_t j = 0; j < kLanes && i + j < vocab_size && !is_found; j++) {
          if (masses[j] > 0) token = i + j;
          is_found = rest < masses[j];
          rest -= masses[j];
        }
      }
      tokens[row] = token;
      logprobs[row] = float(double(widened(x[token])) * inverse_temperature - top - std::log(total));
    }
  }
}

}  // extern "C"
