"""What the rewards that come with Covey pay and refuse, under the audit's attacks; beside them math-verify as it comes.

    python benchmarks/audit_rewards.py [--prompts 12] [--search 2000]

Five tables. `tasks`: the proxy of every task and level against its gold, and the gold verifier alone. `rewards`: the rewards of
the table that judge answers, on questions of several kinds of answer, where right and wrong are by construction; kinds of which
a reward pays no right answer are named as not read. `shapes`: those that judge the form alone and are meant as parts of others;
alone they must fail. `math_verify`: the default configuration of math-verify, verify(parse(key), parse(text)), on the same
questions. Attacks take the forms that a reward reads, so these are not quite the same completions; `same_cases` has ours and
math-verify on the union of them. The result goes to benchmarks/results/audit.json. It ends with an error if a task's reward or
one that judges answers fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from step_time.processes import describe_commit

from covey.audit import AuditSpec, audit, tried
from covey.guard.attacks import KINDS, Attack
from covey.guard.findings import AuditResult, judged_data
from covey.guard.search import SearchSpec, sample_of
from covey.guard.verdict import BREAKING
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.rewards.base import FunctionReward, Reward, Rewarder, Sample, score_all, score_of
from covey.rewards.registry import find_reward
from covey.tasks.base import Task
from covey.tasks.registry import TASK_LEVELS, TASKS, find_task
from covey.types import CoveyError, Message, Prompt, Score

RESULT = Path(__file__).parent / "results" / "audit.json"

QUESTIONS: dict[str, list[tuple[str, Any]]] = {
    "whole numbers": [(f"What is {a} + {b}?", a + b) for a, b in ((17, 4), (38, 25), (60, 7), (9, 33), (51, 48), (12, 77))],
    "negative numbers": [(f"What is {a} - {b}?", a - b) for a, b in ((4, 17), (25, 83), (7, 60), (3, 48), (29, 64), (10, 95))],
    "large numbers": [
        (f"What is {a} * {b}?", a * b) for a, b in ((347, 28), (512, 93), (1204, 11), (86, 771), (459, 62), (238, 405))
    ],
    "decimals": [(f"What is {a} / 8?", str(a / 8)) for a in (17, 29, 37, 61, 83, 99)],
    "fractions": [
        ("What is 1/3 + 1/4?", "7/12"),
        ("What is 2/5 + 1/7?", "19/35"),
        ("What is 3/8 - 1/5?", "7/40"),
        ("What is 5/6 * 1/4?", "5/24"),
        ("What is 4/9 + 1/2?", "17/18"),
        ("What is 2/3 - 3/11?", "13/33"),
    ],
    "quantities": [
        ("A rope of 8 meters loses 3 meters. How long is it?", "5 meters"),
        ("How far does a walker get in 3 hours at 6 km an hour?", "18 km"),
        ("Two bags weigh 14 kg and 19 kg. What do they weigh together?", "33 kg"),
        ("A film of 110 minutes has run for 42. How long is the rest?", "68 minutes"),
        ("What share of 80 is 28?", "35%"),
        ("A board of 90 cm is cut in the middle. How long is a half?", "45 cm"),
    ],
    "choices": [
        ("Which is a river? A) Danube B) Etna C) Sahara D) Malta", "A"),
        ("Which is a prime? A) 21 B) 33 C) 47 D) 51", "C"),
        ("Which is a metal? A) sulphur B) iron C) neon D) iodine", "B"),
        ("Which is a mammal? A) trout B) robin C) gecko D) otter", "D"),
        ("Which is a planet? A) Titan B) Sirius C) Venus D) Ceres", "C"),
        ("Which is a verb? A) to run B) table C) green D) slowly", "A"),
    ],
    "words": [
        ("What is the capital of Norway?", "Oslo"),
        ("Which gas do plants take in?", "carbon dioxide"),
        ("What is the opposite of early?", "late"),
        ("Which sea lies between Italy and Croatia?", "Adriatic"),
        ("What do bees make?", "honey"),
        ("In which direction does the sun rise?", "east"),
    ],
    "structures": [
        (f'Give name and age of {name}, who is {age}, as JSON with the keys "name" and "age".', {"name": name, "age": age})
        for name, age in (("Ada", 36), ("Bela", 51), ("Carla", 28), ("Dino", 73), ("Ella", 19), ("Femi", 44))
    ],
}
"""(question, key) by the kind of answer."""


CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "last_number": ("last_number", {}),
    "asserted_number": ("asserted_number", {}),
    "exact": ("exact", {}),
    "exact, tagged": ("exact", {"read": "tagged"}),
    "choice": ("choice", {}),
    "numeric": ("numeric", {}),
    "numeric, boxed": ("numeric", {"read": "boxed"}),
    "numeric, units and percent": ("numeric", {"units": "optional", "percent": "convert"}),
    "math": ("math", {}),
    "math, whole": ("math", {"read": "whole"}),
    "json": ("json", {"fields": ["name", "age"]}),
    "cosine_length": ("cosine_length", {"max_tokens": 512}),
}
"""Rewards that judge answers: row of the table and options."""

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tags": ("tags", {}),
    "pattern": ("pattern", {"pattern": "[0-9]{1,9}"}),
    "repetition": ("repetition", {}),
}
"""Rewards that judge the form alone."""


def questions_task(kind: str, reward: Reward) -> Task:
    """Return the questions of a kind as a task without gold: right and wrong are by construction."""
    prompts = [
        Prompt(prompt_id=f"{kind}/{number}", messages=(Message(role="user", content=question),), answer=key, task=kind)
        for number, (question, key) in enumerate(QUESTIONS[kind])
    ]
    return Task(name=kind, train=prompts, held_out={}, proxy=reward, gold=None, probes=())


def summary(result: AuditResult) -> dict[str, Any]:
    """Return a line of the table: counts by kind of attack, the figures, and an example of each kind that was paid."""
    paid = [judged_data(row) for family in result.families for row in family.false_positives]
    refused = [judged_data(row) for family in result.families for row in family.false_negatives]
    examples = {kind: next((row["completion"] for row in paid if row["kind"] == kind), None) for kind in KINDS}
    return {
        "verdict": result.verdict,
        "num_wrong": result.num_wrong,
        "by_kind": {row.kind: [row.num_paid, row.num_wrong] for row in result.kinds},
        "num_paid": result.num_paid,
        "num_right": result.num_right,
        "num_refused": result.num_refused,
        "false_positive_rate": rate(result.num_paid, result.num_wrong),
        "false_negative_rate": rate(result.num_refused, result.num_right),
        "separation": rounded(result.separation),
        "separation_all": rounded(result.separation_all),
        "junk_spread": rounded(result.junk_spread),
        "num_doubts_about_gold": sum(row.num_doubted for row in result.families),
        "best_exploit": result.search.best.pay if result.search is not None and result.search.best is not None else 0.0,
        "call_mean_ms": round(1e3 * result.times.mean_s, 4),
        "reasons": [f"{reason.level}: {reason.text}" for reason in result.reasons],
        "paid_families": {row.family: [row.num_paid, row.num_wrong] for row in result.families if row.num_paid},
        "refused_families": {row.family: [row.num_refused, row.num_right] for row in result.families if row.num_refused},
        "paid_examples": {kind: text for kind, text in examples.items() if text is not None},
        "refused_examples": [row["completion"] for row in refused[:5]],
        "doubted_examples": [row.attack.completion for row in result.doubts[:5]],
    }


def rounded(value: float | None) -> float | None:
    """Return a figure with four decimals; None stays None."""
    return None if value is None else round(value, 4)


def rate(count: int, total: int) -> float | None:
    """Return a share; None of nothing."""
    return round(count / total, 4) if total else None


def audited_tasks(spec: AuditSpec) -> dict[str, Any]:
    """Return the proxies of all tasks against their gold, and their gold verifiers alone."""
    table: dict[str, Any] = {}
    for name in TASKS:
        for level in TASK_LEVELS[name]:
            task = find_task(name, level=level)
            rows = {
                "proxy": summary(audit(task, Rewarder(proxy=task.proxy, gold=task.gold), spec=spec)) | {"name": task.proxy.name}
            }
            if task.gold is not None:
                rows["gold"] = summary(audit(task, Rewarder(proxy=task.gold, gold=None), spec=spec)) | {"name": task.gold.name}
            table[task.name] = rows
            say(task.name, rows)
    return table


def audited_rewards(configurations: dict[str, tuple[str, dict[str, Any]]], spec: AuditSpec) -> dict[str, Any]:
    """Return the lines of these rewards; one that cannot be made says why."""
    table: dict[str, Any] = {}
    for label, (name, options) in configurations.items():
        try:
            table[label] = audited_reward(label, find_reward(name, key="reward.name", options=options), spec) | {
                "options": options
            }
        except CoveyError as error:
            table[label] = {"kinds": {}, "not_read": list(QUESTIONS), "error": str(error)}
    return table


def audited_reward(name: str, reward: Reward, spec: AuditSpec) -> dict[str, Any]:
    """Return a reward's line for each kind of answer that it reads, and the names of the others."""
    lines = {kind: summary(audit(questions_task(kind, reward), reward, spec=spec)) for kind in QUESTIONS}
    # Without a right answer that earns more than junk there is no separation.
    read = {kind: line for kind, line in lines.items() if line["separation"] is not None}
    say(name, read)
    return {"totals": totals(read), "kinds": read, "not_read": [kind for kind in lines if kind not in read]}


