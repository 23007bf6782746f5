"""The metrics of runs, with a limited number of label values whatever a sandbox sends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA
from opentelemetry.sdk.metrics.export import Histogram

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import AnyEvent, EventData
from host_client import AgentOptions, AgentResult, Telemetry, run_agent
from host_client.telemetry import Who
from host_client.telemetry.batch import EndedSpan
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.config import Temporality
from host_client.telemetry.conventions import Conventions
from host_client.telemetry.export.destinations.otlp import otlp_metrics
from host_client.telemetry.export.endpoints import Endpoint, Protocol
from host_client.telemetry.metrics import _genai
from host_client.telemetry.metrics._labels import (
    AGENTS,
    MAX_DECIDERS,
    MAX_LENGTH,
    MAX_MODELS,
    MAX_TENANTS,
    MAX_TOOLS,
    MODELS_OF_ONE,
    OTHER,
    TOOLS,
    TOOLS_OF_ONE,
)
from host_client.telemetry.metrics._otlp import OtlpPart
from host_client.telemetry.metrics.instruments import METRICS
from host_client.telemetry.metrics.observer import Metrics
from tests.support.hosts import host_lab, views
from tests.support.metrics import Kept, event, labels, result
from tests.telemetry.receiver import METRICS_PATH, Answer, Hang, Request, grpc_receiver, http_receiver, nobody

ADA = Who(session_id="s-1", user_id="ada", tenant_id="acme", tier="pro")
HERS = {"tenant": "acme", "tier": "pro"}

OF_REQUEST = {
    **{"gen_ai.operation.name": "chat", "session.id": "s-1"},
    **{"user.id": "ada", "tenant.id": "acme", "user.tier": "pro"},
}

WORK = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}, {name: Bash, input: {command: exit 3}}]
            usage: {input_tokens: 100, output_tokens: 10, cache_read_input_tokens: 5, cache_creation_input_tokens: 7}
          - tools: [{name: Bash, input: {command: touch denied}}]
          - text: Done.
"""


def observe(metrics: Metrics, who: Who, *data: EventData, replayed: int = 0) -> None:
    """Begin a session and observe its events; the first ``replayed`` ones count as replayed."""
    calls = ToolCalls()
    metrics.begin(who, calls)
    for number, each in enumerate(data):
        calls.observe(event(each))
        metrics.observe(event(each), who, replayed=number < replayed)


def observed(who: Who, *data: EventData, **options: Any) -> Kept:
    """Return the metrics of a session with these events."""
    kept = Kept()
    observe(Metrics([kept], **options), who, *data)
    return kept


def start(model: str = "m") -> p.StartData:
    return p.StartData(
        session_id="c", model=model, tools=[], cwd="", permission_mode="", resumed=False, runner_version=""
    )


def call(name: str, tool_id: str = "t") -> p.ToolUseData:
    return p.ToolUseData(id=tool_id, name=name, input={})


def called(tool_id: str = "t", ms: float = 5.0, error: p.ErrorType | None = None) -> p.ToolResultData:
    return p.ToolResultData(
        tool_use_id=tool_id, content="", is_error=error is not None, duration_ms=ms, bytes=0, error_type=error
    )


def decided(by: str | None, decision: p.Decision = "allow") -> p.ApprovalResolvedData:
    return p.ApprovalResolvedData(approval_id="a", tool_use_id="t", decision=decision, wait_ms=1.0, decided_by=by)


async def worked(kept: Kept) -> tuple[AgentResult, list[AnyEvent]]:
    """Run an agent whose first call is allowed, whose second fails and whose third is denied."""
    telemetry = Telemetry(observers=[Metrics([kept])])
    events: list[AnyEvent] = []

    async def decide(request: p.ApprovalRequest) -> bool:
        return "denied" not in str(request.data.input)

    with host_lab(WORK) as lab:
        who = AgentOptions(user_id="ada", tenant_id="acme", user_tier="pro", model="scripted")
        ended = await run_agent(
            "go", who, approvals=decide, telemetry=telemetry, environ=lab.environ, on_event=events.append
        )
    assert telemetry.shutdown()
    return ended, events


