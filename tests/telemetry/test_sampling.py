"""Sampling keeps failed traces and shares of slow and of other ones, each trace as a whole, in limited memory."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from agent_runner.contract import genai
from host_client.telemetry.batch import EndedSpan
from host_client.telemetry.tail.sampling import Sampler, SamplerLimits, SamplingConfig, Verdict

LOW, HIGH = "0" * 31 + "1", "0" * 16 + "f" * 16
"""The trace ids that a ratio keeps first and last."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def span(
    name: str = "agent.execute", ms: float = 1.0, *, error: bool = False, about: Mapping[str, str | float] | None = None
) -> EndedSpan:
    return EndedSpan(name, about or {}, None, 0, int(ms * 1e6), error)


def chat(ms: float) -> EndedSpan:
    return span("chat m", ms, about={"gen_ai.operation.name": "chat"})


def tool(ms: float, executed: float, name: str = "Bash") -> EndedSpan:
    operation = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
    return span("execute_tool", ms, about={**operation, "tool.execution_ms": executed})


def denied(ms: float, waited: float) -> EndedSpan:
    """Return the span of a call that a person denied, which has no execution time."""
    about = genai.execute_tool("toolu_1", "Bash", 20) | {"tool.approval_wait_ms": waited}
    return EndedSpan("execute_tool Bash", about, None, 0, int(ms * 1e6), True)


def decided(sampler: Sampler, trace_id: str, spans: Sequence[EndedSpan], tier: str | None = None) -> Verdict:
    sampler.begin(trace_id, tier)
    sampler.observe(trace_id, spans)
    return sampler.end(trace_id)


class CodingRuns:
    """Simulated runs of one prompt each, by the proportions that were measured in coding_runs.json."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._mix: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "coding_runs.json").read_text())

    def run(self) -> list[EndedSpan]:
        """Return the spans of one run in the order of their ends, the turn's last."""
        now, spans = 0, list[EndedSpan]()
        requests, calls = self._number("model_requests"), self._number("tool_calls") - 1
        for number in range(max(requests, calls)):
            if number < requests:
                spans.append(ended("chat m", genai.chat("m"), now, now := now + self._nanoseconds("model_seconds")))
            if number < calls:
                call, failed = genai.execute_tool("toolu_1", "Bash", 20), self._happens("failed_tool_calls")
                spans.append(ended("execute_tool", call, now, now := now + self._nanoseconds("tool_seconds"), failed))
        spans.append(ended("agent.execute", genai.invoke_agent("m", 1), 0, now, self._happens("failed_turns")))
        return spans

    def _happens(self, share: str) -> bool:
        return self.chance.random() < self._mix[share]

    def _number(self, mean: str) -> int:
        """Return a number from 1, geometrically distributed."""
        return 1 + int(math.log(1 - self.chance.random()) / math.log(1 - 1 / self._mix[mean]))

    def _nanoseconds(self, quantiles: str) -> int:
        place = self.chance.random()
        for (low, shorter), (high, longer) in pairwise(self._mix[quantiles]):
            if place <= high:
                return int((shorter + (longer - shorter) * (place - low) / (high - low)) * 1e9)
        raise AssertionError("the last quantile is 1")


def ended(name: str, about: Mapping[str, Any], start: int, end: int, is_error: bool = False) -> EndedSpan:
    return EndedSpan(name, about, None, start, end, is_error)


def share_of(spans: Sequence[EndedSpan], config: SamplingConfig) -> float:
    """Return the share of runs like this one that is to be kept, by the rules in the documentation."""
    *parts, turn = spans
    worked_ms = sum(part.end_time - part.start_time for part in parts) / 1e6  # no two overlap
    slow_rate = 2 * config.rate if config.slow_rate is None else config.slow_rate
    return 1.0 if turn.is_error else slow_rate if worked_ms > config.slow_ms else config.rate


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ("`OTEL_SAMPLING_RATE=0.1`", SamplingConfig(rate=0.1)),
        ("the same, with `SANDSPAN_SLOW_RATE=0.1`", SamplingConfig(rate=0.1, slow_rate=0.1)),
        ("the same, with `SANDSPAN_SLOW_MS=120000`", SamplingConfig(rate=0.1, slow_ms=120_000)),
    ],
    ids=str,
)
def test_of_ten_thousand_coding_runs_the_share_in_the_documentation_is_kept(
    settings: str, config: SamplingConfig
) -> None:
    runs, sampler, replica, kept = CodingRuns(4), Sampler(config), Sampler(config), 0
    for _ in range(10_000):
        spans, trace_id = runs.run(), runs.chance.getrandbits(128)
        verdict = decided(sampler, f"{trace_id:032x}", spans)
        share = share_of(spans, config)
        sampled = TraceIdRatioBased(share).should_sample(None, trace_id, "x").decision.is_sampled()
        assert (verdict is Verdict.KEEP) == sampled, share
        assert decided(replica, f"{trace_id:032x}", spans[::-1]) is verdict, "another host decides otherwise"
        kept += verdict is Verdict.KEEP
    document = Path(__file__).parents[2] / "docs" / "OPENTELEMETRY_INTEGRATION.md"
    assert f"\n| {settings} | {kept / 100:.0f} % |\n" in document.read_text()