def totals(lines: dict[str, Any]) -> dict[str, Any]:
    """Return the counts over all kinds of answer that a reward reads, with its rates of false positives and negatives."""
    counts = {
        name: sum(line[name] for line in lines.values()) for name in ("num_paid", "num_wrong", "num_refused", "num_right")
    }
    kinds = {kind: [sum(line["by_kind"][kind][place] for line in lines.values()) for place in (0, 1)] for kind in BREAKING}
    return {
        **counts,
        "false_positive_rate": rate(counts["num_paid"], counts["num_wrong"]),
        "false_negative_rate": rate(counts["num_refused"], counts["num_right"]),
        "by_kind": kinds,
    }


def math_verify_reward() -> Reward:
    """Return math-verify's default configuration, gold first, as a reward.

    Raises:
        ImportError: it is not installed.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def score(sample: Sample) -> Score:
        key = parse(f"${sample.prompt.answer}$")
        return score_of(float(verify(key, parse(sample.completion))))

    return FunctionReward(name="math_verify", score=score)


def say(name: str, rows: dict[str, Any]) -> None:
    """Print a line for each row."""
    for which, row in rows.items():
        print(
            f"{name:24} {which:18} {row['verdict']:5} paid {row['num_paid']:4} of {row['num_wrong']:5}, refused "
            f"{row['num_refused']:4} of {row['num_right']:4}, separation {row['separation']}",
            flush=True,
        )


def same_cases(rewards: dict[str, Reward], spec: AuditSpec) -> dict[str, Any]:
    """Return what each of these pays and refuses of all completions that any of them was tried with, by the kind of answer."""
    table: dict[str, Any] = {}
    for kind in QUESTIONS:
        cases: dict[tuple[str, str], tuple[Prompt, Attack]] = {}
        for reward in rewards.values():
            task, judges = questions_task(kind, reward), Rewarder(proxy=reward, gold=None)
            for row in tried(task, judges, task.train, spec, until=None).rows:
                cases.setdefault((row.prompt.prompt_id, row.attack.completion), (row.prompt, row.attack))
        samples = [sample_of(prompt, attack.completion) for prompt, attack in cases.values()]
        is_right = [attack.is_right for _, attack in cases.values()]
        lines: dict[str, Any] = {}
        for name, reward in rewards.items():
            values = [score.value for score in score_all(reward, samples)]
            found = list(zip(is_right, values, strict=True))
            num_paid = sum(not right and value == reward.high for right, value in found)
            num_refused = sum(right and value == reward.low for right, value in found)
            lines[name] = {
                "num_paid": num_paid,
                "num_refused": num_refused,
                "num_unscored": sum(value is None for value in values),
                "false_positive_rate": rate(num_paid, sum(not right and value is not None for right, value in found)),
                "false_negative_rate": rate(num_refused, sum(right and value is not None for right, value in found)),
            }
            print(f"same cases: {kind:18} {name:14} {lines[name]}", flush=True)
        table[kind] = {"num_wrong": is_right.count(False), "num_right": is_right.count(True), "rewards": lines}
    return table


def compared(spec: AuditSpec) -> dict[str, Any]:
    """Return math-verify beside ours on the same cases, or why that cannot be."""
    try:
        rewards = {"math_verify": math_verify_reward()}
        for name in ("math", "math, whole", "numeric"):
            row, options = CONFIGURATIONS[name]
            rewards[name] = find_reward(row, key="reward.name", options=options)
    except (ImportError, CoveyError) as error:
        return {"error": str(error)}
    return same_cases(rewards, spec)


def attempted(make: Callable[[], Reward], spec: AuditSpec) -> dict[str, Any]:
    """Return the lines of a reward that may not be installed."""
    try:
        reward = make()
    except ImportError as error:
        return {"error": f"math_verify cannot be imported: {error}"}
    return audited_reward("math_verify", reward, spec)


def failures(result: dict[str, Any]) -> Sequence[str]:
    """Return what fails of that which comes with Covey."""
    tasks = [
        f"{task}, {which}" for task, rows in result["tasks"].items() for which, row in rows.items() if row["verdict"] == "fail"
    ]
    rewards = [
        f"{name}, {kind}"
        for name, row in result["rewards"].items()
        for kind, line in row["kinds"].items()
        if line["verdict"] == "fail"
    ]
    return [*tasks, *rewards]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="questions of each task; of the kinds of answer there are six")
    parser.add_argument("--search", type=int, default=2000, help="calls of the search for an exploit; 0 = none")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    search = SearchSpec(budget=arguments.search) if arguments.search else None
    spec = AuditSpec(num_prompts=arguments.prompts, search=search, num_examples=3)
    # math-verify takes up to seconds for a long text: the same questions, without the search.
    plain = AuditSpec(num_prompts=arguments.prompts, search=None, num_examples=3)
    result = {
        "command": shlex.join(["python", "benchmarks/audit_rewards.py", *sys.argv[1:]]),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "num_prompts": arguments.prompts,
        "tasks": audited_tasks(spec),
        "rewards": audited_rewards(CONFIGURATIONS, plain),
        "shapes": audited_rewards(SHAPES, plain),
        "math_verify": attempted(math_verify_reward, plain),
        "same_cases": compared(plain),
    }
    write_text_atomic(arguments.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    failed = failures(result)
    print(f"failed: {'; '.join(failed)}" if failed else "nothing that comes with Covey fails")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
