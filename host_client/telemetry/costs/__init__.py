"""Costs of turns, and the ledger that keeps them."""
