"""Tools that decode: a process for each, and what they share. `decode.py` runs it."""
