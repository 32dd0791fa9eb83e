// What happens between the matrix products of training, forward and backward; attention is in attention.cpp.
//
// Residual stream and its gradient in float32, everything else bfloat16 in memory and float32 inside.

#include <omp.h>

#include "vectors.h"

namespace {

constexpr float kLeastLog = -110.0f;  // e^x is 0 from here on down: in place of minus infinity, whose product with 0 is not 0

}  // namespace

extern "C" {

// total = x + branch (branch may be null: then total is not written); normed = total / rms(total) * gain.
void covey_train_add_norm(const float* x, const bf16* branch, const float* gain, float* total, bf16* normed,
                          int64_t num_rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const float* from = x + row * width;
    const float* sums = branch ? total + row * width : from;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += kLanes) {
      __m512 values = _mm512_loadu_ps(from + i);
      if (branch) {
        values = _mm512_add_ps(values, load(branch + row * width + i));
        _mm512_storeu_ps(total + row * width + i, values);
      }
      squares = _mm512_fmadd_ps(values, values, squares);
    }
    const __m512 factor = _mm512_set1_ps(norm_factor(_mm512_reduce_add_ps(squares), width, eps));
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(sums + i), factor);
      store(normed + row * width + i, _mm512_mul_ps(unit, _mm512_loadu_ps(gain + i)));
    }
  }
}

// With u = total / rms and h = u * gain: grad = grad_sum + (g - u mean(g u)) / rms for g = grad_normed * gain, and
// grad_gain = sum over rows of grad_normed * u. grad_sum may be null. `partial_gains`: [threads][width], zeros.
void covey_train_add_norm_backward(const float* grad_sum, const bf16* grad_normed, const float* total, const float* gain,
                                   float* grad, bf16* rounded_grad, float* partial_gains, int64_t num_rows, int64_t width,
                                   float eps) {
#pragma omp parallel
  {
    float* gains = partial_gains + omp_get_thread_num() * width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; row++) {
      const float* x = total + row * width;
      const bf16* from = grad_normed + row * width;
      __m512 squares = _mm512_setzero_ps(), products = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += kLanes) {
        const __m512 values = _mm512_loadu_ps(x + i), scaled = _mm512_mul_ps(load(from + i), _mm512_loadu_ps(gain + i));
        squares = _mm512_fmadd_ps(values, values, squares);
        products = _mm512_fmadd_ps(values, scaled, products);
      }
      const float inverse = norm_factor(_mm512_reduce_add_ps(squares), width, eps);
      const __m512 factor = _mm512_set1_ps(inverse);
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(products) * inverse / float(width));
      for (int64_t i = 0; i < width; i += kLanes) {
        const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor), given = load(from + i);
        _mm512_storeu_ps(gains + i, _mm512_fmadd_ps(given, unit, _mm512_loadu_ps(gains + i)));
        const __m512 scaled = _mm512_mul_ps(given, _mm512_loadu_ps(gain + i));
        __m512 found = _mm512_mul_ps(_mm512_fnmadd_ps(unit, mean, scaled), factor);
        if (grad_sum) found = _mm512_add_ps(found, _mm512_loadu_ps(grad_sum + row * width + i));
        _mm512_storeu_ps(grad + row * width + i, found);
        store(rounded_grad + row * width + i, found);
      }
    }
  }
}

// Gradient of [gate | up] for out = a(gate) * up. See covey_gated for the activations.
void covey_train_gated_backward(const bf16* grad, const bf16* gate_up, bf16* out, int64_t num_rows, int64_t width,
                                int32_t activation) {
  const __m512 one = _mm512_set1_ps(1.0f), cubic = _mm512_set1_ps(0.044715f), slope = _mm512_set1_ps(1.59576912f);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const bf16* gates = gate_up + row * 2 * width;
    bf16* to = out + row * 2 * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const __m512 gate = load(gates + i), up = load(gates + width + i), given = load(grad + row * width + i);
      __m512 inner = gate, inner_slope = one;
      if (activation == 1) {
        const __m512 square = _mm512_mul_ps(gate, gate);
        inner = _mm512_mul_ps(_mm512_mul_ps(slope, gate), _mm512_fmadd_ps(square, cubic, one));
        inner_slope = _mm512_mul_ps(slope, _mm512_fmadd_ps(square, _mm512_set1_ps(3 * 0.044715f), one));
      }
      const __m512 share = sigmoid(inner), activated = _mm512_mul_ps(gate, share);
      // a' = s + gate s (1 - s) inner'
      const __m512 bend = _mm512_mul_ps(_mm512_mul_ps(activated, _mm512_sub_ps(one, share)), inner_slope);
      store(to + i, _mm512_mul_ps(_mm512_mul_ps(given, up), _mm512_add_ps(share, bend)));
      store(to + width + i, _mm512_mul_ps(given, activated));
    }
  }
}