@pytest.mark.anyio
async def test_a_run_is_measured_as_it_went() -> None:
    kept = Kept()
    ended, events = await worked(kept)
    assert not ended.is_error
    of_model = labels(**HERS, model="scripted")
    assert kept.points("claude.agent.cost.usd") == {
        of_model | labels(user="ada"): (pytest.approx(ended.cost_usd, abs=1e-9), 1)
    }
    assert kept.points("claude.agent.duration.ms") == {of_model: (ended.duration_ms, 1)}
    kinds = {kind: kept.points("claude.agent.tokens")[of_model | labels(kind=kind)].sum for kind in ("input", "output")}
    assert kinds == {"input": 140, "output": 30}
    calls = [each.data for each in events if isinstance(each, p.ToolResult)]
    bash = labels(**HERS, tool="Bash")
    assert kept.points("claude.agent.tool.duration.ms") == {
        bash: (pytest.approx(sum(each.duration_ms for each in calls)), 3)
    }
    assert kept.points("claude.agent.tool.errors") == {
        bash | labels(error__type="tool_error"): (1, 1),
        bash | labels(error__type="permission_denied"): (1, 1),
    }
    assert {point: value.sum for point, value in kept.points("claude.agent.approvals").items()} == {
        bash | labels(decision="allow", decided_by="approver"): 2,
        bash | labels(decision="deny", decided_by="approver"): 1,
    }
    waits = kept.points("claude.agent.approval.wait")
    assert {point: value.recorded for point, value in waits.items()} == {
        labels(**HERS, decision="allow"): 2,
        labels(**HERS, decision="deny"): 1,
    }
    started = next(each for each in events if isinstance(each, p.Start))
    assert set(started.data.tools) <= TOOLS
    told = [each.type for each in events]
    assert {point: value.sum for point, value in kept.points("claude.agent.events").items()} == {
        labels(**HERS, type=kind): told.count(kind) for kind in set(told)
    }
    assert kept.points("claude.agent.sessions.active") == {labels(**HERS): (0, 1)}
    assert [point.recorded for point in kept.points("claude.agent.sandbox.creation.duration").values()] == [1]


@pytest.mark.anyio
async def test_model_requests_are_measured_from_their_spans() -> None:
    kept = Kept()
    ended, _ = await worked(kept)
    chat = next(view for view in views(ended.spans) if view.name == "chat scripted")
    request = labels(
        **HERS,
        gen_ai__operation__name="chat",
        gen_ai__provider__name="anthropic",
        gen_ai__request__model="scripted",
        gen_ai__response__model="scripted",
        server__address="127.0.0.1",
        server__port=str(chat.attributes["server.port"]),
    )
    for name in ("duration", "time_to_first_chunk"):
        points = kept.points(f"gen_ai.client.inference.{name}")
        assert {point: value.recorded for point, value in points.items()} == {request: 3}
    # By the semantic conventions input tokens include cached ones.
    for name, tokens in (("input_tokens", 152), ("output_tokens", 30)):
        assert kept.points(f"gen_ai.client.inference.operation.{name}") == {request: (tokens, 3)}
    usage = {"input_tokens": 152, "output_tokens": 30, "cache_read.input_tokens": 5, "cache_write.input_tokens": 7}
    of_usage = request | labels(gen_ai__token__modality="unknown")
    assert {name: kept.points(f"gen_ai.client.inference.usage.{name}") for name in usage} == {
        name: {of_usage: (tokens, 1)} for name, tokens in usage.items()
    }
    assert kept.points("gen_ai.client.inference.usage.reasoning.output_tokens") == {}


@pytest.mark.anyio
async def test_agents_and_tool_calls_are_measured_from_their_spans() -> None:
    kept = Kept()
    ended, _ = await worked(kept)
    agent = labels(**HERS, gen_ai__operation__name="invoke_agent", gen_ai__agent__name="claude-agent")
    assert kept.points("gen_ai.invoke_agent.inference_calls") == {agent: (3, 1)}
    assert kept.points("gen_ai.invoke_agent.tool_calls") == {agent: (3, 1)}
    turn = next(view for view in views(ended.spans) if view.name == "agent.execute")
    assert kept.points("gen_ai.invoke_agent.duration") == {agent: (pytest.approx(turn.ms / 1e3), 1)}
    tool = labels(
        **HERS, gen_ai__operation__name="execute_tool", gen_ai__tool__name="Bash", gen_ai__tool__type="function"
    )
    calls = kept.points("gen_ai.execute_tool.duration")
    assert {point: value.recorded for point, value in calls.items()} == {
        tool: 1,
        tool | labels(error__type="tool_error"): 1,
        tool | labels(error__type="permission_denied"): 1,
    }
    spent = sum(view.ms for view in views(ended.spans) if view.name == "execute_tool Bash") / 1e3
    assert sum(value.sum for value in calls.values()) == pytest.approx(spent)