def test_ten_thousand_traces_at_once_stay_within_the_limits() -> None:
    chance = random.Random(5)
    sampler, spans = Sampler(SamplingConfig(rate=0.1), SamplerLimits(traces=1_000)), [chat(1)] * 5
    tracemalloc.start()
    for _ in range(10_000):
        trace_id = f"{chance.getrandbits(128):032x}"
        sampler.begin(trace_id)
        sampler.observe(trace_id, spans)
        sampler.overdue()
        assert sampler.undecided <= 1_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


def test_the_ratio_is_the_one_of_opentelemetrys_sampler() -> None:
    chance = random.Random(6)
    theirs, ours = TraceIdRatioBased(0.3), Sampler(SamplingConfig(rate=0.3))
    for _ in range(1_000):
        trace_id = chance.getrandbits(128)
        sampled = theirs.should_sample(None, trace_id, "x").decision.is_sampled()
        assert (decided(ours, f"{trace_id:032x}", []) is Verdict.KEEP) == sampled


def test_what_the_ratio_keeps_is_kept_at_once() -> None:
    sampler = Sampler(SamplingConfig(rate=0.1))
    assert sampler.begin(LOW) is Verdict.KEEP
    assert sampler.begin(HIGH) is Verdict.HOLD


def test_an_error_keeps_all_that_came_before_and_comes_after() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0))
    sampler.begin(HIGH)
    assert sampler.observe(HIGH, [span()]) is Verdict.HOLD
    assert sampler.observe(HIGH, [span(error=True)]) is Verdict.KEEP
    assert sampler.observe(HIGH, [span()]) is Verdict.KEEP
    assert sampler.end(HIGH) is Verdict.KEEP


def test_a_trace_of_several_turns_and_thirty_minutes_is_decided_once_at_its_end() -> None:
    clock = Clock()
    sampler = Sampler(SamplingConfig(rate=0.0), clock=clock)
    sampler.begin(HIGH)
    for _ in range(30):
        clock.now += 60
        assert sampler.observe(HIGH, [chat(10)]) is Verdict.HOLD
        assert sampler.overdue() == []
    assert sampler.end(HIGH) is Verdict.DROP
    assert sampler.observe(HIGH, [span(error=True)]) is Verdict.DROP, "a part of a trace is worse than none"


def test_two_sessions_of_one_trace_are_decided_when_the_last_has_ended() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0))
    sampler.begin(HIGH)
    sampler.begin(HIGH)
    assert sampler.end(HIGH) is Verdict.HOLD
    assert sampler.observe(HIGH, [span(error=True)]) is Verdict.KEEP


def test_a_further_session_of_a_dropped_trace_may_keep_it() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0))
    assert decided(sampler, HIGH, [span()]) is Verdict.DROP
    assert sampler.begin(HIGH) is Verdict.HOLD
    assert sampler.observe(HIGH, [span(error=True)]) is Verdict.KEEP
    assert sampler.begin(HIGH) is Verdict.KEEP
    assert sampler.end(HIGH) is Verdict.KEEP


def test_a_trace_is_kept_whatever_is_known_of_it_where_that_is_asked() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0))
    assert decided(sampler, HIGH, [span()]) is Verdict.DROP
    for _ in range(2):
        assert sampler.keep(HIGH, "taken over") is Verdict.KEEP
    assert sampler.observe(HIGH, [span()]) is Verdict.KEEP
    assert sampler.reasons == {"drop:ratio": 1, "keep:taken over": 1}


@pytest.mark.parametrize(
    ("spans", "verdict"),
    [
        ([chat(2_600), chat(2_600)], Verdict.DROP),  # the two requests overlap
        ([tool(60_000, 100)], Verdict.DROP),  # a minute of waiting for a person and a tenth of a second of work
        ([tool(60_000, 5_100)], Verdict.KEEP),
        ([denied(60_000, 59_900)], Verdict.DROP),
        ([denied(60_000, 54_000)], Verdict.KEEP),
        ([tool(60_000, 60_000, "Agent")], Verdict.DROP),  # the calls of a subagent count on their own
        ([span("agent.approval", 60_000)], Verdict.DROP),
        ([chat(5_100)], Verdict.KEEP),
    ],
)
def test_slow_is_what_model_and_tools_worked_without_the_wait_for_a_person(
    spans: list[EndedSpan], verdict: Verdict
) -> None:
    assert decided(Sampler(SamplingConfig(rate=0.0, slow_rate=1.0)), HIGH, spans) is verdict


