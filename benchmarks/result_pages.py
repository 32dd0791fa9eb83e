"""The figures of docs/speed.md with its pictures, of the guard and of the audit, made of the committed results.

    python benchmarks/result_pages.py

It reads what there is in benchmarks/results, measures nothing, and writes what stands between the pages' markers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.compare_pages import answer_part, arm_part, section_part  # noqa: E402 - after the path
from benchmarks.speed_pictures import picture, scaling_picture  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "step-time.svg"
SCALING_PICTURE = ROOT / "docs" / "images" / "scaling.svg"
ABSENT = "Not measured yet."
SCALED = (("value", 0), ("total_s", 1), ("gb", 1))
ARMS = {"hacked": "planted hole", "unguarded": "planted hole, warnings only", "honest": "honest"}


def read(name: str) -> dict[str, Any]:
    """Return a committed result; empty if it has not been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(record: Mapping[str, Any], key: str, digits: int = 1) -> str:
    return f"{record[key]:.{digits}f}" if record.get(key) is not None else "-"


def steps_part(result: Mapping[str, Any]) -> str:
    """Return the table of a step's seconds."""
    rows = [
        [
            f"`{name}`",
            *(number(record, key) for key in ("covey_s", "covey_sampling_s", "covey_update_s", "trl_s", "ratio")),
            number(record, "covey_over_floor", 2),
            *(number(record, key) for key in ("covey_gb", "trl_gb")),
            f"{record.get('covey_num_steps', 0)} / {record.get('trl_num_steps', 0)}",
        ]
        for name, record in result.get("workloads", {}).items()
        if "covey_s" in record
    ]
    if not rows:
        return ABSENT
    header = ["", "Covey s", "sampling", "update", "TRL s", "ratio", "times the floor", "Covey GB", "TRL GB", "steps counted"]
    chosen = result["trl_configuration"]
    found = table(header, rows) + f"\n\nTRL's fastest configuration: {chosen['dtype']}, {chosen['rows']} rows a micro-batch."
    first = result["workloads"].get("W", {})
    if "ratio_default" in first:
        found += (
            f" TRL as installed, without settings of the allocator: {number(first, 'trl_default_s')} s on `W`, "
            f"{number(first, 'ratio_default')} times as long as Covey."
        )
    return found + f"\n\n{described(result)}"


def configurations_part(result: Mapping[str, Any]) -> str:
    """Return the table of TRL's configurations."""
    rows = [
        [entry["dtype"], str(entry["rows"]), *(number(entry, key) for key in ("total_s", "sampling_s", "update_s", "gb"))]
        for entry in result.get("trl_configurations", [])
        if "total_s" in entry
    ]
    return table(["precision", "rows a micro-batch", "s", "sampling", "update", "GB"], rows) if rows else ABSENT


def decode_part(result: Mapping[str, Any]) -> str:
    """Return the table of tokens a second."""
    measured = sorted(result.get("rows", {}).items(), key=lambda item: int(item[0]))
    sizes = {size: record for size, record in measured if record.get("tokens_per_s")}
    if not sizes:
        return ABSENT
    names = list(dict.fromkeys(name for record in sizes.values() for name in record["tokens_per_s"]))
    rows = [
        [name, *(f"{r['tokens_per_s'][name]['median']:.0f}" if name in r["tokens_per_s"] else "-" for r in sizes.values())]
        for name in names
    ]
    rows.append(["native, share of the limit", *(f"{r['share_of_limit']:.0%}" for r in sizes.values())])
    return table(["tokens a second", *(f"B = {size}" for size in sizes)], rows) + f"\n\n{described(result)}"


def plan_part(result: Mapping[str, Any]) -> str:
    """Return the table of plans and truth."""
    rows = [
        [
            f"`{name}`",
            number(record, "measured_s"),
            ", ".join(f"{value:.1f}" for value in record["planned_s"]),
            f"{record['error_frac']:+.0%}",
            number(record, "measured_gb", 2),
            ", ".join(f"{value:.2f}" for value in record["planned_gb"]),
            f"{record['memory_error_frac']:+.0%}",
        ]
        for name, record in result.get("workloads", {}).items()
    ]
    header = ["", "measured s", "planned s", "worst", "measured GB", "planned GB", "worst"]
    return table(header, rows) if rows else ABSENT