def tool_called(tool_id: str, span_id: str, agent: str, parent: str | None = None) -> AnyEvent:
    data = p.ToolUseData(id=tool_id, name="any", input={}, parent_tool_use_id=parent)
    return p.event_of(data, seq=1, ts=1.0, trace_id="a" * 32, span_id=span_id, parent_span_id=agent)


def agent_span(name: str, span_id: str, parent: str | None = None) -> EndedSpan:
    about = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name, "session.id": "s-1"}
    return EndedSpan(f"invoke_agent {name}", about, parent, 0, 10**9, span_id=span_id)


def test_the_calls_of_a_subagent_are_its_own() -> None:
    kept = Kept()
    metrics = Metrics([kept])
    metrics.begin(ADA, ToolCalls())
    about = {"session.id": "s-1"}
    tool = {**about, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "Agent"}
    for parent in ("turn", "sub", "sub", "turn"):
        metrics.observe_span(EndedSpan("chat m", {**about, "gen_ai.operation.name": "chat"}, parent, 0, 1))
    metrics.observe_span(agent_span("Explore", "sub", "call"))
    metrics.observe_span(EndedSpan("execute_tool Agent", tool, "turn", 0, 1, span_id="call"))
    metrics.observe_span(agent_span("claude-agent", "turn"))
    of = {name: labels(**HERS, gen_ai__operation__name="invoke_agent", gen_ai__agent__name=name) for name in AGENTS}
    assert kept.points("gen_ai.invoke_agent.inference_calls") == {of["Explore"]: (2, 1), of["claude-agent"]: (2, 1)}
    assert kept.points("gen_ai.invoke_agent.tool_calls") == {of["Explore"]: (0, 1), of["claude-agent"]: (1, 1)}


def test_requests_below_a_call_are_those_of_its_agent_and_agents_without_an_end_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn, search = "1" * 16, "2" * 16
    calls = ToolCalls()
    calls.observe(tool_called("t", search, turn))
    kept = Kept()
    metrics = Metrics([kept])
    metrics.begin(ADA, calls)
    chat = {"session.id": "s-1", "gen_ai.operation.name": "chat"}
    metrics.observe_span(EndedSpan("chat m", chat, search, 0, 1))  # a search's own request
    metrics.observe_span(EndedSpan("chat m", chat, turn, 0, 1), replayed=True)
    monkeypatch.setattr(_genai, "MAX_COUNTED_AGENTS", 2)
    for number in range(5):
        metrics.observe_span(EndedSpan("chat m", chat, f"{number:016x}", 0, 1))
        metrics.observe_span(EndedSpan("chat m", chat, turn, 0, 1))
    metrics.observe_span(agent_span("claude-agent", turn))
    agent = labels(**HERS, gen_ai__operation__name="invoke_agent", gen_ai__agent__name="claude-agent")
    ((found, point),) = kept.points("gen_ai.invoke_agent.inference_calls").items()
    assert (found, point.recorded) == (agent, 1)
    assert sum(point.recorded for point in kept.points("gen_ai.client.inference.duration").values()) == 11


@pytest.mark.parametrize("conventions", ["v1.41.0", "both"])
def test_the_older_conventions_have_metrics_of_their_own(conventions: Conventions) -> None:
    kept = Kept()
    metrics = Metrics([kept], conventions=conventions)
    metrics.observe_span(EndedSpan("chat m", {**OF_REQUEST, "gen_ai.usage.input_tokens": 5}, None, 0, 10**9))
    request = labels(**HERS, gen_ai__operation__name="chat", gen_ai__provider__name="anthropic")
    assert kept.points("gen_ai.client.operation.duration") == {request: (1.0, 1)}
    assert kept.points("gen_ai.client.token.usage") == {request | labels(gen_ai__token__type="input"): (5, 1)}
    newer = kept.points("gen_ai.client.inference.duration")
    assert newer == ({request: (1.0, 1)} if conventions == "both" else {})


@pytest.mark.anyio
async def test_names_units_buckets_and_labels_are_the_documented_ones() -> None:
    kept = Kept()
    await worked(kept)
    documented = {metric.name: metric for metric in METRICS}
    for name, metric in kept.metrics.items():
        row = documented[name]
        assert (metric.unit, metric.description) == (row.unit, row.what)
        for point in metric.data.data_points:
            assert set(point.attributes or {}) <= set(row.labels), name
        if isinstance(metric.data, Histogram):
            assert {tuple(point.explicit_bounds) for point in metric.data.data_points} == {row.buckets}


