"""Unions and differences of time intervals in nanoseconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[int, int]
"""Start and end."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals: sorted, and without overlaps."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def without(intervals: list[Interval], holes: list[Interval]) -> list[Interval]:
    """Return the parts of ``intervals`` outside of ``holes``; both are results of `union`."""
    outside: list[Interval] = []
    for start, end in intervals:
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if hole_start > start:
                outside.append((start, hole_start))
            start = hole_end
            if start >= end:
                break
        if start < end:
            outside.append((start, end))
    return outside


def seconds(intervals: Iterable[Interval]) -> float:
    """Return the total length of intervals that do not overlap, in seconds."""
    return sum(end - start for start, end in intervals) / 1e9
