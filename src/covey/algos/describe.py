"""An objective in plain text: the row's formula with the recipe's numbers in it."""

from __future__ import annotations

from covey.algos.aggregate import Aggregation
from covey.algos.kl import KL_TERMS
from covey.algos.objective import Objective
from covey.algos.ratios import sequence_log_ratio

_AGGREGATED: dict[Aggregation, str] = {
    "token-mean": "L = sum_i sum_t l_t / sum_i T_i",
    "seq-mean-token-mean": "L = 1/N sum_i 1/T_i sum_t l_t",
    "seq-mean-token-sum": "L = 1/N sum_i sum_t l_t",
    "seq-mean-token-sum-norm": "L = 1/(N {max_new_tokens}) sum_i sum_t l_t",
    "group-mean-token-mean": "L = mean over groups of (sum over the group's tokens of l_t / their number)",
}


def formula_lines(objective: Objective, *, beta: float, max_new_tokens: int) -> list[str]:
    """Return the formula line by line: advantage, ratio, loss of a token, aggregation and KL term."""
    spec, options = objective.spec, objective.options
    lines = [spec.advantage_formula.format(**options), spec.loss_formula.format(**options)]
    if "w_t" in spec.loss_formula:
        is_sequence = spec.log_ratio is sequence_log_ratio
        ratio = "w_t = (pi(o) / pi_old(o))^(1/T), the same for all t" if is_sequence else "w_t = pi(o_t) / pi_old(o_t)"
        lines.insert(1, ratio)
    for option, text in (("dual_clip", "l_t <= -{0} A where A < 0"), ("delta", "w_t <= {0} where it is not clipped")):
        if options.get(option):
            lines.append(text.format(options[option]))
    over_pairs = "L = mean of l over the pairs of the step"
    aggregated = over_pairs if spec.pair_loss else _AGGREGATED[objective.aggregation].format(max_new_tokens=max_new_tokens)
    lines.append(aggregated)
    if beta:
        lines.append(f"KL: {beta} times {KL_TERMS[objective.kl].formula}")
    return lines


def option_lines(objective: Objective, *, beta: float) -> list[str]:
    """Return the objective's options with their values, and what its KL term does."""
    spec, term = objective.spec, KL_TERMS[objective.kl]
    lines: list[str] = []
    if spec.whitens_tokens:
        lines.append("credit is normalised over all tokens of the step")
    if spec.needs_baseline:
        lines.append("each prompt is answered greedily once more, for the baseline")
    lines += [f"{option} = {value}" for option, value in objective.options.items()]
    lines.append(f"aggregation = {objective.aggregation}")
    lines.append(f"kl = {objective.kl}: {term.formula}; its expected gradient is {term.gradient}")
    lines.append(f"beta = {beta}" + ("" if beta else ": the KL term does not act"))
    return lines
