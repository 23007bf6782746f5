"""Prices of an order, in cents."""


def total(items: list[tuple[int, int]]) -> int:
    """Return the sum of (price, quantity) pairs."""
    return sum(price for price, quantity in items)


def with_discount(cents: int, percent: int) -> int:
    """Return a price less a percentage, rounded down."""
    return cents * (100 - percent) // 100
