"""Classes 43 to 50."""

from __future__ import annotations

from tests.conformance.mutation import Mutation

SUITE = "tests/conformance/test_normalisation.py::"
LEARNER, AGGREGATE = "src/covey/learner.py", "src/covey/algos/aggregate.py"
CUTS = f"{SUITE}test_the_gradient_does_not_depend_on_how_the_step_is_cut"
PLAIN_MEAN = f"{SUITE}test_the_gradient_is_the_plain_mean_over_all_tokens"
BACKWARD = "piece, seen = self._backward(batch, packs, rows, weights[rows])"

MUTATIONS = [
    Mutation(
        number=43,
        name="each micro-batch is averaged by itself",
        file=LEARNER,
        old=BACKWARD,
        new=(
            "own = sequence_weights("
            "batch.mask[rows], self.objective.aggregation, group_size=1, max_length=16, dtype=self._dtype"
            "); piece, seen = self._backward(batch, packs, rows, own)"
        ),
        tests=(CUTS,),
    ),
    Mutation(
        number=44,
        name="the loss is divided by the number of micro-batches once more",
        file=LEARNER,
        old=BACKWARD,
        new="piece, seen = self._backward(batch, packs, rows, weights[rows] / len(micro_batches))",
        tests=(CUTS, PLAIN_MEAN),
    ),
    Mutation(
        number=45,
        name="Dr. GRPO divides by the padded width",
        file=LEARNER,
        old="            max_length=self.spec.max_new_tokens,\n            dtype=self._dtype,",
        new="            max_length=batch.mask.shape[1],\n            dtype=self._dtype,",
        tests=(f"{SUITE}test_dr_grpo_divides_by_the_number_of_completions_and_a_constant_of_the_run",),
    ),
    Mutation(
        number=45,
        name="Dr. GRPO does not divide by the number of completions",
        file=AGGREGATE,
        old="torch.ones_like(step.lengths) / (step.num_sequences * step.max_length)",
        new="torch.ones_like(step.lengths) / step.max_length",
        tests=(
            f"{SUITE}test_dr_grpo_divides_by_the_number_of_completions_and_a_constant_of_the_run",
            f"{SUITE}test_the_batch_twice_over_has_the_same_gradient",
        ),
    ),
    Mutation(
        number=46,
        name="the last micro-batch is dropped",
        file=LEARNER,
        old="for done, packs in enumerate(micro_batches, start=1):",
        new="for done, packs in enumerate(micro_batches[:-1] or micro_batches, start=1):",
        tests=(f"{SUITE}test_every_micro_batch_counts_the_last_one_too", PLAIN_MEAN),
    ),
    Mutation(
        number=46,
        name="groups left over by minibatches of equal size are dropped",
        file=LEARNER,
        old="bounds = [num_groups * index // count for index in range(count + 1)]",
        new="bounds = [num_groups // count * index for index in range(count + 1)]",
        tests=(f"{SUITE}test_every_group_serves_in_one_update_of_a_pass",),
    ),
    Mutation(
        number=47,
        name="ranks average their gradients instead of adding them up",
        file="src/covey/distributed.py",
        old="self.sum([parameter.grad for parameter in trained if parameter.grad is not None])",
        new="self.sum([parameter.grad.div_(self.count) for parameter in trained if parameter.grad is not None])",
        tests=(f"{SUITE}test_two_ranks_have_the_gradient_of_one_though_one_has_a_token_and_the_other_fifteen",),
    ),
    Mutation(
        number=48,
        name="rejected tokens stay in the denominator",
        file="src/covey/token_choice.py",
        old="mask=batch.mask & (weights > 0))",
        new="mask=batch.mask)",
        tests=(f"{SUITE}test_tokens_that_a_correction_rejects_leave_the_denominator",),
    ),
    Mutation(
        number=48,
        name="completions without a trained token are counted",
        file=AGGREGATE,
        old="return (self.lengths > 0).sum().clamp(min=1).to(self.lengths.dtype)",
        new="return (self.lengths >= 0).sum().clamp(min=1).to(self.lengths.dtype)",
        tests=(f"{SUITE}test_completions_without_a_trained_token_are_not_counted",),
    ),
    Mutation(
        number=49,
        name="later updates take their own log-probs for the old ones",
        file=LEARNER,
        old="with_old = [with_old_logprobs(part, logprobs) for",
        new="with_old = [with_old_logprobs(part, None) for",
        tests=("tests/conformance/test_losses.py::test_updates_after_the_first_have_a_ratio_against_the_policy_before_it",),
    ),
    Mutation(
        number=50,
        name="every step begins the epoch anew",
        file="src/covey/tasks/base.py",
        old="first, last = start - epoch * len(train), start + count - epoch * len(train)",
        new="first, last = 0, count",
        tests=(f"{SUITE}test_an_epoch_shows_every_prompt_once_and_the_next_in_another_order",),
    ),
    Mutation(
        number=50,
        name="the order of an epoch draws prompts with replacement",
        file="src/covey/sampling.py",
        old="    return sorted(range(length), key=lambda index: (uniform(key, index), index))",
        new="    return [int(uniform(key, index) * length) for index in range(length)]",
        tests=(f"{SUITE}test_an_epoch_shows_every_prompt_once_and_the_next_in_another_order",),
    ),
]
