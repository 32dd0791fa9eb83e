"""The gold score of `bt_proxy.py`: how well a completion is a sentence of about sixteen words that does not repeat itself."""

from __future__ import annotations

import math
import re

BEST_NUM_WORDS = 16
WIDTH = 10
"""Words from the best number at which the score has fallen to exp(-1)."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


def words_of(completion: str) -> list[str]:
    """Return the words in lower case: runs of letters, with apostrophes and hyphens inside."""
    return _WORD.findall(completion.lower())


def sentence_score(completion: str) -> float:
    """Return exp(-((n - 16) / 10)^2) times the share of distinct words, n the number of words; 0 without a letter."""
    words = words_of(completion)
    if not words:
        return 0.0
    return math.exp(-(((len(words) - BEST_NUM_WORDS) / WIDTH) ** 2)) * len(set(words)) / len(words)
