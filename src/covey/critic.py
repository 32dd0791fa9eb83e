"""The value model of PPO: what a completion is still worth before each of its tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.algos.critic import clipped_value_loss
from covey.distributed import ALONE, Ranks
from covey.learner_specs import ScoringSpec
from covey.metrics import Mean, Metric
from covey.models.adamw import new_adamw
from covey.models.scoring import Pack, completion_hidden, plan_scoring
from covey.tensors import Tokens
from covey.types import CoveyError

CriticKind = Literal["separate", "head"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticSpec:
    """The numbers of its optimizer and its loss."""

    learning_rate: float
    warmup_steps: int
    max_grad_norm: float
    value_epsilon: float
    """How far a value may move from its old one before the loss stops seeing it."""


class Critic:
    """A trunk and a linear head: V_t = w h_t + b, h_t the hidden state behind the prompt and the tokens before t.

    The head begins at 0, so that the first values are 0 exactly.
    """

    def __init__(
        self,
        trunk: PreTrainedModel,
        spec: CriticSpec,
        scoring: ScoringSpec,
        *,
        trains_trunk: bool,
        ranks: Ranks = ALONE,
    ):
        """`trains_trunk`: whether the trunk is the critic's own. If not, it belongs to the policy and is only read."""
        self.trunk = trunk
        self.spec = spec
        self.scoring = scoring
        self.ranks = ranks
        self.dtype = torch.promote_types(trunk.dtype, torch.float32)
        # Built without its usual random numbers, which would move the process's random state.
        size = trunk.config.get_text_config().hidden_size
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, size, 1, dtype=self.dtype, device=trunk.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.trained = nn.ModuleDict({"trunk": trunk, "head": self.head} if trains_trunk else {"head": self.head})
        self.trains_trunk = trains_trunk
        self.optimizer = new_adamw(self.trained, learning_rate=spec.learning_rate, weight_decay=0.0)
        self.num_updates = 0

    @property
    def num_parameters(self) -> int:
        """Of what it holds beside the policy."""
        return sum(weight.numel() for weight in self.trained.parameters())

    @property
    def num_bytes(self) -> int:
        """Of its weights with gradient and moments and, where products are in bfloat16, their rounded copy."""
        rounded = self.scoring.compute_dtype.itemsize if self.scoring.compute_dtype.itemsize < self.dtype.itemsize else 0
        trained = [weight for weight in self.trained.parameters() if weight.requires_grad]
        num_trained = sum(weight.numel() for weight in trained)
        # An output head of its own is only held: nothing reads it.
        return self.num_parameters * (self.dtype.itemsize + rounded) + 3 * num_trained * self.dtype.itemsize

    def values(self, tokens: Tokens) -> Float[Tensor, "B T_plus_1"]:
        """Return the value before each token and, in the column behind a completion's last token, after it; 0 elsewhere."""
        extended = _with_one_more_token(tokens)
        found = torch.zeros(extended.completion_ids.shape, dtype=self.dtype)
        with torch.no_grad():
            for packs in self.ranks.share(self._plan(extended)):
                found[_rows_of(packs)] = self._values(extended, packs).cpu()
        self.ranks.sum([found])
        return found

    def update(
        self,
        tokens: Tokens,
        old_values: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> dict[str, Metric]:
        """Make one optimizer step on the mean of `clipped_value_loss` over the tokens under the mask.

        Raises:
            CoveyError: the gradient is not finite; nothing was changed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = int(mask.sum())
        sums = torch.zeros(3, dtype=torch.float64)
        for packs in self.ranks.share(self._plan(tokens)):
            sums += self._backward(tokens, packs, old_values, returns, mask, num_tokens=num_tokens)
        self.ranks.sum_gradients(self.trained.parameters())
        self.ranks.sum([sums])
        norm = float(nn.utils.clip_grad_norm_(self.trained.parameters(), self.spec.max_grad_norm))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise CoveyError(
                f"the norm of the value model's gradient is {norm}: it has diverged, and this update was not made. Resume from "
                "the last checkpoint, or start again with a lower algorithm.critic_learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.learning_rate * min(1.0, (self.num_updates + 1) / max(1, self.spec.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        loss, clipped, total = sums.tolist()
        return {
            "critic/loss": Mean(loss, 1),
            "critic/clip_frac": Mean(clipped, num_tokens),
            "critic/value_mean": Mean(total, num_tokens),
            "critic/explained_variance": Mean(explained_variance(old_values[mask], returns[mask]), 1),
            "critic/grad_norm": Mean(norm, 1),
        }

    def state(self) -> dict[str, Tensor]:
        """Return everything that `restore` needs, by name."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{f"weight.{name}": weight for name, weight in self.trained.named_parameters()},
            **{f"moment.{index}.{field}": value for index, fields in moments.items() for field, value in fields.items()},
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put everything back to what `state` returned, bit for bit."""
        with torch.no_grad():
            for name, weight in self.trained.named_parameters():
                weight.copy_(state[f"weight.{name}"])
        saved = self.optimizer.state_dict()
        saved["state"] = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "moment":
                index, _, field = rest.partition(".")
                saved["state"].setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict(saved)
        self.num_updates = int(state["num_updates"])

    def _backward(
        self, tokens: Tokens, packs: Sequence[Pack], old: Tensor, returns: Tensor, mask: Tensor, *, num_tokens: int
    ) -> Tensor:
        """Add a micro-batch's share of the gradient; return its loss, clipped tokens and sum of values."""
        rows = _rows_of(packs)
        values = self._values(tokens, packs)
        kept = mask[rows].to(values.device)
        before = old[rows].to(values)
        token_loss = clipped_value_loss(values, before, returns[rows].to(values), value_epsilon=self.spec.value_epsilon)
        loss = torch.where(kept, token_loss, 0.0).sum() / num_tokens
        loss.backward()
        seen = values.detach()
        clipped = kept & ((seen - before).abs() > self.spec.value_epsilon)
        return torch.stack([loss.detach().double(), clipped.sum().double(), seen[kept].double().sum()]).cpu()

    def _values(self, tokens: Tokens, packs: Sequence[Pack]) -> Float[Tensor, "R T"]:
        with torch.set_grad_enabled(self.trains_trunk and torch.is_grad_enabled()):
            hidden = completion_hidden(
                self.trunk,
                tokens,
                packs,
                compute_dtype=self.scoring.compute_dtype,
                checkpoints_layers=self.scoring.checkpoints_layers,
            )
        where = tokens.completion_mask[_rows_of(packs)].to(hidden.device)
        values = self.head(hidden.to(self.dtype))[:, 0]
        return torch.zeros(where.shape, dtype=self.dtype, device=hidden.device).masked_scatter(where, values)

    def _plan(self, tokens: Tokens) -> list[list[Pack]]:
        rows = tokens.completion_mask.any(dim=1).nonzero()[:, 0].tolist()
        return plan_scoring(
            self.trunk,
            tokens,
            rows,
            max_tokens=self.scoring.max_tokens_per_micro_batch,
            max_shared_tokens=self.scoring.max_shared_tokens,
        )


def new_critic(
    model: PreTrainedModel, kind: CriticKind, spec: CriticSpec, scoring: ScoringSpec, *, ranks: Ranks = ALONE
) -> Critic:
    """Return a critic that begins at the model's present weights: a copy of it, or a head on its own hidden states.

    Raises:
        CoveyError: a copy is asked for, of a model that trains adapters.
    """
    if kind == "head":
        return Critic(model, spec, scoring, trains_trunk=False, ranks=ranks)
    if not all(weight.requires_grad for weight in model.parameters()):
        raise CoveyError(
            "algorithm.critic='separate' with lora.rank: a value model of its own would train every weight, which adapters are "
            "there to avoid. Set algorithm.critic='head'"
        )
    trunk = copy.deepcopy(model)
    output, embedding = trunk.get_output_embeddings(), trunk.get_input_embeddings()
    if output is not None and output.weight is not embedding.weight:
        output.requires_grad_(False)  # Nothing reads its logits.
    return Critic(trunk, spec, scoring, trains_trunk=True, ranks=ranks)


def explained_variance(values: Float[Tensor, "L"], returns: Float[Tensor, "L"], *, min_spread: float = 1e-5) -> float:
    """Return 1 - Var(R - V) / Var(R); 0 where returns are equal, to within `min_spread` of the largest return or value.

    GAE adds values up and takes them off again: returns that are equal on paper differ in their last bits.
    """
    targets = returns.double()
    if not targets.numel():
        return 0.0
    scale = float(torch.maximum(targets.abs(), values.double().abs()).max())
    if float(targets.max() - targets.min()) <= min_spread * scale:
        return 0.0
    return 1 - float((targets - values.double()).var(correction=0) / targets.var(correction=0))


def _with_one_more_token(tokens: Tokens) -> Tokens:
    """Return the tokens with any token behind each completion, whose place has the state after the last one."""
    lengths = tokens.completion_mask.sum(dim=1, keepdim=True)
    ids = nn.functional.pad(tokens.completion_ids, (0, 1))
    mask = (torch.arange(ids.shape[1])[None] <= lengths) & (lengths > 0)
    return replace(tokens, completion_ids=ids, completion_mask=mask, sampling_logprobs=None)


def _rows_of(packs: Sequence[Pack]) -> Tensor:
    return torch.tensor([row for pack in packs for row in pack.rows])