// Turn the first `num_rotated` of `num_heads` heads of each token, copy the others. cos, sin: [tokens][head_dim / 2].
void covey_train_rotate(const bf16* heads, const float* cos, const float* sin, bf16* out, int64_t num_tokens,
                        int64_t num_heads, int64_t num_rotated, int64_t head_dim) {
  const int64_t half = head_dim / 2;
#pragma omp parallel for schedule(static)
  for (int64_t token = 0; token < num_tokens; token++) {
    for (int64_t head = 0; head < num_heads; head++) {
      const bf16* from = heads + (token * num_heads + head) * head_dim;
      bf16* to = out + (token * num_heads + head) * head_dim;
      if (head >= num_rotated) {
        std::copy(from, from + head_dim, to);
        continue;
      }
      for (int64_t i = 0; i < half; i += kLanes) {
        const __m512 first = load(from + i), second = load(from + half + i);
        const __m512 c = _mm512_loadu_ps(cos + token * half + i), s = _mm512_loadu_ps(sin + token * half + i);
        store(to + i, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
        store(to + half + i, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
      }
    }
  }
}

// Of z = logits / temperature: log Z, z[target] - log Z, and the entropy log Z - sum p z. Sums over the vocabulary are
// float32 within blocks and float64 beyond.
void covey_train_score(const bf16* logits, const int64_t* targets, float inverse_temperature, float* logprobs,
                       float* entropies, float* log_sums, int64_t num_rows, int64_t vocab_size) {
  constexpr int64_t kBlock = 1024;
  const __m512 inverse = _mm512_set1_ps(inverse_temperature);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const bf16* x = logits + row * vocab_size;
    const auto at = [&](int64_t i) { return load_within(x, i, vocab_size); };
    __m512 highest = _mm512_set1_ps(kMasked);
    for (int64_t i = 0; i < vocab_size; i += kLanes) highest = _mm512_max_ps(highest, at(i));
    const float top = _mm512_reduce_max_ps(highest) * inverse_temperature;
    double total = 0, weighted = 0;
    for (int64_t block = 0; block < vocab_size; block += kBlock) {
      __m512 sum = _mm512_setzero_ps(), moment = _mm512_setzero_ps();
      for (int64_t i = block; i < std::min(block + kBlock, vocab_size); i += kLanes) {
        const __m512 z = _mm512_max_ps(_mm512_set1_ps(kLeastLog), _mm512_fmsub_ps(at(i), inverse, _mm512_set1_ps(top)));
        const __m512 mass = exponential(z);
        sum = _mm512_add_ps(sum, mass);
        moment = _mm512_fmadd_ps(mass, z, moment);
      }
      total += _mm512_reduce_add_ps(sum);
      weighted += _mm512_reduce_add_ps(moment);
    }
    const double log_sum = std::log(total);
    logprobs[row] = float(double(widened(x[targets[row]])) * inverse_temperature - top - log_sum);
    entropies[row] = float(log_sum - weighted / total);
    log_sums[row] = float(top + log_sum);
  }
}

// Write the gradient of the logits over them: (g (1[target] - p) - e p (log p + H)) / temperature, for the gradients g of
// the log-prob and e (may be null) of the entropy H.
void covey_train_score_backward(bf16* logits, const int64_t* targets, const float* grad_logprobs,
                                const float* grad_entropies, const float* entropies, const float* log_sums,
                                float inverse_temperature, int64_t num_rows, int64_t vocab_size) {
  const __m512 inverse = _mm512_set1_ps(inverse_temperature);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    bf16* x = logits + row * vocab_size;
    const float chosen = std::max(widened(x[targets[row]]) * inverse_temperature - log_sums[row], kLeastLog);
    const float given = grad_logprobs[row], bonus = grad_entropies ? grad_entropies[row] : 0.0f;
    const auto slope = [&](__m512 log_p) {
      const __m512 sum = _mm512_add_ps(log_p, _mm512_set1_ps(entropies[row]));
      return _mm512_fmadd_ps(_mm512_set1_ps(bonus), sum, _mm512_set1_ps(given));
    };
    for (int64_t i = 0; i < vocab_size; i += kLanes) {
      const __mmask16 inside = vocab_size - i >= kLanes ? __mmask16(0xffff) : __mmask16((1u << (vocab_size - i)) - 1);
      const __m512 raw = widened(_mm256_maskz_loadu_epi16(inside, x + i));
      const __m512 log_p = _mm512_max_ps(_mm512_set1_ps(kLeastLog), _mm512_fmsub_ps(raw, inverse, _mm512_set1_ps(log_sums[row])));
      const __m512 grad = _mm512_mul_ps(_mm512_mul_ps(exponential(log_p), slope(log_p)), inverse);
      _mm256_mask_storeu_epi16(x + i, inside, rounded(_mm512_sub_ps(_mm512_setzero_ps(), grad)));
    }
    const float p = std::exp(chosen);
    const float at_target = (given - p * (given + bonus * (chosen + entropies[row]))) * inverse_temperature;
    alignas(64) float lanes[kLanes] = {at_target};
    bf16 narrowed[kLanes];
    store(narrowed, _mm512_load_ps(lanes));
    x[targets[row]] = narrowed[0];
  }
}

}  // extern "C"
