"""The 64 classes of bugs that leave no trace: training runs, the curves look plausible, and the numbers are wrong.

Each has been found in published trainers or follows from the formulas.
"""

from __future__ import annotations

TOKENS = "Tokens and masks"
ADVANTAGES = "Advantages"
LOSSES = "Ratios and losses"
NORMALISATION = "Normalisation"
ROLLOUTS = "Rollouts and the run"

SUBJECTS = {TOKENS: range(1, 15), ADVANTAGES: range(15, 28), LOSSES: range(28, 43), NORMALISATION: range(43, 51)}
SUBJECTS |= {ROLLOUTS: range(51, 65)}

SILENT_BUGS: dict[int, str] = {
    1: "Padding is recognised by its id, which is also the end token's: the end of an answer is never trained.",
    2: "The end token is left out of the loss, or tokens behind it are in it.",
    3: "Of several end tokens only one counts: finished completions are called truncated.",
    4: "The scoring forward has no attention mask: a row's log-probs depend on its padding.",
    5: "Positions count the padding too.",
    6: "Logits and tokens are shifted by one against each other, or the entropy against the log-probs.",
    7: "Prompt tokens are in the loss or in the KL term.",
    8: "Completions are decoded and encoded again before they are scored: other tokens are trained than were sampled.",
    9: "The chat template writes a begin token and the tokenizer adds a second one.",
    10: "A stop text cuts the tokens but not their log-probs, or the other way round.",
    11: "The assistant's turn is opened twice or not at all; training and evaluation ask in different ways.",
    12: "A prompt that is too long is cut without a word, and the question with it.",
    13: "Truncated completions are masked in the loss but not in what it is divided by.",
    14: "Tokens that a tool or an environment wrote are trained.",
    15: "Completions are grouped in one order and rewards in the other (repeat against repeat_interleave).",
    16: "A completion is judged by the answer to another prompt.",
    17: "Rows are reordered, but not everything that belongs to them.",
    18: "The deviation's divisor, or eps, is not the documented one.",
    19: "Equal rewards have a tiny deviation in floating point, and dividing by it makes up a signal.",
    20: "A group without differences gives NaN, counts in the denominator, or moves the weights although nothing should.",
    21: "A group with a single scored completion gets a full-size advantage, or NaN.",
    22: "A reward that could not be computed becomes 0 and counts as a wrong answer.",
    23: "Groups of different sizes are mixed with each other by a reshape.",
    24: "Ranks take group statistics over their own slice, or over the wrong one.",
    25: "Choosing among groups mixes up their rows, or the logged mean reward is that of the chosen only.",
    26: "Advantages carry a gradient.",
    27: "Reward parts are weighted before they are normalised instead of after; one that is missing drops the sample.",
    28: "Old log-probs are computed after the update, so that the ratio is 1 for ever.",
    29: "The ratio is taken against the reference instead of the policy that sampled.",
    30: "Dropout is on while scoring or sampling.",
    31: "Scoring forgets the sampling temperature.",
    32: "The sampler cuts its distribution (top-k, top-p, min-p, repetition penalty), and scoring does not.",
    33: "Log-probs are computed in bfloat16.",
    34: "The clip acts on the wrong side when the advantage is negative, or minimum and maximum are swapped.",
    35: "The exponential of a log-ratio overflows.",
    36: "The KL term has the wrong sign or direction.",
    37: "k1 is used as a loss, where it does nothing; or k3's gradient is taken for that of the reverse divergence.",
    38: "The KL term is averaged over masked positions too, or averaged before it is added.",
    39: "The reference is the bare base model although training started from an adapter.",
    40: "The reference is trained too, shares weights with the policy, or is in training mode.",
    41: "A fused log-prob computation ignores an adapter on the output layer.",
    42: "The entropy is that of other logits than were sampled from; its bonus depends on the loss's normalisation.",
    43: "Each micro-batch is averaged by itself: the gradient depends on how the step was cut.",
    44: "The loss is divided once more by the number of micro-batches.",
    45: "Dr. GRPO divides by the padded width, or not by the number of completions.",
    46: "The last, partly filled micro-batch is dropped or weighs more.",
    47: "Ranks average their own token means instead of dividing by the tokens of all.",
    48: "Tokens that were rejected or masked stay in the denominator.",
    49: "One batch of completions serves several updates, but without a ratio.",
    50: "The sampler repeats some prompts and never shows others.",
    51: "Completions are sampled with stale weights.",
    52: "Keys and values of old weights are used again after an update.",
    53: "Generation with cached keys and values differs from the full forward.",
    54: "Completions of a group share their random numbers.",
    55: "Recomputing activations changes the numbers.",
    56: "A resumed run loses its place in the prompts, its random state, the optimizer or a controller.",
    57: "Evaluation samples like training, or changes the state of training.",
    58: "A verifier never ends, or cannot be stopped outside the main thread, where every score becomes 0.",
    59: "An error in a reward is hidden as a score of 0.",
    60: "Lengths are counted in characters, or with padding.",
    61: "The logged reward is not the optimised one.",
    62: "GAE reads values behind the end of a completion, or bootstraps wrongly there.",
    63: "DPO takes means where it should take sums, or counts the prompt.",
    64: "pass@k is estimated by the biased formula 1 - (1 - c/n)^k.",
}

WAITING: dict[int, str] = {
    14: "Covey has no tools so far: every completion token is the policy's own",
    39: "Covey trains whole models so far, no adapters",
    41: "Covey trains whole models so far, no adapters",
}
"""Classes for which no bug can be planted yet, and why."""