@pytest.mark.anyio
async def test_no_label_has_the_sessions_id() -> None:
    kept = Kept()
    ended, _ = await worked(kept)
    own = {str(span.attributes["session.id"]) for span in views(ended.spans)}
    recorded = [str(metric.data) for metric in kept.metrics.values()]
    assert any("acme" in each for each in recorded)
    for session_id in (*own, str(ended.session_id)):
        assert [each for each in recorded if session_id in each] == []


def test_two_sets_of_metrics_in_one_process_do_not_mix() -> None:
    first, second = observed(ADA, result(0.25)), observed(ADA, result(0.5))
    assert (first.total("claude.agent.cost.usd"), second.total("claude.agent.cost.usd")) == (0.25, 0.5)


def test_a_turns_cost_goes_to_the_models_that_it_was_spent_on() -> None:
    used = {"dear": {"costUSD": 0.03, "inputTokens": 7}, "cheap": {"costUSD": 0.01, "cacheReadInputTokens": 9}}
    kept = observed(ADA, start("dear"), result(0.04, turn_model_usage=used))
    of_user = labels(**HERS, user="ada")
    assert kept.points("claude.agent.cost.usd") == {
        of_user | labels(model="dear"): (0.03, 1),
        of_user | labels(model="cheap"): (0.01, 1),
    }
    assert kept.points("claude.agent.tokens") == {
        labels(**HERS, model="dear", kind="input"): (7, 1),
        labels(**HERS, model="cheap", kind="cache_read"): (9, 1),
    }


def test_what_another_process_has_counted_is_known_and_counts_nothing() -> None:
    kept = Kept()
    before = (start("m-1"), call("Bash"), called("other"), result(2.0))
    observe(Metrics([kept]), ADA, *before, called(), result(0.5), replayed=len(before))
    assert kept.points("claude.agent.events") == {
        labels(**HERS, type="tool_result"): (1, 1),
        labels(**HERS, type="result"): (1, 1),
    }
    assert kept.points("claude.agent.cost.usd") == {labels(**HERS, model="m-1", user="ada"): (0.5, 1)}
    assert kept.points("claude.agent.tool.duration.ms") == {labels(**HERS, tool="Bash"): (5.0, 1)}


def test_errors_are_counted_by_their_type() -> None:
    failure = p.ErrorData(error_type="overloaded", message="x" * 100)
    kept = observed(ADA, start(), failure, failure, result(is_error=True, error_type="overloaded"))
    failed = labels(**HERS, model="m", error__type="overloaded")
    assert kept.points("claude.agent.errors.total") == {failed: (2, 1)}
    assert kept.points("claude.agent.duration.ms") == {failed: (1200.0, 1)}


def test_answers_to_questions_are_waited_for_too() -> None:
    kept = observed(ADA, p.QuestionResolvedData(question_id="q", answers={}, decision="answered", wait_ms=2000.0))
    tool = labels(**HERS, tool="AskUserQuestion", decision="answered")
    assert kept.points("claude.agent.approvals") == {tool: (1, 1)}
    assert kept.points("claude.agent.approval.wait") == {labels(**HERS, decision="answered"): (2000.0, 1)}


def test_sessions_under_way_are_those_that_began_and_did_not_end() -> None:
    kept = Kept()
    metrics = Metrics([kept])
    other = Who(session_id="s-2", tenant_id="acme", tier="pro")
    for who in (ADA, other, ADA):
        metrics.begin(who, ToolCalls())
    metrics.end(ADA)
    metrics.end(ADA)
    assert kept.points("claude.agent.sessions.active") == {labels(**HERS): (1, 1)}


# -- limits ---------------------------------------------------------------------------------------


def users(count: int, **options: Any) -> Kept:
    """Return the metrics of one turn for each of this number of users."""
    kept = Kept()
    metrics = Metrics([kept], **options)
    for number in range(count):
        metrics.observe(event(result(0.5)), Who(session_id=f"s-{number}", user_id=f"u-{number}"))
    return kept


def test_users_beyond_the_limit_are_one_and_no_cost_is_lost() -> None:
    kept = users(1200)
    costs = {dict(point)["user"]: value.sum for point, value in kept.points("claude.agent.cost.usd").items()}
    assert len(costs) == 1001
    assert (costs["u-999"], costs[OTHER]) == (0.5, 100.0)


