"""What is imported before the first candidate, so that none pays for it."""

from __future__ import annotations

PRELOADED = (
    *("abc", "array", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers"),
    *("operator", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "time", "typing", "unicodedata"),
)
