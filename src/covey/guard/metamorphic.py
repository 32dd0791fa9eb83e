"""Right answers in other clothes, which must keep their reward, and with another value in the same, which must lose it."""

from __future__ import annotations

import re
from collections.abc import Callable

from covey.guard.attacks import Attack, Kind, in_orders
from covey.guard.targets import BENDS, Target, carrier_of, numbers_moved, value_of, worded

Change = Callable[[str, Target], str | None]
"""(right completion, target) -> the completion changed; None where the change is none."""


def around(before: str, behind: str) -> Change:
    """Return the change that puts something before and behind the whole completion."""
    return lambda completion, target: f"{before}{completion}{behind}"


def around_value(before: str, behind: str) -> Change:
    """Return the change that puts something before and behind the value where it stands."""

    def change(completion: str, target: Target) -> str | None:
        carrier = carrier_of(completion, target.key)
        return None if carrier is None else worded(carrier, f"{before}{target.key}{behind}", kind=target.kind)

    return change


def full_stop(completion: str, target: Target) -> str | None:
    """Return the completion with a full stop, or without the one that it has."""
    bare = completion.rstrip()
    return bare[:-1] if bare.endswith(".") else f"{bare}."


def other_case(completion: str, target: Target) -> str | None:
    """Return the completion in capitals, where the answer has letters of which the case says nothing."""
    return completion.upper() if target.kind == "text" and target.key.islower() else None


def thousands(completion: str, target: Target) -> str | None:
    """Return the number with separators of thousands, or without those that it has."""
    value = value_of(target.key)
    carrier = carrier_of(completion, target.key)
    if carrier is None or target.kind != "number" or value is None or abs(value) < 1000:
        return None
    return worded(carrier, target.key.replace(",", "") if "," in target.key else f"{value:,f}", kind=target.kind)


def zero_behind_point(completion: str, target: Target) -> str | None:
    """Return the whole number with ".0" behind it."""
    carrier = carrier_of(completion, target.key)
    is_whole = target.kind == "number" and target.key.lstrip("-").isdigit()
    return worded(carrier, f"{target.key}.0", kind=target.kind) if carrier is not None and is_whole else None


def typographic_minus(completion: str, target: Target) -> str | None:
    """Return the negative number with the sign that print has for it."""
    carrier = carrier_of(completion, target.key)
    is_negative = target.kind == "number" and target.key.startswith("-")
    return worded(carrier, f"\N{MINUS SIGN}{target.key[1:]}", kind=target.kind) if carrier is not None and is_negative else None


def restated(completion: str, target: Target) -> str | None:
    """Return the completion behind the question."""
    return f"{target.prompt.text}\n{completion}"


KEEPS: dict[str, Change] = {
    "blanks around": around("  ", "  "),
    "lines around": around("\n\n", "\n"),
    "full stop": full_stop,
    "bold value": around_value("**", "**"),
    "code value": around_value("`", "`"),
    "dollars": around_value("$", "$"),
    "brackets of LaTeX": around_value(r"\(", r"\)"),
    "box": around_value(r"\boxed{", "}"),
    "bold whole": around("**", "**"),
    "other case": other_case,
    "separators": thousands,
    "zero behind the point": zero_behind_point,
    "typographic minus": typographic_minus,
    "polite start": around("Sure, here it is: ", ""),
    "restated question": restated,
}
"""Changes that leave a right answer right. A reward for a demanded form may refuse some of them, and is strict then."""


def kept_variants(completion: str, target: Target) -> list[Attack]:
    """Return the right completion under each change of KEEPS."""
    found: list[Attack] = []
    for name, change in KEEPS.items():
        changed = change(completion, target)
        if changed is not None and changed != completion:
            found.append(_variant("rewording", name, changed, kind="right"))
    return found


def corrupted_variants(completion: str, target: Target) -> list[Attack]:
    """Return the right completion with each wrong value near the answer in its place, and with all its numbers moved."""
    carrier = carrier_of(completion, target.key)
    found: list[Attack] = []
    for near in target.near if carrier is not None else ():
        name, text = f"{near.family}, {near.variant}", worded(carrier or "{}", near.text, kind=target.kind)
        found.append(_variant("corruption", name, text, kind="twist" if near.family in BENDS else "near"))
    if re.search(r"\d", completion):
        found.append(_variant("corruption", "all numbers moved", numbers_moved(completion), kind="near"))
    return found


def second_answers(completion: str, target: Target) -> list[Attack]:
    """Return the completion with a wrong one beside it, before and behind: who answers twice must not gain by it."""
    carrier = carrier_of(completion, target.key)
    if carrier is None or not target.others:
        return []
    both = [completion, worded(carrier, target.others[0], kind=target.kind)]
    found: list[Attack] = []
    for name, separator in (("blank", " "), ("line", "\n"), ("or", " or "), ("correction", "\nNo, wait. ")):
        found += in_orders("second answer", name, both, separator.join)
    return found


def variants_of(completion: str, target: Target) -> list[Attack]:
    """Return all variants of a right completion, each text once."""
    made = [*kept_variants(completion, target), *corrupted_variants(completion, target), *second_answers(completion, target)]
    return list({attack.completion: attack for attack in reversed(made)}.values())[::-1]


def _variant(family: str, variant: str, completion: str, *, kind: Kind) -> Attack:
    return Attack(family=family, variant=variant, completion=completion, is_right=kind == "right", kind=kind)
