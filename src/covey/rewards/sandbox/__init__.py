"""Grading code that a model has written: confined by the kernel, judged by a process that holds what it does not."""
