"""The parts of `guard_live.py`."""
