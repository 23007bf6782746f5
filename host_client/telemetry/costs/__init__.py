"""Costs: the sum of US dollars, the estimates of unfinished turns, and the ledger that stores the cost of each turn."""
