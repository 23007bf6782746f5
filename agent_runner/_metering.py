"""Add up what a run has spent on the model requests that pass through its gateway."""

from __future__ import annotations


class Meter:
    """Adds up what a run has spent, and compares it with the run's budget."""

    def __init__(self, budget: float) -> None:
        """Start with nothing spent; ``budget`` is in US dollars."""
        self.budget = budget
        self.spent = 0.0

    @property
    def exhausted(self) -> bool:
        """Return whether the budget is spent."""
        return self.spent >= self.budget
