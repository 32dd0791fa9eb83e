// Attention over packed tokens, forward and backward: a prompt sees itself, a completion its prompt and itself.
//
// Scores and their gradients live in tiles and are never kept (FlashAttention, arXiv 2205.14135): the backward pass makes
// them again from the log of each query's sum. The two products of products.h do all the work.

#include "products.h"

extern "C" {

// Mirrored by `AttentionArguments` in models/packed/kernels.py. Heads of a token: queries, then keys, then values.
struct AttentionArguments {
  const bf16* heads;       // [tokens][heads + 2 kv heads][E], rotated
  bf16* out;               // [tokens][heads][E]
  float* log_sums;         // [tokens][heads]
  const bf16* grad;        // [tokens][heads][E], backward only
  bf16* grad_heads;        // as heads, backward only
  const int64_t* offsets;  // spans: their number; of each, its rows, prompt start, row starts, and the end of the last row
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t window;          // how many positions a token sees, itself included; 0: all before it
  float scale;
};

}  // extern "C"

namespace {

constexpr int64_t kTile = 64;  // queries whose scores exist at once
constexpr int64_t kTileBlocks = kTile / kLanes;
constexpr float kNoMass = 1e30f;  // in place of a log sum: e^(score - it) is 0

inline int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A sequence of queries and the keys before and among them: of its prompt, if it has one, and its own.
struct Sequence {
  int64_t prompt, prompt_length, start, length;
  int64_t num_keys() const { return prompt_length + length; }
  int64_t token_of_key(int64_t key) const { return key < prompt_length ? prompt + key : start + key - prompt_length; }
};

// Where the heads of a token are.
struct Heads {
  explicit Heads(const AttentionArguments& arguments) : a(arguments) {}
  int64_t width() const { return (a.num_heads + 2 * a.num_kv_heads) * a.head_dim; }
  int64_t key(int64_t kv) const { return (a.num_heads + kv) * a.head_dim; }
  int64_t value(int64_t kv) const { return (a.num_heads + a.num_kv_heads + kv) * a.head_dim; }
  Rows rows(int64_t head_offset, int64_t token, int64_t count) const {
    return {a.heads + token * width() + head_offset, width(), count};
  }
  const AttentionArguments& a;
};

// Both parts of a sequence's keys (or values), one behind the other.
template <typename LayOut>
void lay_out_keys(const Heads& heads, const Sequence& s, int64_t head_offset, LayOut lay_out, std::vector<bf16>& to) {
  to.assign(rounded_up(s.num_keys(), kLanes) * heads.a.head_dim, 0);
  lay_out(heads.rows(head_offset, s.prompt, s.prompt_length), heads.a.head_dim, 0, to.data());
  lay_out(heads.rows(head_offset, s.start, s.length), heads.a.head_dim, s.prompt_length, to.data());
}

// Which keys query `i` of a sequence sees: [first, last).
struct Visible {
  Visible(const AttentionArguments& a, const Sequence& s, int64_t i)
      : first(a.window ? std::max<int64_t>(s.prompt_length + i - a.window + 1, 0) : 0), last(s.prompt_length + i + 1) {}
  int64_t first, last;
};

struct ForwardScratch {
  std::vector<bf16> keys, values, weights, zeros;
  std::vector<float> scores, mixed;
};

// One row of scores to weights in bfloat16. Returns the log of their sum, and 1 / the sum of the rounded ones.
struct Softened {
  float log_sum, factor;
};
Softened soften(float* scores, const Visible& visible, float scale, int64_t num_padded, bf16* weights) {
  const __m512 masked = _mm512_set1_ps(kMasked), factor = _mm512_set1_ps(scale);
  __m512 highest = masked;
  for (int64_t j = 0; j < num_padded; j += kLanes) {
    const int64_t low = std::clamp<int64_t>(visible.first - j, 0, kLanes);
    const int64_t high = std::clamp<int64_t>(visible.last - j, 0, kLanes);
    const __mmask16 inside = __mmask16(((1u << high) - 1) & ~((1u << low) - 1));
    const __m512 seen = _mm512_mask_blend_ps(inside, masked, _mm512_mul_ps(_mm512_loadu_ps(scores + j), factor));
    _mm512_storeu_ps(scores + j, seen);
    highest = _mm512_max_ps(highest, seen);
  }
  const float top = _mm512_reduce_max_ps(highest);
  __m512 sum = _mm512_setzero_ps(), rounded_sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < num_padded; j += kLanes) {
    const __m512 mass = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(top)));
    const __m256i weight = rounded(mass);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), weight);
    sum = _mm512_add_ps(sum, mass);
    rounded_sum = _mm512_add_ps(rounded_sum, widened(weight));
  }
  return {top + std::log(_mm512_reduce_add_ps(sum)), 1.0f / _mm512_reduce_add_ps(rounded_sum)};
}

