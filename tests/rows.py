"""Which rows of the table the tests of a kind are about."""

from covey.algos.registry import ALGORITHMS

SELECTING_ROWS = [name for name, spec in ALGORITHMS.items() if spec.selects]
"""They learn from some completions of a group alone: tests/equivalence/test_selecting_rows.py."""
CRITIC_ROWS = [name for name, spec in ALGORITHMS.items() if spec.critic_credit is not None]
"""Their credit needs a value model: tests/equivalence/test_ppo.py."""
PLAIN_ROWS = [name for name in ALGORITHMS if name not in {*SELECTING_ROWS, *CRITIC_ROWS}]
"""The credit of every completion follows from the rewards of the step alone."""
