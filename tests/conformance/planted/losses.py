"""Classes 28 to 42."""

from __future__ import annotations

from tests.conformance.mutation import Mutation

SUITE = "tests/conformance/test_losses.py::"
OBJECTIVE, KL, LEARNER = "src/covey/algos/objective.py", "src/covey/algos/kl.py", "src/covey/learner.py"
SCORING, DISTRIBUTION = "src/covey/models/scoring.py", "src/covey/models/distribution.py"
SAMPLED_FROM = f"{SUITE}test_completions_are_scored_under_the_distribution_they_were_sampled_from"
TEXTBOOK = f"{SUITE}test_with_old_log_probs_and_a_reference_the_gradient_is_the_textbook_one"
GRADIENTS = f"{SUITE}test_each_kl_term_has_the_expected_gradient_that_its_row_names"
CLOSER = f"{SUITE}test_a_step_on_the_kl_term_alone_brings_the_policy_closer_to_the_reference"
RATIO = f"{SUITE}test_the_ratio_is_against_the_old_policy_and_not_the_reference"

MUTATIONS = [
    Mutation(
        number=28,
        name="every update takes its own log-probs for the old ones",
        file=LEARNER,
        old="old_logprobs=_rows(batch.scores.old_logprobs, rows),",
        new="old_logprobs=None,",
        tests=(f"{SUITE}test_the_second_update_on_a_batch_has_a_ratio_and_the_first_has_none", TEXTBOOK),
    ),
    Mutation(
        number=28,
        name="old log-probs are computed after the updates before",
        file=LEARNER,
        old="self._update_both(part, progress=progress) for part in with_old",
        new=(
            "self._update_both(part if part.scores.old_logprobs is None else with_old_logprobs(part, "
            "self.score(self.model, part.tokens).logprobs), progress=progress) for part in with_old"
        ),
        tests=(f"{SUITE}test_updates_after_the_first_have_a_ratio_against_the_policy_before_it",),
    ),
    Mutation(
        number=29,
        name="the ratio is against the reference",
        file=OBJECTIVE,
        old="    log_ratio = spec.log_ratio(logprobs, old, mask)\n",
        new=("    log_ratio = spec.log_ratio(logprobs, old if inputs.ref_logprobs is None else inputs.ref_logprobs, mask)\n"),
        tests=(RATIO, TEXTBOOK),
    ),
    Mutation(
        number=30,
        name="the model stays in training mode",
        file="src/covey/models/policy.py",
        old="    model.eval()  # No dropout, ever: sampling and scoring must see one and the same policy.\n",
        new="    model.train()\n",
        tests=(f"{SUITE}test_scoring_draws_no_random_numbers_although_dropout_is_configured",),
    ),
    Mutation(
        number=31,
        name="scoring forgets the temperature",
        file=LEARNER,
        old="            sampling=self.scoring.sampling,\n",
        new="            sampling=dataclasses.replace(self.scoring.sampling, temperature=1.0),\n",
        tests=(SAMPLED_FROM, TEXTBOOK),
    ),
    Mutation(
        number=32,
        name="scoring does not know of top-k, top-p and min-p",
        file=LEARNER,
        old="            sampling=self.scoring.sampling,\n",
        new="            sampling=dataclasses.replace(self.scoring.sampling, top_k=0, top_p=1.0, min_p=0.0),\n",
        tests=(SAMPLED_FROM,),
    ),
    Mutation(
        number=32,
        name="scoring does not know of the repetition penalty",
        file=LEARNER,
        old="            sampling=self.scoring.sampling,\n",
        new="            sampling=dataclasses.replace(self.scoring.sampling, repetition_penalty=1.0),\n",
        tests=(SAMPLED_FROM,),
    ),
    Mutation(
        number=33,
        name="logits are normalised in the precision they come in",
        file=DISTRIBUTION,
        old="    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))\n",
        new="",
        tests=(f"{SUITE}test_bfloat16_logits_are_normalised_in_float32",),
    ),
    Mutation(
        number=33,
        name="log-probs are rounded to bfloat16",
        file=SCORING,
        old="    return logprobs.gather(1, targets[:, None])[:, 0], entropy",
        new="    return logprobs.gather(1, targets[:, None])[:, 0].bfloat16().to(logprobs.dtype), entropy",
        tests=(f"{SUITE}test_log_probs_of_a_bfloat16_forward_pass_are_float32_and_close",),
    ),
    Mutation(
        number=34,
        name="the clip takes the larger of the two terms",
        file="src/covey/algos/surrogates.py",
        old="loss = -torch.minimum(bounded * advantages",
        new="loss = -torch.maximum(bounded * advantages",
        tests=(f"{SUITE}test_the_clip_has_the_right_value_and_gradient_in_all_four_quadrants",),
    ),
    Mutation(
        number=34,
        name="the clip forgets the advantage's sign",
        file="src/covey/algos/surrogates.py",
        old="loss = -torch.minimum(bounded * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)",
        new="loss = -torch.minimum(bounded, ratio.clamp(1 - epsilon_low, 1 + epsilon_high)) * advantages",
        tests=(f"{SUITE}test_the_clip_has_the_right_value_and_gradient_in_all_four_quadrants",),
    ),
    Mutation(
        number=35,
        name="the log-ratio has no bound",
        file="src/covey/algos/ratios.py",
        old="    return (logprobs - old_logprobs).clamp(-max_log_ratio, max_log_ratio)",
        new="    return logprobs - old_logprobs",
        tests=(f"{SUITE}test_log_probs_that_differ_by_a_hundred_give_a_finite_loss_and_gradient",),
    ),
    Mutation(
        number=35,
        name="k3's exponent has no bound",
        file=KL,
        old="    log_ratio = (ref_logprobs - logprobs).clamp(-max_log_ratio, max_log_ratio)\n",
        new="    log_ratio = ref_logprobs - logprobs\n",
        tests=(f"{SUITE}test_log_probs_that_differ_by_a_hundred_give_a_finite_loss_and_gradient",),
    ),
    Mutation(
        number=36,
        name="the KL term is rewarded",
        file=OBJECTIVE,
        old="token_loss = token_loss + coefficients.beta * in_loss",
        new="token_loss = token_loss - coefficients.beta * in_loss",
        tests=(CLOSER, TEXTBOOK),
    ),
    Mutation(
        number=36,
        name="KL in the reward is added instead of subtracted",
        file="src/covey/credit.py",
        old="credit = credit - kl_weight * kl_to_go",
        new="credit = credit + kl_weight * kl_to_go",
        tests=(f"{SUITE}test_kl_in_the_reward_reaches_the_tokens_before_it_and_lowers_their_credit",),
    ),
    Mutation(
        number=36,
        name="k3 is taken in the other direction",
        file=KL,
        old="    log_ratio = (ref_logprobs - logprobs).clamp(-max_log_ratio, max_log_ratio)\n",
        new="    log_ratio = (logprobs - ref_logprobs).clamp(-max_log_ratio, max_log_ratio)\n",
        tests=(GRADIENTS, TEXTBOOK),
    ),
    Mutation(
        number=37,
        name="k1 stands in for k2",
        file=KL,
        old="in_loss=lambda logprobs, ref, old: k2(logprobs, ref),",
        new="in_loss=lambda logprobs, ref, old: k1(logprobs, ref),",
        tests=(GRADIENTS, CLOSER),
    ),
    Mutation(
        number=37,
        name="k3's weight carries no gradient",
        file=KL,
        old="    weight = (logprobs - old_logprobs).clamp(-max_log_ratio, max_log_ratio).exp()",
        new="    weight = (logprobs.detach() - old_logprobs).clamp(-max_log_ratio, max_log_ratio).exp()",
        tests=(GRADIENTS,),
    ),
    Mutation(
        number=37,
        name="KL in the reward does not reach earlier tokens",
        file=KL,
        old="    return torch.where(mask, masked.flip(1).cumsum(dim=1).flip(1), 0.0)",
        new="    return masked",
        tests=(f"{SUITE}test_kl_in_the_reward_reaches_the_tokens_before_it_and_lowers_their_credit",),
    ),
    Mutation(
        number=38,
        name="the KL term is averaged over all positions before it is added",
        file=OBJECTIVE,
        old="in_loss(logprobs, inputs.ref_logprobs, old)\n",
        new="in_loss(logprobs, inputs.ref_logprobs, old).mean()\n",
        tests=(f"{SUITE}test_the_kl_term_belongs_to_its_token_and_masked_positions_to_none", TEXTBOOK),
    ),
    Mutation(
        number=38,
        name="the loss sums masked positions too",
        file="src/covey/algos/aggregate.py",
        old="return (torch.where(mask, token_loss, 0.0).sum(dim=1) * weights).sum()",
        new="return (token_loss.sum(dim=1) * weights).sum()",
        tests=(f"{SUITE}test_the_kl_term_belongs_to_its_token_and_masked_positions_to_none",),
    ),
    Mutation(
        number=40,
        name="the reference is the policy itself",
        file="src/covey/session.py",
        old="reference = copy.deepcopy(policy.model).requires_grad_(False) if",
        new="reference = policy.model if",
        tests=("tests/conformance/test_rollouts.py::test_the_reference_stays_behind_while_the_policy_moves",),
    ),
    Mutation(
        number=40,
        name="the reference follows the policy after every step",
        file="src/covey/train.py",
        old="is_due(step, algorithm.reference_every)",
        new="is_due(step, 1)",
        tests=("tests/conformance/test_rollouts.py::test_the_reference_stays_behind_while_the_policy_moves",),
    ),
    Mutation(
        number=42,
        name="the entropy is that of untempered logits",
        file=SCORING,
        old="        entropy = entropy_of(logprobs) if sampling.is_filtered else -(logprobs.exp() * logprobs).sum(dim=-1)",
        new="        entropy = entropy_of(logits.log_softmax(dim=-1))",
        tests=(f"{SUITE}test_the_entropy_is_that_of_the_tempered_distribution",),
    ),
    Mutation(
        number=42,
        name="the entropy bonus is weighed like the loss",
        file=OBJECTIVE,
        old="        bonus = torch.where(mask, inputs.entropy, 0.0).sum() / inputs.num_tokens\n",
        new="        bonus = aggregate(inputs.entropy, mask, inputs.weights)\n",
        tests=(f"{SUITE}test_the_entropy_bonus_is_the_same_under_every_aggregation",),
    ),
]
