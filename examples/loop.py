"""Group Relative Policy Optimization in one file, with torch and transformers and nothing of Covey.

    python examples/loop.py --tiny                                       # untrained byte model, offline, seconds
    python examples/loop.py --model HuggingFaceTB/SmolLM2-135M-Instruct  # sums up to 40

Equation numbers are those of DeepSeekMath (arXiv:2402.03300), which introduced GRPO.
P prompts a step, G completions a prompt, B = P * G (row b belongs to prompt b // G), S prompt and T completion tokens.
"""

import argparse
import copy
import functools
import random
import re
from dataclasses import dataclass

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy

DEFAULTS: dict[str, float] = {"num_steps": 30, "num_prompts": 8, "group_size": 8, "max_new_tokens": 24, "beta": 0.0}
DEFAULTS |= {"lr": 2e-5, "warmup_steps": 5, "max_grad_norm": 1.0, "num_updates": 1, "micro_batch_size": 16}
DEFAULTS |= {"epsilon_low": 0.2, "epsilon_high": 0.2, "num_held_out": 64, "seed": 0}
TINY_DEFAULTS = {"num_steps": 40, "num_prompts": 4, "group_size": 16, "max_new_tokens": 16, "lr": 5e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Token in, token out: the ids are trained on as they were sampled, and `texts` is for the verifier's eyes only."""

    input_ids: torch.Tensor  # [B, S+T] prompts padded on the left, then completions
    attention_mask: torch.Tensor  # [B, S+T] hides the left padding; causality hides what follows a completion's end
    completion_mask: torch.Tensor  # [B, T] bool, end token included
    texts: list[str]


def tiny_model_and_tokenizer() -> tuple:
    """Return an untrained two-layer Llama whose vocabulary is the 256 bytes and an end token."""
    vocab = {symbol: i for i, symbol in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])}
    by_bytes = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    by_bytes.pre_tokenizer, by_bytes.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=by_bytes, eos_token="<end>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig.from_dict({**shape, "vocab_size": len(vocab), "pad_token_id": vocab["<end>"]})
    return transformers.LlamaForCausalLM(config), tokenizer


def last_number_is_right(text: str, answer: str) -> float:
    """A rule, not a model: nothing learned that could be over-optimised."""
    return float(re.findall(r"\d+", text)[-1:] == [answer])


def digit_frac(text: str, answer: str) -> float:
    """For --tiny: an untrained model would wait for ever for its first right sum, but some of its bytes are digits."""
    return sum(character in "0123456789" for character in text) / max(len(text), 1)


@torch.no_grad()
def sample(model, tokenizer, problems, *, max_new_tokens: int, group_size: int = 1, generator=None) -> Rollouts:
    """Return `group_size` completions a problem, drawn at temperature 1, or greedy ones if `generator` is None."""
    chats = [[{"role": "user", "content": question}] for question, _ in problems]
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    as_batch = {"padding": True, "return_dict": True, "return_tensors": "pt"}
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, **as_batch).to(model.device)
    ids, mask = prompts["input_ids"], prompts["attention_mask"]  # [P, S]
    # Positions count real tokens: rotary embeddings would forgive a shift by the padding, learned ones would not.
    prefix = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    cache = model(**{name: tensor[:, :-1] for name, tensor in prefix.items()}, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(group_size)  # a prompt is read once, however many completions it gets
    ids, mask = ids.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)  # [B, S]
    lengths, has_ended = mask.new_zeros(len(mask), 1), mask.new_zeros(len(mask), 1).bool()
    for _ in range(max_new_tokens):
        positions = mask.sum(1, keepdim=True) - 1
        output = model(ids[:, -1:], attention_mask=mask, position_ids=positions, past_key_values=cache)
        probs = output.logits[:, -1].float().softmax(-1)  # [B, V]
        next_ids = probs.argmax(-1, keepdim=True) if generator is None else probs.multinomial(1, generator=generator)
        ids, mask = torch.cat([ids, next_ids], 1), torch.cat([mask, torch.ones_like(next_ids)], 1)
        lengths += ~has_ended
        has_ended |= next_ids == tokenizer.eos_token_id
        if has_ended.all():
            break
    completion_ids = ids[:, prompts["input_ids"].shape[1] :]  # [B, T]
    completions = [row[:length] for row, length in zip(completion_ids, lengths, strict=True)]
    return Rollouts(
        input_ids=ids,
        attention_mask=mask,
        # From lengths, never from token values: pad == end is normal, and the end token must be learnt.
        completion_mask=torch.arange(completion_ids.shape[1], device=ids.device) < lengths,
        texts=tokenizer.batch_decode(completions, skip_special_tokens=True),
    )


def completion_logprobs(model, rollouts: Rollouts, rows: torch.Tensor) -> torch.Tensor:
    """Return log pi(o_t | q, o_<t), [rows, T] in nats, of the very distribution that was sampled from."""
    ids, mask, num_tokens = rollouts.input_ids[rows], rollouts.attention_mask[rows], rollouts.completion_mask.shape[1]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # [rows, T, V] lives no longer than a micro-batch: fine at this size, to be taken in chunks for long completions.
    logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=num_tokens + 1).logits[:, :-1]
    losses = cross_entropy(logits.float().flatten(0, 1), ids[:, -num_tokens:].flatten(), reduction="none")
    return -losses.view(len(rows), -1)


