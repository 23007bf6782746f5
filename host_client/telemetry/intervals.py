"""Sets of moments, as sorted intervals that do not overlap, in nanoseconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[int, int]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return every moment that is in any of them."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def without(intervals: list[Interval], holes: list[Interval]) -> list[Interval]:
    """Return the moments of the first that are not in the second; both are unions."""
    left: list[Interval] = []
    for start, end in intervals:
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if hole_start > start:
                left.append((start, hole_start))
            start = hole_end
            if start >= end:
                break
        if start < end:
            left.append((start, end))
    return left


def seconds(intervals: Iterable[Interval]) -> float:
    """Return how long a union is."""
    return sum(end - start for start, end in intervals) / 1e9
