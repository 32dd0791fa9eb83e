"""A reward that does what the completion says. Free of torch, for the process that loads it must start fast."""

from __future__ import annotations

import signal
import time

from covey.rewards.base import Sample, score_of
from covey.types import Score


def act(sample: Sample) -> Score:
    """Hang, sleep, die, raise or eat memory where the completion says so, and else return 1."""
    match sample.completion:
        case "hang":
            while True:
                pass
        case "sleep":
            time.sleep(100)
        case "die":
            signal.raise_signal(signal.SIGKILL)
        case "raise":
            raise ValueError("no")
        case "eat memory":
            bytearray(8 << 30)
    return score_of(1.0)
