"""Whether well-known data sets load without a bad row, as they are distributed.

    python benchmarks/data_files.py --data DIRECTORY

The directory holds any of gsm8k-train.jsonl, gsm8k-test.jsonl (openai/grade-school-math), svamp.json (arkilpatel/SVAMP) and
humaneval.jsonl (openai/human-eval); Covey ships none of them. For each: its rows, the questions made of them, the rows that
repeat one, the bad rows, and whether gold and proxy pay the row's own answer written as the prompt asks. For files that are
split, how many held-out questions share 13 words in a row with a training question. The result goes to
benchmarks/results/data_files.json; the exit status is 1 if a row was bad or a right answer went unpaid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_time.processes import describe_commit

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.rewards.base import Reward, Sample, safe_score
from covey.tasks.base import PARTS
from covey.tasks.data_options import data_options
from covey.tasks.files import files_task, load, preset_of, verifier_of
from covey.tasks.overlap import overlaps
from covey.types import Prompt

RESULTS = Path(__file__).parent / "results"
EXPECTED_ROWS = {"gsm8k-train.jsonl": 7473, "gsm8k-test.jsonl": 1319, "svamp.json": 1000, "humaneval.jsonl": 164}
PRESETS = {"gsm8k-train.jsonl": "gsm8k", "gsm8k-test.jsonl": "gsm8k", "svamp.json": "svamp", "humaneval.jsonl": "humaneval"}
ANSWERS = {"gsm8k": "So it is {answer}.\n#### {answer}", "svamp": "{answer}"}
"""A right completion, in the form that the preset's prompt asks for."""

TASKS: dict[str, dict[str, str]] = {
    "gsm8k": {"path": "gsm8k-train.jsonl", "held_out_path": "gsm8k-test.jsonl", "preset": "gsm8k"},
    "svamp": {"path": "svamp.json", "preset": "svamp"},
}


def checked_file(path: Path) -> dict[str, Any]:
    """Return what was found in one file."""
    options = data_options({"path": str(path), "preset": PRESETS[path.name]})
    preset = preset_of(options)
    verifier = verifier_of(options, preset) if preset.verifier else None
    started = time.perf_counter()
    loaded = load(options, preset, verifier, path=options.path, split=options.split)
    seconds = time.perf_counter() - started
    prompts = [prompt for prompt, _ in loaded.prompts.values()]
    found: dict[str, Any] = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_rows": loaded.num_rows,
        "num_rows_expected": EXPECTED_ROWS[path.name],
        "num_questions": len(prompts),
        "num_repeated": loaded.num_repeated,
        "num_bad": len(loaded.bad),
        "bad": [f"{row.where}: {row.reason}" for row in loaded.bad[:10]],
        "load_s": round(seconds, 3),
    }
    if verifier is not None and preset.gold is not None:
        wording = ANSWERS[options.preset]
        found["proxy_unpaid"] = num_unpaid(prompts, verifier, wording)
        found["gold_unpaid"] = num_unpaid(prompts, preset.gold(), wording)
    return found


def num_unpaid(prompts: Sequence[Prompt], reward: Reward, wording: str) -> int:
    """Return for how many questions the right answer does not earn everything."""
    values = [
        safe_score(
            reward,
            Sample(prompt=prompt, completion=wording.format(answer=prompt.answer), num_tokens=1, is_truncated=False),
        ).value
        for prompt in prompts
    ]
    return sum(value != reward.high for value in values)


def checked_task(directory: Path, options: dict[str, str]) -> dict[str, Any]:
    """Return the sizes of a task made of the files, and the overlaps of what it holds out."""
    named = {key: str(directory / value) if key.endswith("path") else value for key, value in options.items()}
    task = files_task(named)
    task.check()
    template = preset_of(data_options(named)).template
    return {
        "num_train": len(task.train),
        "num_held_out": {part: len(task.held_out[part]) for part in PARTS},
        "num_honeypots": len(task.honeypots),
        "num_overlapping": {part: len(overlaps(task.train, task.held_out[part], template=template)) for part in PARTS},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the directory with the files")
    parser.add_argument("--output", type=Path, default=RESULTS / "data_files.json")
    arguments = parser.parse_args()
    names = [name for name in PRESETS if (arguments.data / name).is_file()]
    if not names:
        parser.error(f"{arguments.data} holds none of {', '.join(PRESETS)}")
    files = {name: checked_file(arguments.data / name) for name in names}
    tasks = {
        name: checked_task(arguments.data, options)
        for name, options in TASKS.items()
        if all(value in files for key, value in options.items() if key.endswith("path"))
    }
    result = {
        "command": "python benchmarks/data_files.py --data DIRECTORY",
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "files": files,
        "tasks": tasks,
    }
    write_text_atomic(arguments.output, json.dumps(result, indent=2) + "\n")
    for name, found in files.items():
        print(
            f"{name}: {found['num_rows']} rows, {found['num_questions']} questions, {found['num_bad']} bad, "
            f"{found.get('gold_unpaid', 0)} right answers unpaid by gold, {found.get('proxy_unpaid', 0)} by the proxy"
        )
    for name, found in tasks.items():
        print(f"{name}: {found}")
    failures = [
        name
        for name, found in files.items()
        if found["num_bad"] or found.get("gold_unpaid") or found.get("proxy_unpaid") or found["num_rows"] != EXPECTED_ROWS[name]
    ]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
