"""What pages say of the committed comparison of algorithms (`benchmarks/results/compare.json`), in the words of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from covey.compare.verdicts import signed_points
from covey.report.compare.blocks import Pictures, Report, Section
from covey.report.compare.content import primary_key, report_of
from covey.report.compare.markdown import markdown

ABSENT = "Not measured yet."
Result = Mapping[str, Any]


def answer_part(result: Result) -> str:
    """Return the answer to the question that was declared, with what could be found and who beats the model as it is."""
    if not result:
        return ABSENT
    report = report_of(dict(result), name="comparison")
    said = markdown(Report(name="", headline=report.headline, tone="", lead=report.lead, sections=()))
    headline, _, rest = said.strip().removeprefix("# ").partition("\n\n")
    return f"**{headline}**\n\n{rest}"


def section_part(title: str) -> Callable[[Result], str]:
    """Return what gives a section of the report, without its pictures and its heading."""

    def part(result: Result) -> str:
        if not result:
            return ABSENT
        found = next(section for section in report_of(dict(result), name="comparison").sections if section.title == title)
        blocks = tuple(block for block in found.blocks if not isinstance(block, Pictures))
        text = markdown(Report(name="", headline="", tone="", lead=(), sections=(Section(title="", blocks=blocks),)))
        return text.removeprefix("# \n\n## \n\n").strip()

    return part


def arm_part(name: str) -> Callable[[Result], str]:
    """Return what gives the result of one arm in two sentences."""

    def part(result: Result) -> str:
        arm = next((arm for arm in result.get("arms", ()) if arm["name"] == name), None)
        if arm is None or not arm.get("scores"):
            return ABSENT
        key = primary_key(dict(result))
        gold, gain, proxy = arm["scores"][key], arm["gain_over_base"], arm["proxy"][key]
        budget = result["plan"]["budget_tokens"]
        return (
            f"In the committed [comparison](../guide/when-grpo.md) ({len(arm['seeds'])} seeds, {budget:,} generated tokens, "
            f"learning rate {arm['learning_rate']:g} chosen among {len(result['plan']['learning_rates'])}): gold "
            f"{_percent(gold)} of held-out questions, {signed_points(gain['mean'])} over the model as it is "
            f"[{signed_points(gain['low'])}, {signed_points(gain['high'])}]; the reward itself {_percent(proxy)}."
        )

    return part


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
