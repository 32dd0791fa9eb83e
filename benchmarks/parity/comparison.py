"""The comparison: each case through both sides, in float32 and in float64."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from covey.models.tiny import write_tiny_model
from parity.agreeing import agreeing_cases
from parity.case import Case
from parity.differing import differing_cases
from parity.our_side import our_outcome
from parity.report import QUANTITIES, TOLERANCES, Record, print_record
from parity.trl_side import their_outcome


def examine_cases(only: str) -> list[Record]:
    """Return the records of all cases whose name holds the text, and print them as they come."""
    transformers_logging.disable_progress_bar()
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tiny_model(Path(scratch) / "tiny")
        for case in (*agreeing_cases(), *differing_cases()):
            if only in case.name:
                records.append(examine(case, directory))
                print_record(records[-1])
    return records


def examine(case: Case, directory: Path) -> dict[str, Any]:
    """Return the case's record: its differences, adjusted and not, and whether they are as it says."""
    record: dict[str, Any] = {"table": case.table, "name": case.name}
    agreeing = case
    if case.why:
        agreeing = dataclasses.replace(case, **case.adjusted)
        found = differences(case, directory, torch.float32)
        record |= {"why": case.why, "adjustment": case.adjustment, "unadjusted": found, "differs": case.differs}
        as_told = all((found[name] > TOLERANCES["float32"]) == (name in case.differs) for name in QUANTITIES)
    else:
        as_told = True
    record["float32"] = differences(agreeing, directory, torch.float32)
    record["float64"] = differences(agreeing, directory, torch.float64)
    agrees = all(record[dtype][name] < bound for dtype, bound in TOLERANCES.items() for name in (*QUANTITIES, "logprobs"))
    return record | {"result": "PASS" if agrees and as_told else "FAIL"}


def differences(case: Case, directory: Path, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest absolute differences between the two, and the largest element of TRL's gradient."""
    earlier = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        theirs, ours = their_outcome(case, directory, dtype), our_outcome(case, directory, dtype)
    finally:
        torch.set_default_dtype(earlier)
    lengths = torch.tensor([len(ids) for ids in case.data.completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    # Covey does not score a completion that it leaves out.
    seen = mask & torch.tensor([case.data.reward(row) is not None for row in range(len(lengths))])[:, None]
    found = {
        "advantages": largest((ours.advantages - theirs.advantages[:, None])[mask]),
        "loss": abs(ours.loss - theirs.loss),
        "gradient": max(largest(ours.gradient[name] - value) for name, value in theirs.gradient.items()),
        "logprobs": max((largest((ours.logprobs[name] - value)[seen]) for name, value in theirs.logprobs.items()), default=0.0),
        "largest_gradient": max(largest(value) for value in theirs.gradient.values()),
        "clipped_frac": ours.clipped_frac,
    }
    if ours.log_ratios is not None:
        found |= {"log_ratio_mean": float(ours.log_ratios.abs().mean()), "log_ratio_max": largest(ours.log_ratios)}
    return {name: float(f"{value:.2e}") for name, value in found.items()}


def largest(values: Tensor) -> float:
    return float(values.abs().max())
