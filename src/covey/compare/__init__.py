"""Comparing training algorithms: intervals over seeds and prompts, contrasts, verdicts in words, power, budgets. No torch."""