def job_part(result: Mapping[str, Any]) -> str:
    """Return the comparison on the main job."""
    if "covey_step_s" not in result or "trl_step_s" not in result:
        return ABSENT
    keys = (("covey_step_s", "trl_step_s", "step_ratio"), ("covey_one_draw_step_s", "trl_step_s", "step_ratio_one_draw"))
    names = ("a step, the first five", "the same, one draw on both sides")
    rows = [[name, "", *(number(result, key) for key in row)] for name, row in zip(names, keys, strict=True)]
    for target, record in result["by_target"].items():
        seeds = ", ".join("never" if seconds is None else f"{seconds:.0f}" for seconds in record["covey_s_by_seed"])
        trl = number(record, "trl_s", 0) if record["trl_s"] else f"not in {record['trl_trained_s']:.0f}"
        rows.append([f"training to {target}", seeds, number(record, "covey_s", 0), trl, number(record, "ratio")])
    return table(["seconds of", "Covey's seeds", "Covey", "TRL", "ratio"], rows) + f"\n\n{described(result)}"


def scaling_part(result: Mapping[str, Any]) -> str:
    """Return the table of how a step grows."""
    rows = [
        [
            axis,
            *(" to ".join(f"{record['points'][end][key]:.{digits}f}" for end in (0, -1)) for key, digits in SCALED),
            *(f"{record['growth'][f'{key}_ratio']:.1f}" for key in ("value", "total_s", "sampling_s", "update_s", "gb")),
        ]
        for axis, record in result.get("axes", {}).items()
        if len(record["points"]) > 1
    ]
    header = ["", "from, to", "seconds", "GB", "grows by", "step", "sampling", "update", "memory"]
    return table(header, rows) + f"\n\n{described(result)}" if rows else ABSENT


def simulation_part(result: Mapping[str, Any]) -> str:
    """Return by scenario how often runs are ended, and which detectors speak."""
    if not result.get("scenarios"):
        return ABSENT
    rows = []
    for name, record in result["scenarios"].items():
        union, delay = record["stop_or_roll_back"], record.get("steps_after_onset", {}).get("exploit_drift")
        spoke = [f"`{detector}` {found['rate']:.1%}" for detector, found in record["detectors"].items() if found["rate"]]
        rows.append(
            [
                name,
                "honest" if record["is_honest"] else "hacked",
                f"{union['rate']:.1%} [{union['low']:.1%}, {union['high']:.1%}]",
                ", ".join(spoke) or "-",
                f"{delay['median']:+.0f} [{delay['p5']:+.0f}, {delay['p95']:+.0f}]" if delay else "-",
            ]
        )
    header = ["scenario", "", "stopped or rolled back", "warned or more", "`exploit_drift`, steps after onset"]
    return table(header, rows) + f"\n\n{result['runs']:,} runs of each scenario."


def live_part(result: Mapping[str, Any]) -> str:
    """Return what became of each run of SmolLM2, with held-out accuracy at its beginning and its end."""
    if not result.get("runs"):
        return ABSENT
    rows = []
    for run in sorted(result["runs"], key=lambda run: (list(ARMS).index(run["arm"]), run["seed"])):
        looks = [look for look in run["held_out"] if (look["part"], look["mode"]) == ("test", "greedy")]
        spoke = dict.fromkeys(f"`{row['detector']}` at {row['step']}" for row in run["findings"] if row["level"] != "note")
        ended = run["ended_by_guard_at"]
        rows.append(
            [
                f"{ARMS[run['arm']]}, seed {run['seed']}",
                "-" if run["exploit_passes_10_percent_at"] is None else str(run["exploit_passes_10_percent_at"]),
                ", ".join(spoke) or "-",
                f"no, {run['steps']} steps" if ended is None else f"after step {ended}",
                " to ".join(f"{look['proxy_mean']:.0%}" for look in (looks[0], looks[-1])),
                " to ".join(f"{look['gold_mean']:.0%}" for look in (looks[0], looks[-1])),
            ]
        )
    header = ["run", "exploit passes 10 % at", "warned or more", "ended by the guard", "proxy, test part", "gold, test part"]
    return table(header, rows) + f"\n\n{described(result)}"


