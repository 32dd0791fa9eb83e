"""Rewards with a hole, to be named in recipes."""

from __future__ import annotations


def pays_everything(completion: str) -> float:
    return 1.0
