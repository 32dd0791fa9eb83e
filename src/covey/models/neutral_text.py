"""How well a model reads ordinary text that has nothing to do with any task: what training may damage."""

from __future__ import annotations

import torch

from covey.metrics import Mean
from covey.models.policy import Policy
from covey.models.scoring import plan_scoring, score_completions
from covey.sampling import Sampling
from covey.tensors import GroupStats, Tokens

NEUTRAL_TEXTS = (
    "The river rises in the hills north of the town and reaches the sea after two days' walk.",
    "She closed the window, put the kettle on, and read the letter for the third time.",
    "Bread keeps longer in a paper bag than in plastic, because the crust stays dry.",
    "Most birds that spend the summer here fly south before the first frost.",
    "A library lends books for four weeks; a reader who needs one longer may ask for it again.",
    "The committee met on Tuesday and agreed to repair the bridge before the winter.",
    "When water freezes it takes up more room, which is why pipes burst on cold nights.",
    "He had never learned to swim, although he had lived on the island all his life.",
    "To plant a tree, dig a hole twice as wide as the roots and no deeper than they are.",
    "The train was late again, so we walked along the canal and talked about the old school.",
    "Copper is soft enough to be drawn into wire and carries electricity well.",
    "In the evening the market square is quiet, and only the bakery still has its lights on.",
    "A contract is an agreement that both sides can hold each other to.",
    "The moon looks larger near the horizon, but a photograph shows that it is not.",
    "def area(width, height):\n    return width * height\n",
    "Dear neighbours, the lift will be out of order on Friday morning. We are sorry for the trouble.",
)
"""Never changed: figures of different runs would no longer be comparable."""

_PLAIN = Sampling(temperature=1.0)
_MAX_TOKENS = 1024
"""Of a micro-batch."""


def neutral_nll(policy: Policy) -> Mean:
    """Return the mean over all tokens of NEUTRAL_TEXTS, but for the first of each, of -log p(token | those before it), in nats.

    As plain text, without a chat template, at temperature 1; a model with a token for the beginning of texts gets it before
    each.
    """
    tokens = _tokens_of(policy)
    rows = range(len(NEUTRAL_TEXTS))
    total = 0.0
    with torch.no_grad():
        for packs in plan_scoring(policy.model, tokens, rows, max_tokens=_MAX_TOKENS, max_shared_tokens=0):
            found = score_completions(policy.model, tokens, packs, sampling=_PLAIN, compute_dtype=policy.compute_dtype)
            total -= float(found.logprobs.double().sum())
    return Mean(total, int(tokens.completion_mask.sum()))


def _tokens_of(policy: Policy) -> Tokens:
    """Return each text as a prompt of its first token (and the one for the beginning) and a completion of the others."""
    start = [] if policy.tokenizer.bos_token_id is None else [int(policy.tokenizer.bos_token_id)]
    texts = [policy.tokenizer.encode(text, add_special_tokens=False) for text in NEUTRAL_TEXTS]
    lengths = torch.tensor([len(ids) - 1 for ids in texts])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    completions = torch.zeros(mask.shape, dtype=torch.long)
    completions[mask] = torch.tensor([token for ids in texts for token in ids[1:]])
    shape = (len(texts), 1)
    nothing = torch.zeros(shape, dtype=torch.float64)
    stats = GroupStats(
        rewards=nothing, scored=torch.zeros(shape, dtype=torch.bool), lengths=lengths[:, None], parts=nothing[..., None]
    )
    return Tokens(
        is_truncated=torch.zeros(len(texts), dtype=torch.bool),
        prompt_ids=[torch.tensor([*start, ids[0]]) for ids in texts],
        completion_ids=completions,
        completion_mask=mask,
        sampling_logprobs=None,
        stats=stats,
    )