def test_a_limit_of_no_users_leaves_them_out() -> None:
    kept = users(3, user_label_limit=0)
    assert kept.points("claude.agent.cost.usd") == {labels(model="unknown"): (1.5, 1)}


def test_users_with_several_models_each_are_all_told_apart() -> None:
    # More series than OpenTelemetry's default limit of 2,000, beyond which it would merge them.
    kept = Kept()
    metrics = Metrics([kept])
    used = {name: {"costUSD": 0.5} for name in ("a", "b", "c")}
    for number in range(1000):
        metrics.observe(event(result(1.5, turn_model_usage=used)), Who(session_id="s", user_id=f"u-{number}"))
    assert len(kept.points("claude.agent.cost.usd")) == 3000


def test_user_is_a_label_of_cost_alone() -> None:
    assert [metric.name for metric in METRICS if "user" in metric.labels] == ["claude.agent.cost.usd"]


def tenants(number: int) -> tuple[Who, Sequence[EventData]]:
    return Who(session_id=f"s-{number}", tenant_id=f"t-{number}"), [result()]


def models(number: int) -> tuple[Who, Sequence[EventData]]:
    return Who(session_id=f"s-{number}"), [result(0.5, turn_model_usage={f"m-{number}": {"costUSD": 0.5}})]


def tools(number: int) -> tuple[Who, Sequence[EventData]]:
    return Who(session_id=f"s-{number}"), [call(f"mcp__x__{number}"), called()]


def deciders(number: int) -> tuple[Who, Sequence[EventData]]:
    return Who(session_id=f"s-{number}"), [decided(f"d-{number}")]


@pytest.mark.parametrize(
    ("made", "label", "limit"),
    [
        (tenants, "tenant", MAX_TENANTS),
        (models, "model", MAX_MODELS),
        (tools, "tool", MAX_TOOLS),
        (deciders, "decided_by", MAX_DECIDERS),
    ],
)
def test_a_label_has_so_many_values_and_one_for_the_rest(
    made: Callable[[int], tuple[Who, Sequence[EventData]]], label: str, limit: int
) -> None:
    kept = Kept()
    metrics = Metrics([kept])
    for number in range(limit + 50):
        who, data = made(number)
        observe(metrics, who, *data)
    values = kept.values_of(label)
    assert OTHER in values
    assert limit <= len(values) <= limit + 1


NAMES = ("tool", "decided_by", "model")
MALLORY = Who(session_id="s-9", tenant_id="mallory", user_id="mallory")


def test_names_that_one_customers_sandboxes_invent_take_no_room_from_others() -> None:
    kept = Kept()
    metrics = Metrics([kept])
    for number in range(1000):
        invented = [
            call(f"mcp__x__{number}"),
            called(),
            decided(f"d-{number}"),
            result(0.1, turn_model_usage={f"m-{number}": {"costUSD": 0.1}}),
        ]
        observe(metrics, replace(MALLORY, session_id=f"m-{number}"), *invented)
    observe(metrics, ADA, start("real-model"), call("mcp__github__search"), called(), decided("grace"), result(0.1))
    found = [dict(point) for name in kept.metrics for point in kept.points(name)]
    hers = {name: {point.get(name) for point in found if point.get("tenant") == "acme"} - {None} for name in NAMES}
    assert hers == {"tool": {"mcp__github__search"}, "decided_by": {"grace"}, "model": {"real-model"}}
    assert len(kept.values_of("tool")) <= TOOLS_OF_ONE + 2
    assert len(kept.values_of("model")) <= MODELS_OF_ONE + 3


def test_addresses_that_one_customers_sandboxes_invent_take_no_room_from_others() -> None:
    kept = Kept()
    metrics = Metrics([kept])

    def asked(tenant: str, address: Any, port: Any) -> None:
        said = {**OF_REQUEST, "tenant.id": tenant, "server.address": address, "server.port": port}
        metrics.observe_span(EndedSpan("chat m", said, None, 0, 10**9))

    for number in range(1, 100):
        asked("mallory", f"{number}.test", 443)
        asked("mallory", "x" * 200, number)
    for address, port in ((7, 443), (" ", 443), ("a.test", "443"), ("a.test", True), ("a.test", None), (None, None)):
        asked("mallory", address, port)
    for address in ("model.test", "api.anthropic.com"):
        asked("acme", address, 8443 if address == "model.test" else 443)
    asked("mallory", "api.anthropic.com", 443)
    found = [dict(point) for point in kept.points("gen_ai.client.inference.duration")]
    servers = {(point["tenant"], point.get("server.address"), point.get("server.port")) for point in found}
    assert servers == {
        ("mallory", "1.test", "443"),
        ("mallory", "x" * 125 + "…", "1"),
        ("mallory", "api.anthropic.com", "443"),
        ("mallory", None, None),
        ("acme", "model.test", "8443"),
        ("acme", "api.anthropic.com", "443"),
    }


