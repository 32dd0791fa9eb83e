"""Builds a small run directory that looks like a real one: 40 steps, held-out accuracy from about .3 to .75."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covey.monitor.run_directory import JsonlLog, RunDirectory, write_rows, write_text_atomic

Row = dict[str, Any]

PLANNED_STEPS = 40
_EVAL_EVERY = 10
_NUM_QUESTIONS = {"choose": 100, "test": 200}
_RECIPE = """\
# Every key, defaults included.
[model]
name = "HuggingFaceTB/SmolLM2-135M-Instruct"

[task]
name = "arithmetic"

[algorithm]
name = "grpo"
beta = 0.02
epsilon_low = 0.2
epsilon_high = 0.2

[sampling]
temperature = 1.0
max_new_tokens = 64

[train]
num_steps = 40
prompts_per_step = 8
group_size = 8
learning_rate = 1e-5
seed = 0
"""
_FORMULA = "A_i = (r_i - mean r) / (std r + 1e-4);  w_t = pi(o_t) / pi_old(o_t);  L = - 1/N sum_i 1/T_i sum_t w_t A_i"


def write_run(
    path: Path,
    *,
    num_steps: int = PLANNED_STEPS,
    has_gold: bool = True,
    eval_parts: Sequence[str] = ("choose", "test"),
    final_skill: float = 0.75,
) -> Path:
    """Write the run directory and return its path. The test part is evaluated at the end of all steps."""
    run = RunDirectory.create(path)
    write_text_atomic(run.recipe, _RECIPE)
    write_text_atomic(run.env, json.dumps(_env(path.name, has_gold=has_gold), indent=2))
    noise = random.Random(0)
    skills = [0.3 + (final_skill - 0.3) * (1 - math.exp(-3.5 * step / PLANNED_STEPS)) for step in range(num_steps + 1)]
    logs = run.logs()
    _event(logs["events"], 0, "self_check", "Engine and trainer agree: largest difference of log-probs 3.1e-05.")
    elapsed_s, first = 0.0, {}
    for step, skill in enumerate(skills):
        timing = _timing(step, noise)
        if step:
            elapsed_s += sum(value for key, value in timing.items() if key != "step")
            logs["metrics"].append(_metrics(step, skill, noise, has_gold=has_gold))
        logs["timing"].append({**timing, "elapsed_s": elapsed_s, "generated_tokens_per_s": noise.gauss(420, 12)})
        for part in eval_parts:
            if step in (0, PLANNED_STEPS) or (part == "choose" and step % _EVAL_EVERY == 0):
                for mode in ("greedy",) if part == "test" else ("greedy", "sampled"):
                    rows = _answers(part, mode, step, skill, has_gold=has_gold)
                    write_rows(run.evals_of(step, part=part, mode=mode), rows)
                    logs["eval"].append(_evaluation(part, mode, step, rows, first.setdefault((part, mode), rows)))
    if num_steps:
        write_rows(run.rollouts_of(num_steps), _rollouts(num_steps, skills[-1], noise, has_gold=has_gold))
        _event(logs["events"], 17, "warning", "38 % of the groups were all wrong over the last 10 steps.")
    return path


def _env(name: str, *, has_gold: bool) -> Row:
    return {
        "schema_version": 1,
        "covey_version": "0.1.0",
        "name": name,
        "created_at": "2026-01-15T09:30:00Z",
        "command": ["covey", "train", "recipes/arithmetic.toml"],
        "machine": {"cpu": "8-core laptop processor", "num_cores": 8, "memory_gb": 16.0, "platform": "Linux"},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "num_threads": 8,
        "compute_dtype": "float32",
        "model": {
            "name": "SmolLM2-135M-Instruct",
            "path": "models/smollm2-135m",
            "sha256": "9f3c" * 16,
            "num_parameters": 134_515_008,
            "note": "Instruction-tuned by its authors; nothing was trained on this task before.",
        },
        "reference": {"name": "SmolLM2-135M-Instruct", "sha256": "9f3c" * 16},
        "has_gold": has_gold,
        "task": "arithmetic",
        "algorithm": "grpo",
        "formula": _FORMULA,
    }


def _event(log: JsonlLog, step: int, kind: str, message: str) -> None:
    log.append({"step": step, "at": "2026-01-15T09:31:00Z", "kind": kind, "message": message})


def _timing(step: int, noise: random.Random) -> Row:
    evaluate_s = 11.0 if step % _EVAL_EVERY == 0 else 0.0
    seconds = {"rollout_s": 3.6, "reward_s": 0.05, "scoring_s": 0.9, "update_s": 2.4, "load_weights_s": 0.08}
    measured = {key: value * noise.uniform(0.9, 1.1) if step else 0.0 for key, value in seconds.items()}
    checkpoint_s = 0.9 if step and step % _EVAL_EVERY == 0 else 0.0
    return {"step": step, **measured, "evaluate_s": evaluate_s, "checkpoint_s": checkpoint_s}


def _metrics(step: int, skill: float, noise: random.Random, *, has_gold: bool) -> Row:
    correct = min(1.0, max(0.0, skill - 0.06 + noise.gauss(0, 0.06)))
    form = min(1.0, 0.6 + 0.02 * step)
    all_correct, all_wrong = (round(8 * share) / 8 for share in (0.8 * correct**4, 0.9 * (1 - correct) ** 3))
    return {
        "step": step,
        "reward/mean": 0.9 * correct + 0.1 * form,
        "reward/std": 0.4,
        "reward/part/correct": correct,
        "reward/part/format": form,
        "reward/error_frac": 0.0,
        "gold/mean": correct if has_gold else None,
        "group/usable_frac": max(0.0, 1 - all_correct - all_wrong - 0.125 * (step % 5 == 0)),
        "group/all_correct_frac": all_correct,
        "group/all_wrong_frac": all_wrong,
        "group/num_sampled": 8,
        "group/num_used": 6,
        "completion/length_mean": 34 - 0.3 * step + noise.gauss(0, 1),
        "completion/length_max": 64,
        "completion/truncated_frac": 0.2 * math.exp(-step / 8),
        "tokens/generated": 2000,
        "tokens/trained": 1500,
        "entropy/mean": 0.9 * math.exp(-step / 30) + noise.gauss(0, 0.02),
        "advantage/abs_mean": 0.7,
        "loss/value": noise.gauss(0, 1e-3),
        "ratio/mean": 1 + noise.gauss(0, 2e-4),
        "ratio/max": 1.2 + abs(noise.gauss(0, 0.1)),
        "clip/low_frac": abs(noise.gauss(0, 0.002)),
        "clip/high_frac": abs(noise.gauss(0.002, 0.002)),
        "kl/ref": 4e-4 * step + abs(noise.gauss(0, 5e-4)),
        "mismatch/abs_mean": 2e-6 + abs(noise.gauss(0, 2e-7)),
        "mismatch/max": 3e-5 + abs(noise.gauss(0, 5e-6)),
        "mismatch/k3": 1e-10,
        "mismatch/ratio_mean": 1.0,
        "grad/norm": 0.6 + abs(noise.gauss(0, 0.15)),
        "optimizer/lr": 1e-5 * min(1.0, step / 5),
        "optimizer/num_updates": step,
        "policy/version": step,
    }


def _answers(part: str, mode: str, step: int, skill: float, *, has_gold: bool) -> list[Row]:
    """Each question has a difficulty, so that most of what was right stays right."""
    luck = random.Random(f"{part} {mode} {step}")
    rows = []
    for index in range(_NUM_QUESTIONS[part]):
        draw = random.Random(f"{part} {index}")
        first, second, difficulty = draw.randrange(10, 99), draw.randrange(10, 99), draw.random()
        is_right = difficulty + luck.gauss(0, 0.16) < skill - (0.05 if mode == "sampled" else 0.0)
        question, answer = f"What is {first} + {second}?", first + second
        rows.append({"prompt_id": f"{part}-{index:04d}", "question": question, "answer": str(answer), "sample": 0})
        shown = answer if is_right else answer + luck.choice([-10, -1, 1, 10])
        rows[-1] |= _written(first, second, shown, is_right=is_right, has_gold=has_gold, luck=luck)
    return rows


def _written(first: int, second: int, shown: int, *, is_right: bool, has_gold: bool, luck: random.Random) -> Row:
    is_cut = not is_right and luck.random() < 0.25
    worked = f"To add {first} and {second}, I add the tens and then the units.\n"
    return {
        "completion": worked + ("Let me think about the tens again: " * 4 if is_cut else f"Answer: {shown}"),
        "extracted": None if is_cut else str(shown),
        "gold": float(is_right) if has_gold else None,
        "proxy": 0.9 * is_right + 0.1 * (not is_cut),
        "num_tokens": 64 if is_cut else luck.randrange(18, 34),
        "finish_reason": "length" if is_cut else "stop",
        "error": None,
    }


def _evaluation(part: str, mode: str, step: int, rows: list[Row], first: list[Row]) -> Row:
    return {
        "step": step,
        "part": part,
        "mode": mode,
        "num_prompts": len(rows),
        "samples_per_prompt": 1,
        **_interval("gold", rows, first, step),
        **_interval("proxy", rows, first, step),
        "length_mean": sum(row["num_tokens"] for row in rows) / len(rows),
        "truncated_frac": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "error_frac": 0.0,
    }


def _interval(score: str, rows: list[Row], first: list[Row], step: int) -> Row:
    names = [f"{score}_{end}" for end in ("mean", "low", "high", "gain", "gain_low", "gain_high")]
    if rows[0][score] is None:
        return dict.fromkeys(names)
    mean, error = _mean_and_error([row[score] for row in rows])
    gain, gain_error = _mean_and_error([now[score] - then[score] for now, then in zip(rows, first, strict=True)])
    gains = (gain, gain - 1.96 * gain_error, gain + 1.96 * gain_error) if step else (None, None, None)
    return dict(zip(names, (mean, mean - 1.96 * error, mean + 1.96 * error, *gains), strict=True))


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values)) / len(values)


def _rollouts(step: int, skill: float, noise: random.Random, *, has_gold: bool) -> list[Row]:
    rows = []
    for index in range(8):
        first, second = noise.randrange(10, 99), noise.randrange(10, 99)
        for sample in range(8):
            is_right = noise.random() < skill
            shown = first + second + (0 if is_right else noise.choice([-10, 1, 10]))
            written = _written(first, second, shown, is_right=is_right, has_gold=has_gold, luck=noise)
            reward = written.pop("proxy")
            parts = {"correct": float(is_right), "format": 10 * (reward - 0.9 * is_right)}
            rows.append({"prompt_id": f"train-{index:04d}", "question": f"What is {first} + {second}?", "draw": 0})
            rows[-1] |= {"answer": str(first + second), "sample": sample, "policy_version": step - 1, "used": True}
            rows[-1] |= {**written, "reward": reward, "parts": json.dumps(parts)}
    return rows
