"""The parts of `bt_proxy.py`."""
