"""Where completions come from. Every engine passes the contract suite in `tests/contracts/test_engines.py`."""