// Outputs and log sums of one query head in one tile of a sequence.
void attend_tile(const Heads& heads, const Sequence& s, int64_t head, int64_t first, ForwardScratch& scratch) {
  const AttentionArguments& a = heads.a;
  const int64_t count = std::min(kTile, s.length - first), padded = rounded_up(count, kRows);
  const int64_t num_padded = rounded_up(s.prompt_length + first + count, kLanes);
  const Rows queries = heads.rows(head * a.head_dim, s.start + first, count);
  scratch.scores.resize(kTile * num_padded);
  scratch.weights.resize(kTile * num_padded);
  scratch.mixed.resize(kTile * a.head_dim);
  scratch.zeros.assign(a.head_dim, 0);
  for (int64_t i = 0; i < padded; i += kRows) {
    const bf16* rows[kRows];
    for (int64_t r = 0; r < kRows; r++) {
      rows[r] = i + r < count ? queries.first + (i + r) * queries.stride : scratch.zeros.data();
    }
    for (int64_t j = 0; j < num_padded; j += kLanes) {
      dot(rows, scratch.keys.data() + j * a.head_dim, a.head_dim / 2, scratch.scores.data() + i * num_padded + j, num_padded);
    }
  }
  float factors[kTile];
  for (int64_t i = 0; i < padded; i++) {
    const Visible visible(a, s, first + std::min(i, count - 1));
    const Softened softened = soften(scratch.scores.data() + i * num_padded, visible, a.scale, num_padded,
                                     scratch.weights.data() + i * num_padded);
    factors[i] = softened.factor;
    if (i < count) a.log_sums[(s.start + first + i) * a.num_heads + head] = softened.log_sum;
  }
  for (int64_t i = 0; i < padded; i += kRows) {
    mix<false>(scratch.weights.data() + i * num_padded, num_padded, scratch.values.data(), num_padded / 2,
               scratch.mixed.data() + i * a.head_dim, a.head_dim);
  }
  for (int64_t i = 0; i < count; i++) {
    bf16* to = a.out + ((s.start + first + i) * a.num_heads + head) * a.head_dim;
    for (int64_t e = 0; e < a.head_dim; e += kLanes) {
      store(to + e, _mm512_mul_ps(_mm512_loadu_ps(scratch.mixed.data() + i * a.head_dim + e), _mm512_set1_ps(factors[i])));
    }
  }
}

struct BackwardScratch {
  std::vector<bf16> key_pairs;                                                     // of the sequence
  std::vector<bf16> query_columns, query_pairs, grad_columns, grad_pairs;          // of the tile
  std::vector<bf16> weights, slopes, slopes_by_query, zeros;                       // [keys][tile], [tile][keys]
  std::vector<float> grad_queries, grad_keys, grad_values, prompt_keys, prompt_values;
};

// Of the queries of a tile: log sums, and sums of gradient times output; what is behind the last one has no mass.
struct TileSums {
  float log_sums[kTile], products[kTile];
};

TileSums tile_sums(const AttentionArguments& a, const Sequence& s, int64_t head, int64_t first, int64_t count) {
  TileSums sums;
  for (int64_t i = 0; i < kTile; i++) {
    sums.log_sums[i] = kNoMass;
    sums.products[i] = 0;
    if (i >= count) continue;
    const int64_t place = (s.start + first + i) * a.num_heads + head;
    __m512 product = _mm512_setzero_ps();
    for (int64_t e = 0; e < a.head_dim; e += kLanes) {
      product = _mm512_fmadd_ps(load(a.grad + place * a.head_dim + e), load(a.out + place * a.head_dim + e), product);
    }
    sums.log_sums[i] = a.log_sums[place];
    sums.products[i] = _mm512_reduce_add_ps(product);
  }
  return sums;
}

// Weights P and slopes dS = P (dP - sum) scale of eight keys and all queries of a tile, [keys][tile] each.
void soften_backward(const AttentionArguments& a, const Sequence& s, int64_t first, int64_t key, const TileSums& sums,
                     const float* scores, const float* grads, bf16* weights, bf16* slopes) {
  const __m512 scale = _mm512_set1_ps(a.scale);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t r = 0; r < kRows; r++) {
    for (int64_t i = 0; i < kTile; i += kLanes) {
      // A query sees the keys up to its own position, and not those `window` or more before it.
      const int32_t distance = int32_t(s.prompt_length + first + i - (key + r));
      const __m512i distances = _mm512_add_epi32(lanes, _mm512_set1_epi32(distance));
      __mmask16 seen = _mm512_cmpge_epi32_mask(distances, _mm512_setzero_si512());
      if (a.window) seen &= _mm512_cmplt_epi32_mask(distances, _mm512_set1_epi32(int32_t(a.window)));
      const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + r * kTile + i), scale);
      const __m512 mass = exponential(_mm512_sub_ps(score, _mm512_loadu_ps(sums.log_sums + i)));
      const __m512 weight = _mm512_maskz_mov_ps(seen, mass);
      const __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(grads + r * kTile + i), _mm512_loadu_ps(sums.products + i));
      store(weights + r * kTile + i, weight);
      store(slopes + r * kTile + i, _mm512_mul_ps(_mm512_mul_ps(weight, slope), scale));
    }
  }
}

