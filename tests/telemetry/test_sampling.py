"""Sampling keeps errors and slow traces, the rest by ratio, each trace as a whole, in limited memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Mapping, Sequence

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

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


def decided(sampler: Sampler, trace_id: str, spans: Sequence[EndedSpan], tier: str | None = None) -> Verdict:
    sampler.begin(trace_id, tier)
    sampler.observe(trace_id, spans)
    return sampler.end(trace_id)


def test_ten_thousand_traces_at_ten_percent_keep_every_error_and_the_ratio() -> None:
    chance = random.Random(4)
    sampler = Sampler(SamplingConfig(rate=0.1))
    kept = {"error": 0, "slow": 0, "plain": 0}
    seen = dict.fromkeys(kept, 0)
    short, slow = chat(10), chat(6_000)
    tracemalloc.start()
    for _ in range(10_000):
        trace_id = f"{chance.getrandbits(128):032x}"
        kind = chance.choices(("error", "slow", "plain"), (5, 5, 90))[0]
        spans = [short] * 20
        if kind == "error":
            spans.insert(chance.randrange(20), span(error=True))
        if kind == "slow":
            spans.append(slow)
        seen[kind] += 1
        kept[kind] += decided(sampler, trace_id, spans) is Verdict.KEEP
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept["error"] == seen["error"] > 400
    assert kept["slow"] == seen["slow"] > 400
    # Four standard deviations of a binomial distribution, which chance exceeds once in 16,000.
    deviation = (seen["plain"] * 0.1 * 0.9) ** 0.5
    assert abs(kept["plain"] - seen["plain"] * 0.1) < 4 * deviation
    assert sampler.undecided == 0
    assert peak < 8 * 1024 * 1024


def test_ten_thousand_traces_at_once_stay_within_the_limits() -> None:
    chance = random.Random(5)
    sampler, spans = Sampler(SamplingConfig(rate=0.1), SamplerLimits(traces=1_000)), [chat(1)] * 5
    for _ in range(10_000):
        trace_id = f"{chance.getrandbits(128):032x}"
        sampler.begin(trace_id)
        sampler.observe(trace_id, spans)
        sampler.overdue()
        assert sampler.undecided <= 1_000


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
        ([tool(60_000, 60_000, "Agent")], Verdict.DROP),  # the calls of a subagent count on their own
        ([span("agent.approval", 60_000)], Verdict.DROP),
        ([chat(5_100)], Verdict.KEEP),
    ],
)
def test_slow_is_what_model_and_tools_worked_without_the_wait_for_a_person(
    spans: list[EndedSpan], verdict: Verdict
) -> None:
    assert decided(Sampler(SamplingConfig(rate=0.0)), HIGH, spans) is verdict


def test_slow_traces_have_a_rate_of_their_own() -> None:
    assert decided(Sampler(SamplingConfig(rate=0.0, slow_rate=0.0)), HIGH, [chat(9_000)]) is Verdict.DROP
    assert decided(Sampler(SamplingConfig(rate=0.0, slow_ms=100)), HIGH, [chat(200)]) is Verdict.KEEP


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
    sampler = Sampler(SamplingConfig(rate=0.0))
    sampler.begin(HIGH)
    sampler.observe(HIGH, [chat(9_000)])
    assert sampler.conclude() == [(HIGH, Verdict.KEEP)]
    assert sampler.undecided == 0


@pytest.mark.parametrize("executed", [float("inf"), float("nan"), -1.0, 1e300])
def test_a_nonsensical_execution_time_is_not_believed(executed: float) -> None:
    assert decided(Sampler(SamplingConfig(rate=0.0)), HIGH, [tool(100, executed)]) is Verdict.DROP


def test_a_trace_that_grows_too_old_is_kept_early() -> None:
    clock = Clock()
    sampler = Sampler(SamplingConfig(rate=0.0), SamplerLimits(age_seconds=100), clock)
    sampler.begin(HIGH)
    clock.now = 101
    assert sampler.overdue() == [(HIGH, Verdict.KEEP)]
    assert sampler.reasons == {"keep:old": 1}
