"""Costs: sums of US dollars, estimates of unfinished turns, the ledger of the cost of each turn, and its reports."""
