"""Classes 15 to 27."""

from __future__ import annotations

from tests.conformance.mutation import Mutation

SUITE = "tests/conformance/test_advantages.py::"
GROUP, BATCH_WIDE = "src/covey/algos/advantages.py", "src/covey/algos/batch_advantages.py"
ROLLOUT, BATCH, LEARNER = "src/covey/rollout.py", "src/covey/batch.py", "src/covey/learner.py"

MUTATIONS = [
    Mutation(
        number=15,
        name="advantages are laid out sample by sample",
        file="src/covey/algos/credit.py",
        old="advantages.detach().to(torch.float32).reshape(-1, 1)",
        new="advantages.detach().to(torch.float32).T.reshape(-1, 1)",
        tests=(
            f"{SUITE}test_every_group_holds_the_rewards_of_its_own_prompt",
            f"{SUITE}test_credit_follows_the_rows_of_its_group_and_carries_no_gradient",
        ),
    ),
    Mutation(
        number=15,
        name="first tokens are drawn from the logits of other prompts",
        file="src/covey/engines/transformers.py",
        old="logits.repeat_interleave(group_size, dim=0)",
        new="logits.repeat(group_size, 1)",
        tests=("tests/contracts/test_engines.py::test_logprobs_are_those_of_the_trainer",),
    ),
    Mutation(
        number=16,
        name="completions are scored with the next prompt's answer",
        file=ROLLOUT,
        old="for prompt, group in zip(prompts, completions, strict=True)",
        new="for prompt, group in zip([*prompts[1:], prompts[0]], completions, strict=True)",
        tests=(f"{SUITE}test_every_completion_is_judged_by_the_answer_to_its_own_prompt",),
    ),
    Mutation(
        number=17,
        name="a minibatch takes the first old log-probs instead of its own",
        file=BATCH,
        old="old_logprobs=pick(scores.old_logprobs),",
        new="old_logprobs=None if scores.old_logprobs is None else scores.old_logprobs[: len(rows)],",
        tests=(f"{SUITE}test_a_minibatch_holds_what_belongs_to_its_rows",),
    ),
    Mutation(
        number=17,
        name="micro-batches are sorted, the reference's log-probs are not",
        file=LEARNER,
        old="ref_logprobs=_rows(batch.scores.ref_logprobs, rows),",
        new="ref_logprobs=_rows(batch.scores.ref_logprobs, rows.sort().values),",
        tests=(f"{SUITE}test_every_row_meets_its_own_old_and_reference_log_probs_however_the_step_is_cut",),
    ),
    Mutation(
        number=18,
        name="the deviation has the divisor n",
        file=GROUP,
        old="return (squares / (count - ddof).clamp(min=1)).sqrt()",
        new="return (squares / count.clamp(min=1)).sqrt()",
        tests=(f"{SUITE}test_grpo_divides_by_the_documented_deviation",),
    ),
    Mutation(
        number=18,
        name="eps is another than documented",
        file=GROUP,
        old="ddof: int = 1, eps: float = 1e-4, min_group_std: float = 0.0",
        new="ddof: int = 1, eps: float = 1e-6, min_group_std: float = 0.0",
        tests=(f"{SUITE}test_grpo_divides_by_the_documented_deviation",),
    ),
    Mutation(
        number=19,
        name="equal rewards are not told apart from different ones",
        file=GROUP,
        old="    return highest > lowest\n",
        new="    return highest >= lowest\n",
        tests=(f"{SUITE}test_a_flat_group_gives_exactly_zero_whatever_rounding_does",),
    ),
    Mutation(
        number=20,
        name="a step without a signal lets momentum move the weights",
        file=LEARNER,
        old="        has_term = (batch.advantages * batch.mask != 0).any(dim=1)\n",
        new="        has_term = torch.ones(len(batch.mask), dtype=torch.bool)\n",
        tests=(f"{SUITE}test_a_flat_batch_moves_nothing_without_a_kl_term_and_is_held_back_with_one",),
    ),
    Mutation(
        number=20,
        name="flat groups are skipped although the KL term acts on them",
        file=LEARNER,
        old="        if self.acts_in_loss or self.coefficients.entropy:\n            has_term = torch.ones_like(has_term)\n",
        new="",
        tests=(f"{SUITE}test_a_flat_batch_moves_nothing_without_a_kl_term_and_is_held_back_with_one",),
    ),
    Mutation(
        number=21,
        name="a single failure is a group in which all fail",
        file=GROUP,
        old="has_signal = rewards_differ(stats) | ((mean == 0) & has_pair(stats))",
        new="has_signal = rewards_differ(stats) | (mean == 0)",
        tests=(f"{SUITE}test_a_single_scored_completion_has_no_advantage_unless_the_row_has_another_baseline",),
    ),
    Mutation(
        number=21,
        name="a single completion's mean counts as 0",
        file=GROUP,
        old="    return torch.where(rewards_differ(stats) & stats.scored, stats.rewards - group_mean(stats), 0.0)",
        new=(
            "    single = stats.scored.sum(dim=1, keepdim=True) == 1\n"
            "    mean = torch.where(single, 0.0, group_mean(stats))\n"
            "    return torch.where((rewards_differ(stats) | single) & stats.scored, stats.rewards - mean, 0.0)"
        ),
        tests=(f"{SUITE}test_a_single_scored_completion_has_no_advantage_unless_the_row_has_another_baseline",),
    ),
    Mutation(
        number=22,
        name="a reward that could not be computed is a 0",
        file=BATCH,
        old="    return rollout.reward.value is not None and not is_left_out",
        new="    return not is_left_out",
        tests=(f"{SUITE}test_an_unscorable_completion_is_no_wrong_one",),
    ),
    Mutation(
        number=23,
        name="a group's mean divides by the width of the table",
        file=GROUP,
        old=(
            "    count = stats.scored.sum(dim=1, keepdim=True)\n"
            "    return torch.where(stats.scored, stats.rewards, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)"
        ),
        new=(
            "    count = torch.full_like(stats.scored[:, :1].long(), stats.rewards.shape[1])\n"
            "    return torch.where(stats.scored, stats.rewards, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)"
        ),
        tests=(f"{SUITE}test_groups_of_different_sizes_are_each_as_if_alone",),
    ),
    Mutation(
        number=23,
        name="a reshape mixes the tokens of different groups",
        file="src/covey/algos/aggregate.py",
        old="return self.lengths.reshape(-1, self.group_size).sum(dim=1)",
        new="return self.lengths.reshape(self.group_size, -1).sum(dim=0)",
        tests=(f"{SUITE}test_a_mean_over_groups_counts_each_group_by_its_own_tokens",),
    ),
    Mutation(
        number=24,
        name="a rank keeps to the groups that it sampled itself",
        file=ROLLOUT,
        old="return ranks.gather(groups), sampled - started",
        new="return groups, sampled - started",
        tests=(f"{SUITE}test_every_rank_has_the_advantages_of_a_single_process",),
    ),
    Mutation(
        number=25,
        name="draw numbers are those of other groups",
        file=ROLLOUT,
        old="draws=[draw for draw, _ in used + dropped]",
        new="draws=[draw for draw, _ in dropped + used]",
        tests=(f"{SUITE}test_choosing_among_groups_keeps_rows_together_and_logs_all_of_them",),
    ),
    Mutation(
        number=25,
        name="the mean reward is that of the chosen groups",
        file=ROLLOUT,
        old=(
            "    rollouts = [rollout for group in sampled.all for rollout in group.rollouts]\n"
            "    rewards = [rollout.reward.value"
        ),
        new=(
            "    rollouts = [rollout for group in sampled.used[:1] for rollout in group.rollouts[:1]]\n"
            "    rewards = [rollout.reward.value"
        ),
        tests=(f"{SUITE}test_choosing_among_groups_keeps_rows_together_and_logs_all_of_them",),
    ),
    Mutation(
        number=26,
        name="advantages carry their gradient into the loss",
        file="src/covey/algos/credit.py",
        old="advantages.detach().to(torch.float32)",
        new="advantages.to(torch.float32)",
        tests=(f"{SUITE}test_credit_follows_the_rows_of_its_group_and_carries_no_gradient",),
    ),
    Mutation(
        number=27,
        name="parts are weighted before they are normalised",
        file=BATCH_WIDE,
        old=(
            "of_part = GroupStats(rewards=part, scored=stats.scored, lengths=stats.lengths, parts=stats.parts[..., :0])\n"
            "        total = total + weight * dr_grpo_advantages"
        ),
        new=(
            "of_part = GroupStats(\n"
            "            rewards=weight * part, scored=stats.scored, lengths=stats.lengths, parts=stats.parts[..., :0]\n"
            "        )\n"
            "        total = total + dr_grpo_advantages"
        ),
        tests=(f"{SUITE}test_gdpo_weighs_parts_after_they_are_normalised",),
    ),
    Mutation(
        number=27,
        name="a part that could not be scored is left out of the sum",
        file="src/covey/rewards/combine.py",
        old="        if failed:\n",
        new=(
            "        if failed and own:\n"
            "            return Score(value=sum(own.values()), parts=inner | own, extracted=extracted)\n"
            "        if failed:\n"
        ),
        tests=(f"{SUITE}test_a_part_that_could_not_be_scored_leaves_the_whole_without_a_value",),
    ),
]
