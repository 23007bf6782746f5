"""The figures in the benchmarks' README: each has one place, and recording one does not change the others."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import BENCHMARKS, END, README, begin, recorded
from benchmarks.support import Row


def test_every_benchmark_has_one_place_for_its_figures() -> None:
    text = README.read_text()
    assert [text.count(begin(name)) for name in BENCHMARKS] == [1] * len(BENCHMARKS)
    assert text.count(END) == len(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_figures_go_to_their_own_place(name: str) -> None:
    text = README.read_text()
    once = recorded(text, name, "machine.\n\n| new |\n")
    assert recorded(once, name, "machine.\n\n| new |\n") == once
    assert f"{begin(name)}\nmachine.\n\n| new |\n\n{END}" in once
    others = [other for other in BENCHMARKS if other != name]
    assert [of(once, other) for other in others] == [of(text, other) for other in others]


def of(text: str, name: str) -> str:
    return text.partition(begin(name))[2].partition(END)[0]


def test_figures_without_a_place_are_told() -> None:
    with pytest.raises(ValueError, match="no place for the figures of startup"):
        recorded("# Nothing", "startup", "")


@pytest.mark.parametrize(
    ("goal", "holds", "verdict"),
    [("", None, ""), ("< 1", True, "< 1: holds"), ("< 1", False, "< 1: MISSED"), ("< 1", None, "< 1: not decided")],
)
def test_a_goal_is_held_or_missed_or_not_decided(goal: str, holds: bool | None, verdict: str) -> None:
    assert Row("what", "", "", "", goal, holds).verdict == verdict
