"""Parity with TRL: fixed data, the two sides, the cases, what is made of them. `parity_trl.py` runs it."""