def test_the_clis_tools_known_models_and_what_a_host_asks_for_always_have_room() -> None:
    kept = Kept()
    metrics = Metrics([kept])
    for make in (models, tools):
        for number in range(MAX_TOOLS + 50):
            who, data = make(number)
            observe(metrics, who, *data)
    asked = Who(session_id="s", tenant_id="acme", model="house-model", tools=("mcp__house__find",))
    for name in ("Bash", "mcp__house__find", "mcp__late__one"):
        observe(metrics, asked, call(name), called())
    for name in ("house-model", "claude-opus-4-5-20251101", "late-model"):
        metrics.observe(event(result(0.1, turn_model_usage={name: {"costUSD": 0.1}})), asked)
    found = [
        dict(point)
        for name in ("claude.agent.tool.duration.ms", "claude.agent.cost.usd")
        for point in kept.points(name)
    ]
    hers = {point.get("tool") or point.get("model") for point in found if point.get("tenant") == "acme"}
    assert hers == {"Bash", "mcp__house__find", "house-model", "claude-opus-4-5", OTHER}


def test_what_labels_hold_is_one_line_that_every_encoding_takes() -> None:
    evil = "a\r\nclaude_agent_cost_usd_total 9\x00\u2028\ud800" + "x" * 1000
    who = Who(session_id="s", user_id=evil, tenant_id=evil, tier=evil)
    kept = observed(who, start(evil), call(evil), called(error="tool_error"), result())
    for label in ("user", "tenant", "tier", "model", "tool"):
        (value,) = kept.values_of(label)
        assert len(value) <= MAX_LENGTH
        assert value.isprintable()
        assert value.encode()


def test_a_name_that_is_a_secret_is_no_label() -> None:
    secret = "sk-ant-api03-abcdefghijkl"
    used = {secret: {"costUSD": 0.5}}
    told = (start(secret), call(secret), called(error="tool_error"), result(0.5, turn_model_usage=used))
    kept = observed(ADA, *told)
    assert (kept.values_of("model"), kept.values_of("tool")) == ({"[redacted]"}, {"[redacted]"})


def test_a_tier_of_the_configuration_is_that_of_users_without_one() -> None:
    kept = observed(Who(session_id="s"), result(), tier="free")
    assert kept.values_of("tier") == {"free"}


# -- a sandbox is not trusted ---------------------------------------------------------------------


@pytest.mark.parametrize("cost", [-1.0, 1e300])
def test_a_cost_that_is_none_spoils_no_sum(cost: float, caplog: pytest.LogCaptureFixture) -> None:
    kept = observed(ADA, result(0.5), result(cost))
    assert kept.total("claude.agent.cost.usd") == 0.5
    assert "cost" in caplog.text


@pytest.mark.parametrize("ms", [-1.0, 1e300])
def test_a_duration_that_is_none_spoils_no_sum(ms: float) -> None:
    late = p.ApprovalResolvedData(approval_id="a", tool_use_id="t", decision="allow", wait_ms=ms)
    kept = observed(ADA, call("Bash"), late, called(ms=ms), result(duration_ms=ms))
    names = ("claude.agent.duration.ms", "claude.agent.tool.duration.ms", "claude.agent.approval.wait")
    assert [kept.points(name) for name in names] == [{}, {}, {}]
    assert kept.total("claude.agent.approvals") == 1


