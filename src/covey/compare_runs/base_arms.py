"""What the untrained model reaches: one answer, the best of several by the reward, the most frequent of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from covey.compare.selection import majority_of, oracle_best_of, proxy_best_of
from covey.compare_runs.plan import BASE, BEST_OF_N, MAJORITY
from covey.compare_runs.results import Json, number_of
from covey.evaluate import prompt_means

CHOOSE = "choose/sampled"
"""Where the validation curves of all arms begin."""
ORACLE = "oracle"
"""A right answer among several, as if somebody could tell: an upper bound and no arm."""


def base_result(tables: Mapping[str, Sequence[Json]], *, best_of: int) -> Json:
    """Return the scores of the untrained arms by key, each a number for each question; `tables` are rows of evaluations."""
    sampled = {key: rows for key, rows in tables.items() if key.endswith("/sampled") and key != CHOOSE}
    picked = {key: selections(rows, size=best_of) for key, rows in sampled.items()}
    first = next(iter(sampled.values()))
    num_questions = len({row["prompt_id"] for row in first})
    return {
        "arm": BASE,
        "kind": "base",
        "best_of": best_of,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "scores": {key: dict(prompt_means(rows, "gold")) for key, rows in tables.items()},
        "proxies": {key: dict(prompt_means(rows, "proxy")) for key, rows in tables.items()},
        **{name: {key: found[name] for key, found in picked.items()} for name in (BEST_OF_N, MAJORITY, ORACLE)},
        "tokens_per_question": sum(row["num_tokens"] for row in first) / num_questions,
    }


def selections(rows: Sequence[Json], *, size: int) -> dict[str, dict[str, float | None]]:
    """Return for each question the expected gold of the sample the proxy likes best, of the most frequent answer, of any."""
    samples: dict[str, list[Json]] = {}
    for row in rows:
        samples.setdefault(row["prompt_id"], []).append(row)
    found: dict[str, dict[str, float | None]] = {BEST_OF_N: {}, MAJORITY: {}, ORACLE: {}}
    for prompt_id, own in samples.items():
        golds, proxies = ([number_of(row[name]) for row in own] for name in ("gold", "proxy"))
        found[BEST_OF_N][prompt_id] = _known(proxy_best_of(proxies, golds, size))
        found[MAJORITY][prompt_id] = _known(majority_of([row["extracted"] for row in own], golds, size))
        found[ORACLE][prompt_id] = _known(oracle_best_of(golds, size))
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
