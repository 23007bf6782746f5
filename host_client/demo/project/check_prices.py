"""Run with: python3 check_prices.py."""

from prices import total, with_discount

assert with_discount(1000, 25) == 750
assert total([(250, 1)]) == 250
assert total([(250, 2), (100, 3)]) == 800, f"two at 250 and three at 100 make 800, not {total([(250, 2), (100, 3)])}"
print("3 checks passed")