def test_slow_traces_have_a_rate_of_their_own_or_twice_the_general_one() -> None:
    assert decided(Sampler(SamplingConfig(rate=0.1, slow_rate=0.0)), HIGH, [chat(9_000)]) is Verdict.DROP
    assert decided(Sampler(SamplingConfig(rate=0.0, slow_ms=100, slow_rate=1.0)), HIGH, [chat(200)]) is Verdict.KEEP
    for rate, verdict in ((0.4, Verdict.DROP), (0.5, Verdict.KEEP), (0.6, Verdict.KEEP)):
        assert decided(Sampler(SamplingConfig(rate=rate)), HIGH, [chat(9_000)]) is verdict
        of_a_tier = SamplingConfig(rate=0.0, tier_rates={"free": rate})
        assert decided(Sampler(of_a_tier), HIGH, [chat(9_000)], "free") is verdict


FAILED_CALL = (denied(10, 10), span("agent.approval", error=True))


def test_a_failed_tool_call_keeps_its_trace_by_a_rate_of_its_own_or_by_the_general_one() -> None:
    assert decided(Sampler(SamplingConfig(rate=0.4)), HIGH, FAILED_CALL) is Verdict.DROP
    config = SamplingConfig(rate=0.4, tool_error_rate=1.0)
    sampler = Sampler(config)
    sampler.begin(HIGH)
    assert sampler.observe(HIGH, [chat(1), *FAILED_CALL]) is Verdict.KEEP, "that is certain before the session ends"
    assert sampler.reasons == {"keep:tool error": 1}
    assert decided(Sampler(config), HIGH, [chat(1)]) is Verdict.DROP
    assert decided(Sampler(SamplingConfig(rate=0.4, tool_error_rate=0.0)), LOW, FAILED_CALL) is Verdict.KEEP


@pytest.mark.parametrize("name", ["agent.session", "agent.execute", "chat m", "sandbox.create"])
def test_a_failure_outside_of_tool_calls_keeps_its_trace_with_any_rate(name: str) -> None:
    config = SamplingConfig(rate=0.0, slow_rate=0.0, tool_error_rate=0.0)
    assert decided(Sampler(config), HIGH, [*FAILED_CALL, span(name, error=True)]) is Verdict.KEEP


def test_a_failed_subagent_counts_as_the_failed_call_that_it_is_and_a_failed_turn_does_not() -> None:
    config = SamplingConfig(rate=0.0, slow_rate=0.0, tool_error_rate=0.0)
    about = {"gen_ai.operation.name": "invoke_agent"}
    for name, verdict in (("invoke_agent Explore", Verdict.DROP), ("agent.execute", Verdict.KEEP)):
        assert decided(Sampler(config), LOW, [span(name, error=True, about=about), span()]) is verdict


def test_a_tier_has_a_rate_of_its_own() -> None:
    config = SamplingConfig(rate=0.0, tier_rates={"enterprise": 1.0})
    assert decided(Sampler(config), HIGH, [], tier="enterprise") is Verdict.KEEP
    assert decided(Sampler(config), HIGH, [], tier="free") is Verdict.DROP


def test_a_trace_that_grows_too_large_is_kept_early() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0), SamplerLimits(spans=1_000))
    sampler.begin(HIGH)
    assert sampler.observe(HIGH, [span()] * 1_000) is Verdict.HOLD
    assert sampler.observe(HIGH, [span()]) is Verdict.KEEP
    sampler = Sampler(SamplingConfig(rate=0.0), SamplerLimits(trace_bytes=100))
    sampler.begin(HIGH)
    assert sampler.observe(HIGH, [span()], size=101) is Verdict.KEEP


def test_where_all_traces_are_too_large_together_the_largest_goes_and_the_others_stay() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0), SamplerLimits(total_bytes=100))
    ids = [f"{n:016x}{'f' * 16}" for n in range(3)]
    for trace_id, size in zip(ids, (30, 60, 20), strict=True):
        sampler.begin(trace_id)
        assert sampler.observe(trace_id, [span()], size=size) is Verdict.HOLD
    assert sampler.overdue() == [(ids[1], Verdict.KEEP)]
    assert sampler.end(ids[0]) is Verdict.DROP


def test_at_the_end_of_all_everything_is_decided() -> None:
    sampler = Sampler(SamplingConfig(rate=0.0, slow_rate=1.0))
    sampler.begin(HIGH)
    sampler.observe(HIGH, [chat(9_000)])
    assert sampler.conclude() == [(HIGH, Verdict.KEEP)]
    assert sampler.undecided == 0


@pytest.mark.parametrize("executed", [float("inf"), float("nan"), -1.0, 1e300])
def test_a_nonsensical_execution_time_is_not_believed(executed: float) -> None:
    assert decided(Sampler(SamplingConfig(rate=0.0, slow_rate=1.0)), HIGH, [tool(100, executed)]) is Verdict.DROP


def test_a_trace_that_grows_too_old_is_kept_early() -> None:
    clock = Clock()
    sampler = Sampler(SamplingConfig(rate=0.0), SamplerLimits(age_seconds=100), clock)
    sampler.begin(HIGH)
    clock.now = 101
    assert sampler.overdue() == [(HIGH, Verdict.KEEP)]
    assert sampler.reasons == {"keep:old": 1}