def score(rollouts: Rollouts, problems, reward) -> torch.Tensor:
    """Return the verified rewards, [P, G]; float64, in which the statistics of a group are exact enough."""
    answers = [answer for _, answer in problems for _ in range(len(rollouts.texts) // len(problems))]
    rewards = [reward(text, answer) for text, answer in zip(rollouts.texts, answers, strict=True)]
    return torch.tensor(rewards, dtype=torch.float64).view(len(problems), -1)


def group_advantages(rewards: torch.Tensor, *, eps: float = 1e-4) -> torch.Tensor:
    """Return A = (r - mean) / (std + eps) in each group, [P, G] (section 4.1.2): its peers stand in for a critic."""
    # A flat group is found by comparison: a rounding in the mean leaves a crumb of std, which dividing would blow up.
    is_flat = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)
    return advantages.masked_fill(is_flat, 0.0)


def clipped_surrogate(log_ratio: torch.Tensor, advantages: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Return min(w A, clip(w) A), the core of equation 3: no reward for going further from where we sampled."""
    ratio = log_ratio.clamp(-20, 20).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(*bounds) * advantages)


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return r - log r - 1 with r = ref / policy (equation 4): unbiased for KL(policy || ref), and never negative."""
    # Its gradient is that of the other direction: E[(1 - r) grad log policy] = -E_ref[grad log policy].
    log_ratio = (ref_logprobs - logprobs).clamp(-20, 20)
    return log_ratio.exp() - log_ratio - 1


def update(model, reference, optimizer, rollouts: Rollouts, advantages: torch.Tensor, args) -> None:
    """Ascend equation 3 on the completions of one step, `num_updates` times (mu in Algorithm 1)."""
    mask = rollouts.completion_mask
    # 1/B 1/|o_i|, counted over the step, so that how it is cut into micro-batches cannot matter. Dr. GRPO is
    # mask / (B * max_new_tokens) with A = r - mean (arXiv:2503.20783); token-mean, as in DAPO, is mask / mask.sum().
    weights = mask / mask.sum(1, keepdim=True) / len(mask)  # [B, T]
    # Flat groups count in B but have no gradient, so their forward pass is saved, unless the KL needs it.
    rows = (torch.ones_like(advantages) if args.beta else advantages).nonzero()[:, 0]
    if len(rows) == 0:
        return  # a zero gradient would still move the weights, by Adam's momentum
    old_logprobs = torch.zeros_like(weights)
    for iteration in range(args.num_updates):
        for chunk in rows.split(args.micro_batch_size):
            logprobs = completion_logprobs(model, rollouts, chunk)
            if iteration == 0:  # still the policy that sampled: w = 1, and its gradient is that of log pi
                old_logprobs[chunk] = logprobs.detach()
            bounds = (1 - args.epsilon_low, 1 + args.epsilon_high)  # DAPO: 0.2 and 0.28 (arXiv:2503.14476)
            objective = clipped_surrogate(logprobs - old_logprobs[chunk], advantages[chunk, None], bounds)
            if args.beta:
                objective = objective - args.beta * k3(logprobs, completion_logprobs(reference, rollouts, chunk))
            (-weights[chunk] * objective).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--tiny", action="store_true")
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    if parser.parse_args().tiny:
        parser.set_defaults(**TINY_DEFAULTS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.tiny:
        (model, tokenizer), reward = tiny_model_and_tokenizer(), digit_frac
    else:  # float32: bfloat16 weights would round most updates of this size to nothing
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        tokenizer, reward = transformers.AutoTokenizer.from_pretrained(args.model), last_number_is_right
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # no dropout: the policy scored is the one sampled
    # Llama drops the gradient of `padding_idx`; with pad == end, the end token's embedding would never learn.
    model.get_input_embeddings().padding_idx = None  # ty: ignore[invalid-assignment]
    reference = copy.deepcopy(model).requires_grad_(False) if args.beta else None
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    generator, rng = torch.Generator(model.device).manual_seed(args.seed), random.Random(args.seed)
    problems = [(f"What is {a} + {b}? Answer with just the number.", str(a + b)) for a in range(21) for b in range(a + 1)]
    rng.shuffle(problems)
    held_out, problems = problems[: args.num_held_out], problems[args.num_held_out :]
    draw = functools.partial(sample, model, tokenizer, max_new_tokens=args.max_new_tokens)

    print(f"held-out greedy reward before: {score(draw(held_out), held_out, reward).mean():.3f}")
    for step in range(1, args.num_steps + 1):
        batch = rng.sample(problems, args.num_prompts)
        rollouts = draw(batch, group_size=args.group_size, generator=generator)
        rewards = score(rollouts, batch, reward)  # [P, G]
        advantages = group_advantages(rewards)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, step / max(1, args.warmup_steps))
        update(model, reference, optimizer, rollouts, advantages.flatten().float().to(model.device), args)
        usable, length = (advantages != 0).any(1).sum(), rollouts.completion_mask.sum(1).float().mean()
        print(f"step {step:3d}  reward {rewards.mean():.3f}  usable groups {usable}/{len(batch)}  length {length:.1f}")
    print(f"held-out greedy reward after: {score(draw(held_out), held_out, reward).mean():.3f}")


if __name__ == "__main__":
    main()