// Add what one query head of one tile gives to the gradients of keys and values; write the gradient of its queries.
void attend_tile_backward(const Heads& heads, const Sequence& s, int64_t kv, int64_t head, int64_t first,
                          BackwardScratch& scratch) {
  const AttentionArguments& a = heads.a;
  const int64_t count = std::min(kTile, s.length - first), width = a.head_dim;
  const int64_t num_keys = s.prompt_length + first + count, padded_keys = rounded_up(num_keys, kRows);
  const Rows queries = heads.rows(head * width, s.start + first, count);
  const Rows grads{a.grad + ((s.start + first) * a.num_heads + head) * width, a.num_heads * width, count};
  for (auto* columns : {&scratch.query_columns, &scratch.query_pairs, &scratch.grad_columns, &scratch.grad_pairs}) {
    columns->assign(kTile * width, 0);
  }
  lay_out_columns(queries, width, 0, scratch.query_columns.data());
  lay_out_pairs(queries, width, 0, scratch.query_pairs.data());
  lay_out_columns(grads, width, 0, scratch.grad_columns.data());
  lay_out_pairs(grads, width, 0, scratch.grad_pairs.data());
  const TileSums sums = tile_sums(a, s, head, first, count);
  scratch.weights.resize(padded_keys * kTile);
  scratch.slopes.resize(padded_keys * kTile);
  for (int64_t key = 0; key < padded_keys; key += kRows) {
    const bf16 *key_rows[kRows], *value_rows[kRows];
    for (int64_t r = 0; r < kRows; r++) {
      const bool exists = key + r < num_keys;
      const bf16* token = exists ? a.heads + s.token_of_key(key + r) * heads.width() : nullptr;
      key_rows[r] = exists ? token + heads.key(kv) : scratch.zeros.data();
      value_rows[r] = exists ? token + heads.value(kv) : scratch.zeros.data();
    }
    float scores[kRows * kTile], value_grads[kRows * kTile];
    for (int64_t block = 0; block < kTileBlocks; block++) {
      const int64_t at = block * kLanes;
      dot(key_rows, scratch.query_columns.data() + at * width, width / 2, scores + at, kTile);
      dot(value_rows, scratch.grad_columns.data() + at * width, width / 2, value_grads + at, kTile);
    }
    soften_backward(a, s, first, key, sums, scores, value_grads, scratch.weights.data() + key * kTile,
                    scratch.slopes.data() + key * kTile);
  }
  for (int64_t key = 0; key < padded_keys; key += kRows) {
    mix<true>(scratch.weights.data() + key * kTile, kTile, scratch.grad_pairs.data(), kTile / 2,
              scratch.grad_values.data() + key * width, width);
    mix<true>(scratch.slopes.data() + key * kTile, kTile, scratch.query_pairs.data(), kTile / 2,
              scratch.grad_keys.data() + key * width, width);
  }
  scratch.slopes_by_query.resize(kTile * padded_keys);
  uint32_t* pairs_by_query = reinterpret_cast<uint32_t*>(scratch.slopes_by_query.data());
  for (int64_t key = 0; key < padded_keys; key += 2) {
    const bf16 *even = scratch.slopes.data() + key * kTile, *odd = even + kTile;
    for (int64_t i = 0; i < kTile; i++) pairs_by_query[(i * padded_keys + key) / 2] = even[i] | uint32_t(odd[i]) << 16;
  }
  scratch.grad_queries.resize(kTile * width);
  for (int64_t i = 0; i < count; i += kRows) {
    mix<false>(scratch.slopes_by_query.data() + i * padded_keys, padded_keys, scratch.key_pairs.data(), padded_keys / 2,
               scratch.grad_queries.data() + i * width, width);
  }
  for (int64_t i = 0; i < count; i++) {
    bf16* to = a.grad_heads + (s.start + first + i) * heads.width() + head * width;
    for (int64_t e = 0; e < width; e += kLanes) store(to + e, _mm512_loadu_ps(scratch.grad_queries.data() + i * width + e));
  }
}

