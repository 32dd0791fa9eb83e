"""What is recorded of a run: benchmarks/results/parity_trl.json, and the numbers of docs/parity.md made of it.

It needs no TRL, and it imports nothing else of this package.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.types import CoveyError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "parity_trl.json"
PAGE = ROOT / "docs" / "parity.md"
QUANTITIES = ("advantages", "loss", "gradient")
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
LOSSES = {
    "grpo": ("`grpo`", "`grpo`"),
    "dr_grpo": ("`dr_grpo`", "`dr_grpo`"),
    "dapo": ("`dapo`", "`dapo`"),
    "bnpo": ("`bnpo`", "`grpo`, `token-mean`"),
    "cispo": ("`cispo`", "`cispo`, `epsilon_high` less 1"),
    "sapo": ("`sapo`", "`sapo`"),
    "luspo": ("`luspo`", "`grpo`, `seq-mean-token-sum`"),
    "gmpo (trl.experimental)": ("`gmpo` (experimental trainer)", "`gmpo`"),
}
"""What the page calls a loss of TRL and its counterpart in Covey, by the first words of the cases' names."""

Record = Mapping[str, Any]
"""What is known of a case: its name, its differences in both precisions, and whether it does what it says."""


def print_record(record: Record) -> None:
    """Print one line for a case, and three for one that differs by design."""
    if "why" in record:
        before = record["unadjusted"]
        print(f"      {record['name']}: {record['why']}")
        print("        as it is    " + "  ".join(f"{name} {before[name]:.1e}" for name in QUANTITIES))
        print(f"        adjusted: {record['adjustment']}")
    label = "" if "why" in record else record["name"]
    numbers = "  ".join(
        f"{dtype}: " + " ".join(f"{name} {record[dtype][name]:.1e}" for name in QUANTITIES) for dtype in TOLERANCES
    )
    print(f"{record['result']}  {label:44s} {numbers}", flush=True)


def failed_names(records: Iterable[Record]) -> list[str]:
    return [record["name"] for record in records if record["result"] == "FAIL"]


def write_results(records: Sequence[Record]) -> None:
    report = {
        "command": "python benchmarks/parity_trl.py",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": describe_machine()["cpu"],
        "versions": describe_versions() | {"trl": importlib.metadata.version("trl")},
        "tolerances": TOLERANCES,
        "cases": records,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_text_atomic(RESULTS, json.dumps(report, indent=1) + "\n")


def write_page() -> None:
    """Write what the results say between the marker comments of docs/parity.md."""
    report = json.loads(RESULTS.read_text())
    if failed := failed_names(report["cases"]):
        raise CoveyError(f"{RESULTS} holds cases that failed, {', '.join(failed)}: compare anew, without --docs")
    write_text_atomic(PAGE, with_results(PAGE.read_text(), report))


def with_results(page: str, report: Mapping[str, Any]) -> str:
    """Return the page with what stands between its marker comments made anew."""
    for name, text in generated_parts(report).items():
        start, end = f"<!-- generated: {name} -->\n", f"<!-- end of generated {name} -->\n"
        before, rest = page.split(start)
        _, after = rest.split(end)
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def generated_parts(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands on the page between its marker comments, by their names."""
    cases = report["cases"]
    return {
        "summary": summary(report),
        "losses": losses_table([record for record in cases if record["table"] == "loss types"]),
        "options": options_table([record for record in cases if record["table"] == "options"]),
        "differences": differences_table([record for record in cases if record["table"] == "by design"]),
    }


def summary(report: Mapping[str, Any]) -> str:
    cases, bounds, versions = report["cases"], report["tolerances"], report["versions"]
    num_differing = sum("why" in record for record in cases)
    gradients = [record["float32"]["largest_gradient"] for record in cases]
    largest = " and ".join(f"{short(left(cases, dtype))} in {dtype} (bound {short(bound)})" for dtype, bound in bounds.items())
    logprobs = " and ".join(f"{short(left(cases, dtype, ['logprobs']))} ({dtype})" for dtype in bounds)
    paragraphs = (
        f"{len(cases)} cases: {len(cases) - num_differing} agree as they are, {num_differing} differ by design and agree once "
        "the difference is taken out.",
        f"Largest absolute difference of advantages, loss and gradient over all of them: {largest}. The log-probs of both "
        f"agree within {logprobs}. The largest element of a gradient is {min(gradients):.2g} to {max(gradients):.2g}, "
        "depending on the case.",
        f"Measured on {report['date']}: TRL {versions['trl']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, {report['cpu']}.",
    )
    return "\n".join(textwrap.fill(paragraph, width=128) + "\n" for paragraph in paragraphs)


def losses_table(records: Sequence[Record]) -> str:
    """Return a row for each loss, with the largest differences over its settings."""
    head = ("TRL's `loss_type`", "Covey's row, aggregation", "settings", *QUANTITIES, "float64")
    rows = []
    for loss, names in LOSSES.items():
        settings = [record for record in records if record["name"].split(":")[0] == loss]
        rows.append((*names, str(len(settings)), *columns(settings)))
    return table(head, rows)


def options_table(records: Sequence[Record]) -> str:
    return table(("setting", *QUANTITIES, "float64"), [(record["name"], *columns([record])) for record in records])


def differences_table(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        as_it_is = ", ".join(f"{name} {short(record['unadjusted'][name])}" for name in record["differs"])
        rows.append((record["name"], record["why"], as_it_is, record["adjustment"], short(left([record], "float32"))))
    return table(("case", "why", "as it is", "adjustment", "left"), rows)


def columns(records: Iterable[Record]) -> list[str]:
    """Return the largest differences over the records: each quantity's in float32, and that of all of them in float64."""
    records = list(records)
    return [short(left(records, "float32", [name])) for name in QUANTITIES] + [short(left(records, "float64"))]


def left(records: Iterable[Record], dtype: str, names: Iterable[str] = QUANTITIES) -> float:
    """Return the largest difference over the records that is left where they agree."""
    return max(record[dtype][name] for record in records for name in names)


def short(value: float) -> str:
    """Return the value with one digit: 4e-7, 0.1, 3e+8."""
    digits = f"{value:.0e}"
    if value == 0 or 0.1 <= float(digits) < 10:
        return f"{value:.1g}"
    mantissa, exponent = digits.split("e")
    return f"{mantissa}e{int(exponent):+d}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
