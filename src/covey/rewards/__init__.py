"""Rewards and verifiers: pure functions from a completion to a Score. Free of torch."""