// Round rows of float32 gradients into a key or value head of consecutive tokens.
void write_head(const Heads& heads, const float* from, int64_t token, int64_t count, int64_t head_offset) {
  for (int64_t n = 0; n < count; n++) {
    bf16* to = heads.a.grad_heads + (token + n) * heads.width() + head_offset;
    for (int64_t e = 0; e < heads.a.head_dim; e += kLanes) store(to + e, _mm512_loadu_ps(from + n * heads.a.head_dim + e));
  }
}

// Everything of one key-value head in one span: its prompt's keys collect what all rows give them.
void attend_span_backward(const Heads& heads, const std::vector<Sequence>& span, int64_t kv, BackwardScratch& scratch) {
  const AttentionArguments& a = heads.a;
  const int64_t per_kv = a.num_heads / a.num_kv_heads, width = a.head_dim;
  const int64_t prompt_size = span[0].length * width;
  scratch.zeros.assign(width, 0);
  scratch.prompt_keys.assign(prompt_size, 0.0f);
  scratch.prompt_values.assign(prompt_size, 0.0f);
  for (const Sequence& s : span) {
    const int64_t size = rounded_up(s.num_keys(), kLanes) * width;
    lay_out_keys(heads, s, heads.key(kv), lay_out_pairs, scratch.key_pairs);
    scratch.grad_keys.assign(size, 0.0f);
    scratch.grad_values.assign(size, 0.0f);
    for (int64_t head = kv * per_kv; head < (kv + 1) * per_kv; head++) {
      for (int64_t first = 0; first < s.length; first += kTile) attend_tile_backward(heads, s, kv, head, first, scratch);
    }
    const bool is_prompt = s.prompt_length == 0;
    const int64_t num_shared = is_prompt ? prompt_size : s.prompt_length * width;
    for (int64_t i = 0; i < num_shared; i++) {
      scratch.prompt_keys[i] += scratch.grad_keys[i];
      scratch.prompt_values[i] += scratch.grad_values[i];
    }
    if (is_prompt) continue;
    write_head(heads, scratch.grad_keys.data() + num_shared, s.start, s.length, heads.key(kv));
    write_head(heads, scratch.grad_values.data() + num_shared, s.start, s.length, heads.value(kv));
  }
  write_head(heads, scratch.prompt_keys.data(), span[0].start, span[0].length, heads.key(kv));
  write_head(heads, scratch.prompt_values.data(), span[0].start, span[0].length, heads.value(kv));
}

// Of each span, its prompt as a sequence of its own, and its rows.
std::vector<std::vector<Sequence>> read_spans(const int64_t* offsets) {
  std::vector<std::vector<Sequence>> spans(*offsets++);
  for (auto& span : spans) {
    const int64_t num_rows = *offsets++, prompt = *offsets++, prompt_length = offsets[0] - prompt;
    span.push_back({prompt, 0, prompt, prompt_length});
    for (int64_t row = 0; row < num_rows; row++) {
      span.push_back({prompt, prompt_length, offsets[row], offsets[row + 1] - offsets[row]});
    }
    offsets += num_rows + 1;
  }
  return spans;
}

}  // namespace

extern "C" {

// out = softmax(q k^T scale) v of every query head. head_dim: a multiple of 32.
void covey_train_attend(const AttentionArguments* a) {
  std::vector<Sequence> sequences;
  for (const auto& span : read_spans(a->offsets)) sequences.insert(sequences.end(), span.begin(), span.end());
  const int64_t per_kv = a->num_heads / a->num_kv_heads, num_tasks = int64_t(sequences.size()) * a->num_kv_heads;
#pragma omp parallel
  {
    static thread_local ForwardScratch scratch;
    const Heads heads(*a);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
      const Sequence& s = sequences[task / a->num_kv_heads];
      const int64_t kv = task % a->num_kv_heads;
      lay_out_keys(heads, s, heads.key(kv), lay_out_columns, scratch.keys);
      lay_out_keys(heads, s, heads.value(kv), lay_out_pairs, scratch.values);
      for (int64_t head = kv * per_kv; head < (kv + 1) * per_kv; head++) {
        for (int64_t first = 0; first < s.length; first += kTile) attend_tile(heads, s, head, first, scratch);
      }
    }
  }
}

// grad_heads from grad, heads, out and log_sums.
void covey_train_attend_backward(const AttentionArguments* a) {
  const auto spans = read_spans(a->offsets);
  const int64_t num_tasks = int64_t(spans.size()) * a->num_kv_heads;
#pragma omp parallel
  {
    static thread_local BackwardScratch scratch;
    const Heads heads(*a);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
      attend_span_backward(heads, spans[task / a->num_kv_heads], task % a->num_kv_heads, scratch);
    }
  }
}

}  // extern "C"