def learned_part(result: Mapping[str, Any]) -> str:
    """Return what became of gold under a learned proxy, and what the curve and the guard said."""
    if not result.get("summary"):
        return ABSENT
    fit, curve = result["reward_model"]["accuracy"], result["curve"]
    rows = [
        [
            name,
            str(at["step"]),
            *(number(at, key, 2) for key in ("distance", "proxy_mean", "gold_mean")),
            number(at, "words_mean"),
        ]
        for name, at in result["summary"].items()
    ]
    header = ["part guard", "step", "sqrt(KL)", "proxy", "gold", "words"]
    told = [
        f"The reward model prefers the better of two held-out completions in {fit['mean']:.0%} of pairs "
        f"[{fit['low']:.0%}, {fit['high']:.0%}]; the labels follow gold in {result['labels_that_follow_gold']:.0%}."
    ]
    if curve is not None and curve["is_identified"]:
        told.append(f"The fitted curve of gold has its peak at sqrt(KL) = {curve['best_distance']:.1f}.")
    else:
        told.append("The fitted curve does not show where gold has its peak.")
    spoke = dict.fromkeys(f"`{row['detector']}` at step {row['step']}" for row in result["findings"] if row["level"] != "note")
    told.append(f"The guard, which only warned here: {', '.join(spoke) or 'nothing'}.")
    return table(header, rows) + "\n\n" + "\n".join(told)


def audit_part(result: Mapping[str, Any]) -> str:
    """Return how many wrong answers each reward pays, and how many right ones it refuses."""
    if not result.get("rewards"):
        return ABSENT
    rows = []
    for name, record in result["rewards"].items():
        totals = record["totals"]
        kinds = [f"{kind} {paid} of {tried}" for kind, (paid, tried) in totals["by_kind"].items()]
        paid, refused = f"{totals['false_positive_rate']:.1%}", f"{totals['false_negative_rate']:.1%}"
        rows.append([f"`{name}`", paid, ", ".join(kinds), refused])
    return table(["reward", "wrong answers paid", "of them without twists", "right answers refused"], rows)


def settings_part(result: Mapping[str, Any]) -> str:
    """Return the table of what settings of allocator and threads are worth."""
    if not result.get("step_s"):
        return ABSENT
    names = list(result["settings"])
    rows = [[company, *(number(seconds, name) for name in names)] for company, seconds in result["step_s"].items()]
    return table(["seconds of a step", *names], rows) + f"\n\n{described(result)}"


def described(result: Mapping[str, Any]) -> str:
    """Return where and with what a result was measured."""
    versions, machine = result["versions"], result["machine"]
    model = f" ({machine['cpu_model']})" if machine.get("cpu_model") else ""
    with_versions = f"torch {versions['torch']}, transformers {versions['transformers']}"
    return f"{machine['cpu']}{model}, {machine['num_cores']} cores; {with_versions}."


COMPARED = ("grpo", "raft", "rloo", "dpo", "online_dpo", "ppo")
"""Arms of the comparison that are rows of the algorithm table, each with a page."""

Parts = Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]

PAGES: dict[Path, Parts] = {
    ROOT / "docs" / "speed.md": {
        "steps": ("step_time", steps_part),
        "configurations": ("step_time", configurations_part),
        "main job": ("main_job_vs_trl", job_part),
        "decoding": ("decode", decode_part),
        "plan": ("plan", plan_part),
        "scaling": ("scaling", scaling_part),
        "settings": ("settings", settings_part),
    },
    ROOT / "docs" / "guide" / "guard.md": {
        "simulated runs": ("guard_sim", simulation_part),
        "live runs": ("guard_live", live_part),
        "learned proxy": ("bt_proxy", learned_part),
    },
    ROOT / "docs" / "guide" / "audit.md": {"rewards": ("audit", audit_part)},
    ROOT / "docs" / "guide" / "when-grpo.md": {
        "answer": ("compare", answer_part),
        "gold": ("compare", section_part("Gold on questions nobody trained on")),
        "verdicts": ("compare", section_part("All verdicts")),
        "time": ("compare", section_part("At equal time")),
        "costs": ("compare", section_part("What it costs")),
        "rates": ("compare", section_part("Learning rates")),
    },
    **{ROOT / "docs" / "algorithms" / f"{name}.md": {"result": ("compare", arm_part(name))} for name in COMPARED},
}
"""What stands between the markers of each name on each page: the result that it is made of, and how."""


def with_results(page: str, parts: Parts) -> str:
    """Return the page with what the committed results say."""
    for name, (result, part) in parts.items():
        marked = rf"(<!-- generated: {name} -->\n).*?(<!-- end of generated {name} -->)"
        text = part(read(result))
        page, count = re.subn(marked, lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL)
        assert count == 1, f"the page lacks the markers of {name}"
    return page


def main() -> None:
    for page, parts in PAGES.items():
        page.write_text(with_results(page.read_text(), parts))
    PICTURE.write_text(picture(read("step_time")))
    SCALING_PICTURE.write_text(scaling_picture(read("scaling")))


if __name__ == "__main__":
    main()
