"""What is remembered is bounded."""

from __future__ import annotations

from agent_runner.contract.memory import MAX_KEPT, Remembered


def test_what_is_short_is_remembered_and_what_is_long_is_not() -> None:
    asked: list[str] = []

    def cleaned(text: str) -> str:
        asked.append(text)
        return text.upper()

    remembered = Remembered(cleaned)
    for _ in range(2):
        assert remembered("a") == remembered["a"] == "A"
        assert remembered("b" * 500) == "B" * 500
    assert asked == ["a", "b" * 500, "b" * 500]
    for number in range(10_000):
        assert remembered[f"n-{number}"] == f"N-{number}"
    assert len(remembered) <= MAX_KEPT and len(asked) == 10_003