def test_a_span_with_odd_attributes_is_measured_by_what_can_be_read() -> None:
    kept = Kept()
    odd: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": 7,
        "gen_ai.usage.input_tokens": -5,
        "gen_ai.usage.output_tokens": "many",
        "gen_ai.response.time_to_first_chunk": True,
        "error.type": "no type of ours",
    }
    metrics = Metrics([kept])
    metrics.observe_span(EndedSpan("chat", odd, None, 10**18, 1))
    metrics.observe_span(EndedSpan("chat", odd, None, 0, 2 * 10**9))
    ((found, point),) = kept.points("gen_ai.client.inference.duration").items()
    assert (dict(found)["error.type"], point) == (OTHER, (2.0, 1))
    # The conventions count a failed request without usage as one of 0 tokens.
    assert [point.sum for point in kept.points("gen_ai.client.inference.usage.input_tokens").values()] == [0]
    ((found, point),) = kept.points("gen_ai.client.inference.operation.input_tokens").items()
    assert (dict(found)["error.type"], point) == (OTHER, (0, 2))
    del odd["error.type"]
    succeeded = Kept()
    Metrics([succeeded]).observe_span(EndedSpan("chat", odd, None, 0, 2 * 10**9))
    assert succeeded.points("gen_ai.client.inference.operation.input_tokens") == {}
    assert kept.points("gen_ai.client.inference.time_to_first_chunk") == {}


# -- spans by outcome -------------------------------------------------------------------------------


def test_requests_of_many_kinds_in_one_session_are_told_apart_and_all_measured() -> None:
    kept = Kept()
    metrics = Metrics([kept])
    metrics.begin(ADA, ToolCalls())
    asked = [f"claude-opus-5-{number}" for number in range(40)]
    for model in [*asked, *asked]:
        for error in ({}, {"error.type": "rate_limit"}):
            said = {**OF_REQUEST, **error, "gen_ai.request.model": model, "gen_ai.usage.input_tokens": 5}
            metrics.observe_span(EndedSpan(f"chat {model}", said, None, 0, 10**9))
    durations = kept.points("gen_ai.client.inference.duration")
    assert sum(point.recorded for point in durations.values()) == 4 * len(asked)
    failed = [point.recorded for found, point in durations.items() if ("error.type", "rate_limit") in found]
    assert sum(failed) == 2 * len(asked)
    assert kept.total("gen_ai.client.inference.usage.input_tokens") == 4 * len(asked) * 5
    assert not kept.points("gen_ai.client.inference.time_to_first_chunk")
    assert all({("tenant", "acme"), ("tier", "pro")} < found for found in durations)


def test_spans_are_counted_by_exporter_outcome_and_reason() -> None:
    kept = Kept()
    Metrics([kept]).watch(lambda: {"langfuse": {"exported": 5, "waiting": 3, "dropped: refused": 2}})
    assert kept.points("claude.agent.telemetry.spans") == {
        labels(exporter="langfuse", outcome="exported"): (5, 1),
        labels(exporter="langfuse", outcome="dropped", reason="refused"): (2, 1),
    }


# -- OTLP ---------------------------------------------------------------------------------------------


@contextmanager
def sent_to(
    url: str,
    protocol: Protocol = "http/protobuf",
    interval: float = 3600.0,
    timeout: float = 5.0,
    temporality: Temporality = "cumulative",
) -> Generator[tuple[Metrics, OtlpPart]]:
    """Yield metrics with one recorded cost, and the part that exports them to a receiver."""
    url = url if protocol == "grpc" else url + METRICS_PATH
    destination = otlp_metrics("otlp", Endpoint(url=url, protocol=protocol, timeout=timeout))
    part = OtlpPart(destination, interval, temporality)
    metrics = Metrics([part])
    metrics.observe(event(result()), ADA)
    yield metrics, part


RECEIVERS: list[Any] = [
    pytest.param(http_receiver, "http/protobuf", id="http"),
    pytest.param(grpc_receiver, "grpc", id="grpc"),
]


@pytest.mark.parametrize(("receiver", "protocol"), RECEIVERS)
def test_the_last_metrics_of_a_process_arrive(receiver: Any, protocol: Protocol) -> None:
    with receiver() as there, sent_to(there.url, protocol) as (metrics, _):
        assert metrics.close(10.0)
        assert "claude.agent.cost.usd" in there.requests[-1].metrics


def test_the_last_metrics_wait_for_the_outcomes_of_the_last_spans() -> None:
    counts: dict[str, dict[str, int]] = {"otlp": {"exported": 0}}
    delivery_ended = threading.Event()
    with http_receiver() as there, sent_to(there.url) as (metrics, _):
        metrics.watch(lambda: counts, delivery_ended)
        closing = threading.Thread(target=metrics.close, args=(40.0,))
        closing.start()
        closing.join(0.2)
        counts["otlp"]["exported"] = 7
        delivery_ended.set()
        closing.join()
    assert sums_in(there.requests, "claude.agent.telemetry.spans") == [7]


