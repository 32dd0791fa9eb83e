"""From a batch to updates of the model: credit, objective, backward, clip, step. Knows no algorithm by name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from covey.algos.aggregate import sequence_weights
from covey.algos.kl import KL_TERMS
from covey.algos.objective import Coefficients, LossInputs, Objective, policy_loss
from covey.batch import gather_groups, select_groups, with_old_logprobs
from covey.credit import assign_credit, pair_metrics, selected_rows
from covey.critic import Critic
from covey.distance import distance_metrics
from covey.distributed import ALONE, Ranks
from covey.learner_specs import SKIPPED, SPIKED, ControllerSpec, LearnerSpec, ScoringSpec, Update
from covey.metrics import Mean, Metric, Sum, merge_metrics, metric_values
from covey.models.adamw import new_adamw
from covey.models.memory import is_out_of_memory
from covey.models.scoring import CompletionScores, Pack, plan_scoring, score_completions
from covey.sampling import permutation, stream_key
from covey.spikes import SpikeWatch
from covey.tensors import Batch, Scores, Tokens
from covey.token_choice import TokenChoice

Result = TypeVar("Result")

MAX_HALVINGS = 6


class Learner:
    """Holds the optimizer and turns a Batch into updates of the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        scoring: ScoringSpec,
        spec: LearnerSpec,
        *,
        coefficients: Coefficients = Coefficients(),  # noqa: B008 - frozen
        controllers: ControllerSpec = ControllerSpec(),  # noqa: B008 - frozen
        choice: TokenChoice = TokenChoice(),  # noqa: B008 - frozen
        critic: Critic | None = None,
        ranks: Ranks = ALONE,
    ):
        self.model = model
        self.objective = objective
        self.scoring = scoring
        self.spec = spec
        self.coefficients = coefficients
        self.controllers = controllers
        self.choice = choice
        self.critic = critic
        """The value model, of rows that have one."""
        self.ranks = ranks
        self.spikes = SpikeWatch(spec.limits)
        self.optimizer = new_adamw(model, learning_rate=spec.learning_rate, weight_decay=spec.weight_decay)
        self.num_updates = 0
        self.num_halvings = 0
        """How often memory has run out, and micro-batches were halved from then on."""
        self.budget_left_frac: float | None = None
        """What is left of a budget of tokens, where one ends the run; the rate then falls with it, and not with the updates."""

    def learning_rate(self) -> float:
        """Return the rate of the next update: linear warm-up, then constant or falling."""
        update, num_updates = self.num_updates + 1, self.spec.num_steps * self.spec.updates_per_step
        warmup = min(1.0, update / max(1, self.spec.warmup_steps))
        left = (num_updates - update + 1) / max(1, num_updates - self.spec.warmup_steps)
        if self.budget_left_frac is not None:
            left = self.budget_left_frac
        return self.spec.learning_rate * warmup * (min(1.0, max(0.0, left)) if self.spec.decay else 1.0)

    @property
    def _dtype(self) -> torch.dtype:
        """Of log-probs: float32, or float64 for a model in it."""
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def acts_through_reward(self) -> bool:
        """Whether KL is subtracted from the reward."""
        return self.coefficients.beta > 0 and KL_TERMS[self.objective.kl].in_loss is None

    @property
    def acts_in_loss(self) -> bool:
        """Whether KL is a term of the loss, so that every row has a gradient."""
        return self.coefficients.beta > 0 and KL_TERMS[self.objective.kl].in_loss is not None

    def needs_old_scores(self, *, has_reference: bool) -> bool:
        """Return whether credit, the choice of tokens or a measurement asks for the policy's scores of the whole batch.

        The importance ratio does not: see `train_on`.
        """
        is_measured_only = has_reference and not self.acts_in_loss
        return self.choice.is_active or self.acts_through_reward or is_measured_only

    def make_scores(self, tokens: Tokens, reference: PreTrainedModel | None) -> Scores:
        """Return what frozen models say about the batch, as far as it is needed."""
        rows = selected_rows(self.objective, tokens)
        needs_old = self.needs_old_scores(has_reference=reference is not None)
        old = self.score(self.model, tokens, rows) if needs_old else None
        return Scores(
            old_logprobs=None if old is None else old.logprobs,
            ref_logprobs=None if reference is None else self.score(reference, tokens, rows).logprobs,
            entropy=None if old is None else old.entropy,
            values=None if self.critic is None else self.critic.values(tokens),
        )

    def make_batch(self, tokens: Tokens, scores: Scores, *, step: int = 0) -> Batch:
        """Return the batch with its credit for each token, and the choice of tokens that are trained on."""
        kl_weight = self.coefficients.beta if self.acts_through_reward else 0.0
        batch = assign_credit(self.objective, tokens, scores, kl_weight=kl_weight)
        return self.choice.apply(batch, seed=self.spec.seed, step=step)

    def train_on(
        self, batch: Batch, *, step: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Update:
        """Make the batch's updates, `num_iterations` passes of `num_minibatches` each, and return what came of them.

        The ratio compares log-probs that were computed in the same layout, because another layout rounds differently and
        a narrow clip range would cut rounding: the first update takes its own forward for the old policy, later ones the
        scores of their pass's minibatches, made before it.
        """
        plan = [
            self.minibatches(batch.tokens.num_groups, step=step, iteration=iteration)
            for iteration in range(self.spec.num_iterations)
        ]
        parts = [select_groups(batch, groups) for minibatches in plan for groups in minibatches]
        old = [None, *(self.score(self.model, part.tokens, self.rows_with_gradient(part)).logprobs for part in parts[1:])]
        with_old = [with_old_logprobs(part, logprobs) for part, logprobs in zip(parts, old, strict=True)]
        updates = [self._update_both(part, progress=progress) for part in with_old]
        metrics = merge_metrics(update.metrics for update in updates) | self.choice.metrics(batch)
        if batch.margins is not None and len(batch.margins):
            metrics |= pair_metrics(self.objective, batch.margins)
        if batch.scores.old_logprobs is not None:
            logprobs = batch.scores.old_logprobs
            is_scored = batch.mask if self.objective.spec.selects else batch.tokens.completion_mask
        else:  # Of the first pass: the rows with a gradient, each as its minibatch saw it before the first update.
            first_old = [updates[0].logprobs, *old[1 : len(plan[0])]]
            logprobs = gather_groups(plan[0], first_old, like=batch.mask, dtype=self._dtype)
            is_scored = gather_groups(plan[0], [update.is_scored for update in updates], like=batch.mask, dtype=torch.bool)
        num_updates = sum(update.num_updates for update in updates)
        if bool(is_scored.any()):
            metrics |= distance_metrics(batch, logprobs, is_scored)
        if num_updates:
            used, found = self.coefficients, metric_values(metrics)
            self.coefficients = self.controllers.followed(used, found, num_samples=batch.mask.shape[0])
            metrics |= self.controllers.metrics(used)
        exceeded = tuple(limit for update in updates for limit in update.exceeded)
        return Update(metrics=metrics, num_updates=num_updates, logprobs=logprobs, is_scored=is_scored, exceeded=exceeded)

    def minibatches(self, num_groups: int, *, step: int, iteration: int) -> list[list[int]]:
        """Return the groups of each update of a pass: all of them, or a random partition that the seed determines."""
        count = min(self.spec.num_minibatches, num_groups)
        order = list(range(num_groups))
        if count > 1:
            order = permutation(stream_key(self.spec.seed, "minibatches", step, iteration), num_groups)
        bounds = [num_groups * index // count for index in range(count + 1)]
        return [sorted(order[first:last]) for first, last in itertools.pairwise(bounds)]

    def _update_both(self, batch: Batch, *, progress: Callable[[int, int], None]) -> Update:
        """Make one optimizer step of the policy and, on the same tokens, one of the value model if there is one.

        A batch that the policy's update was left out for teaches the value model nothing either.
        """
        update = self.update(batch, progress=progress)
        if self.critic is None or update.is_left_out or not bool(batch.mask.any()):
            return update
        assert batch.scores.values is not None
        assert batch.returns is not None
        old_values = batch.scores.values[:, : batch.mask.shape[1]]
        found = self.critic.update(batch.tokens, old_values, batch.returns, batch.mask)
        return dataclasses.replace(update, metrics=update.metrics | found)

    def update(self, batch: Batch, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Update:
        """Make one optimizer step on the whole batch, however it is cut, and return its metrics and log-probs.

        A batch in which nothing can move the weights makes no step at all (momentum alone would move them) and has no
        metrics. One whose loss or gradient is not finite makes none either, and its metrics say `update/skipped`; one that
        exceeds a limit, `update/spiked`. All of it is decided by what every rank knows alike.
        """
        if not self.rows_with_gradient(batch):
            return Update()
        update = self.accumulate_gradient(batch, progress=progress)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.max_grad_norm))
        # A bound can take the gradient of what is not finite to 0, and hide it: the loss is looked at as well.
        is_finite = math.isfinite(norm) and math.isfinite(update.metrics["loss/value"].value)
        exceeded = self.spikes.exceeded(batch, update, norm=norm) if is_finite else ()
        if exceeded or not is_finite:
            self.optimizer.zero_grad(set_to_none=True)
            return dataclasses.replace(update, metrics={SPIKED if exceeded else SKIPPED: Sum(1)}, exceeded=exceeded)
        self.spikes.take(norm)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        loss = Mean(update.metrics["loss/value"].value, 1)
        metrics = update.metrics | {"loss/value": loss, "grad/norm": Mean(norm, 1), "optimizer/lr": Mean(rate, 1)}
        return dataclasses.replace(update, metrics=metrics, num_updates=1)

    def accumulate_gradient(self, batch: Batch, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Update:
        """Give the parameters the gradient of the step's loss, micro-batch by micro-batch, and return merged metrics."""
        # Counted once over the whole step: a count per micro-batch would weigh tokens by how the step was cut.
        weights = sequence_weights(
            batch.mask,
            self.objective.aggregation,
            group_size=batch.tokens.group_size,
            max_length=self.spec.max_new_tokens,
            dtype=self._dtype,
        )
        micro_batches = self.ranks.share(self._plan(batch.tokens, self.rows_with_gradient(batch)))

        def work(micro_batches: list[list[Pack]]) -> tuple[list[dict[str, Metric]], Tensor, Tensor]:
            self.optimizer.zero_grad(set_to_none=True)
            logprobs, is_scored = torch.zeros(batch.mask.shape, dtype=self._dtype), torch.zeros(batch.mask.shape[0])
            pieces: list[dict[str, Metric]] = []
            for done, packs in enumerate(micro_batches, start=1):
                rows = torch.tensor([row for pack in packs for row in pack.rows])
                piece, seen = self._backward(batch, packs, rows, weights[rows])
                pieces.append(piece)
                logprobs[rows], is_scored[rows] = seen.to(logprobs.dtype), 1.0
                progress(done, len(micro_batches))
            return pieces, logprobs, is_scored

        pieces, logprobs, is_scored = self._within_memory(batch.tokens, micro_batches, work)
        self._sum_over_ranks(logprobs, is_scored)
        return Update(
            metrics=merge_metrics(self.ranks.gather(pieces)) | self._halvings(),
            logprobs=logprobs,
            is_scored=batch.tokens.completion_mask & (is_scored > 0)[:, None],
        )

    def _within_memory(
        self, tokens: Tokens, micro_batches: list[list[Pack]], work: Callable[[list[list[Pack]]], Result]
    ) -> Result:
        """Do the work on these micro-batches; where memory runs out, all of it again in micro-batches of half the size.

        Sums over micro-batches are the same but for their last bits. This rank's rows stay its own: the others need not know.
        """
        while True:
            try:
                return work(micro_batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.num_halvings == MAX_HALVINGS:
                    raise
            self.halve_micro_batches()
            micro_batches = self._plan(tokens, [row for packs in micro_batches for pack in packs for row in pack.rows])

    def halve_micro_batches(self) -> None:
        """Let them have half as many tokens from now on: memory has run out, or it had before the run went on."""
        self.num_halvings += 1
        num_tokens = max(1, self.scoring.max_tokens_per_micro_batch // 2)
        self.scoring = dataclasses.replace(self.scoring, max_tokens_per_micro_batch=num_tokens)

    def _halvings(self) -> dict[str, Metric]:
        """Return how often memory has run out so far, if it ever has."""
        return {"memory/halvings": Mean(self.num_halvings, 1)} if self.num_halvings else {}

    def _sum_over_ranks(self, *grids: Tensor) -> None:
        """Add up gradients and grids of all ranks; one alone has them already."""
        self.ranks.sum_gradients(self.model.parameters())
        self.ranks.sum(grids)

    def _backward(self, batch: Batch, packs: Sequence[Pack], rows: Tensor, weights: Tensor) -> tuple[dict[str, Metric], Tensor]:
        scores = self._score(self.model, batch.tokens, packs, entropy_gradient=self.coefficients.entropy > 0)
        mask = batch.mask[rows]
        output = policy_loss(
            self.objective,
            LossInputs(
                logprobs=scores.logprobs,
                old_logprobs=_rows(batch.scores.old_logprobs, rows),
                ref_logprobs=_rows(batch.scores.ref_logprobs, rows),
                entropy=scores.entropy,
                advantages=batch.advantages[rows],
                mask=mask,
                weights=weights,
                num_tokens=int(batch.mask.sum()),
                token_weights=_rows(batch.token_weights, rows),
                held_back=_rows(batch.held_back, rows),
            ),
            self.coefficients,
        )
        output.loss.backward()
        return output.metrics | {"tokens/trained": Sum(int(mask.sum()))}, scores.logprobs.detach()

    def score(self, model: PreTrainedModel, tokens: Tokens, wanted: Sequence[int] | None = None) -> CompletionScores:
        """Return the frozen log-probs and entropies [B, T] under `model`, laid out as an update of these rows is.

        `wanted`: which rows; None = all that have a token.
        """
        if wanted is None:
            wanted = tokens.completion_mask.any(dim=1).nonzero()[:, 0].tolist()
        logprobs, entropy = torch.zeros(2, *tokens.completion_ids.shape, dtype=self._dtype).unbind()

        def work(micro_batches: list[list[Pack]]) -> None:
            for packs in micro_batches:
                rows = torch.tensor([row for pack in packs for row in pack.rows])
                scores = self._score(model, tokens, packs)
                logprobs[rows], entropy[rows] = scores.logprobs.to(logprobs.dtype), scores.entropy.to(entropy.dtype)

        with torch.no_grad():
            self._within_memory(tokens, self.ranks.share(self._plan(tokens, wanted)), work)
        self.ranks.sum([logprobs, entropy])
        return CompletionScores(logprobs=logprobs, entropy=entropy)

    def _score(
        self, model: PreTrainedModel, tokens: Tokens, packs: Sequence[Pack], *, entropy_gradient: bool = False
    ) -> CompletionScores:
        return score_completions(
            model,
            tokens,
            packs,
            sampling=self.scoring.sampling,
            compute_dtype=self.scoring.compute_dtype,
            entropy_gradient=entropy_gradient,
            checkpoints_layers=self.scoring.checkpoints_layers,
        )

    def _plan(self, tokens: Tokens, rows: Sequence[int]) -> list[list[Pack]]:
        return plan_scoring(
            self.model,
            tokens,
            rows,
            max_tokens=self.scoring.max_tokens_per_micro_batch,
            max_shared_tokens=self.scoring.max_shared_tokens,
        )

    def rows_with_gradient(self, batch: Batch) -> list[int]:
        """Return the rows that can move the weights: those with trained tokens and a term that is not exactly zero."""
        has_term = (batch.advantages * batch.mask != 0).any(dim=1)
        if self.acts_in_loss or self.coefficients.entropy:
            has_term = torch.ones_like(has_term)
        if batch.held_back is not None:
            has_term = has_term | batch.held_back.any(dim=1)
        return (batch.mask.any(dim=1) & has_term).nonzero()[:, 0].tolist()


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