def test_metrics_are_sent_once_an_interval() -> None:
    with http_receiver() as there, sent_to(there.url, "http/protobuf", interval=0.05) as (metrics, _):
        there.wait_for(lambda: len(there.requests) >= 3)
        assert metrics.close(10.0)


@pytest.mark.parametrize("status", [302, 400, 500])
def test_a_receiver_that_refuses_is_counted_told_once_and_tried_again_at_the_end(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with http_receiver() as there, sent_to(there.url, "http/protobuf") as (metrics, part):
        there.script.extend([Answer(status, {"location": "http://127.0.0.1:1/"})] * 2)
        assert metrics.close(20.0)
        assert (part.exporter.failures, len(there.requests)) == (2, 3)
    told = [record.getMessage() for record in caplog.records if record.name == "host_client.telemetry.metrics._otlp"]
    assert len(told) == 1
    assert "metrics to otlp were not accepted" in told[0]


def sums_in(requests: Sequence[Request], name: str) -> list[float]:
    """Return the sum of a counter in each request that has it."""
    messages = [ExportMetricsServiceRequest.FromString(request.body) for request in requests]
    return [
        sum(point.as_double + point.as_int for point in metric.sum.data_points)
        for message in messages
        for metric in message.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == name
    ]


@pytest.mark.parametrize(
    ("status", "accepted", "lost"), [(503, [0.01, 0.02, 0.04], 0), (400, [0.02, 0.04], 1)], ids=["later", "never"]
)
def test_deltas_are_sent_until_they_are_accepted_or_refused(status: int, accepted: list[float], lost: int) -> None:
    with http_receiver() as there, sent_to(there.url, temporality="delta") as (metrics, part):
        there.script.append(Answer(status))
        for cost in (0.02, 0.04):
            part.reader.collect()
            metrics.observe(event(result(cost)), ADA)
        assert metrics.close(20.0)
        assert sums_in(there.requests[1:], "claude.agent.cost.usd") == pytest.approx(accepted)
        assert (part.exporter.failures, part.exporter.lost) == (1, lost)


@pytest.mark.parametrize(("temporality", "spans_are_deltas"), [("delta", True), ("lowmemory", False)])
def test_what_is_added_up_elsewhere_is_a_delta_as_otlp_defines_it(
    temporality: Temporality, spans_are_deltas: bool
) -> None:
    with http_receiver() as there, sent_to(there.url, temporality=temporality) as (metrics, _):
        metrics.watch(lambda: {"otlp": {"exported": 1}})
        metrics.begin(ADA, ToolCalls())
        assert metrics.close(10.0)
    (message,) = [ExportMetricsServiceRequest.FromString(request.body) for request in there.requests]
    deltas = {
        metric.name: getattr(metric, str(metric.WhichOneof("data"))).aggregation_temporality
        == AGGREGATION_TEMPORALITY_DELTA
        for metric in message.resource_metrics[0].scope_metrics[0].metrics
    }
    assert (deltas["claude.agent.cost.usd"], deltas["claude.agent.duration.ms"]) == (True, True)
    assert deltas["claude.agent.telemetry.spans"] is spans_are_deltas
    assert deltas["claude.agent.sessions.active"] is False


def test_a_receiver_that_hangs_holds_nobody_up_and_the_loss_is_told() -> None:
    with http_receiver() as slow, http_receiver() as quick:
        slow.behave = lambda _: Hang()
        parts = [
            OtlpPart(otlp_metrics(name, Endpoint(url=there.url + METRICS_PATH, timeout=30.0)), 3600.0)
            for name, there in (("signoz", slow), ("otlp", quick))
        ]
        metrics = Metrics(parts)
        metrics.observe(event(result()), ADA)
        closed = threading.Event()
        answers: list[bool] = []

        def close() -> None:
            answers.append(metrics.close(0.5))
            closed.set()

        threading.Thread(target=close, daemon=True).start()
        quick.wait_for(lambda: len(quick.requests) == 1)
        assert closed.wait(20.0), "it waits for the one that hangs"
        assert answers == [False]


def test_where_nobody_listens_the_end_comes_in_time(caplog: pytest.LogCaptureFixture) -> None:
    with nobody() as port, sent_to(f"http://127.0.0.1:{port}", "http/protobuf") as (metrics, part):
        assert not metrics.close(0.2)
        assert part.exporter.failures >= 1
    assert "this process's next export includes them" in caplog.text
