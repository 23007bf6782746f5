"""The list of all metrics: name, unit, labels, buckets and the name in Prometheus. Pure.

Documents and dashboards are made from `METRICS`, and tests compare what the code exports with it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from host_client.telemetry.conventions import Conventions

Kind = Literal["counter", "histogram", "up_down_counter", "observable_counter"]

TOKEN_KINDS = ("input", "output", "cache_read", "cache_creation")
"""Values of ``kind`` of ``claude.agent.tokens``. As in Anthropic's bills, ``input`` excludes cached tokens."""

OUTCOMES = ("exported", "retried", "spooled", "dropped")
"""Values of ``outcome`` of ``claude.agent.telemetry.spans``."""

_TURN_MS = (100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 1.8e6, 3.6e6)
_TOOL_MS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 1.2e5, 3e5, 6e5)
_WAIT_MS = (100.0, 1e3, 5e3, 1e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 1.8e6, 3.6e6, 1.44e7, 8.64e7)
_CREATION_MS = (50.0, 100.0, 250.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 3e4, 6e4)
# The GenAI conventions ask for these buckets of durations, tokens and calls.
_OPERATION_S = tuple(0.01 * 2**power for power in range(14))
_AGENT_S = tuple(0.1 * 2**power for power in range(13))
_TOKENS = tuple(float(4**power) for power in range(14))
_CALLS = tuple(float(2**power) for power in range(8))

_REQUEST = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
    "tenant",
    "tier",
)
_USAGE = (*_REQUEST, "gen_ai.token.modality")
_AGENT = ("gen_ai.operation.name", "gen_ai.agent.name", "tenant", "tier")


class Metric(NamedTuple):
    """One metric. ``unit`` is in UCUM; ``labels`` are names of attributes, in Prometheus with ``_`` for each dot."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    what: str
    exposed: str
    """Name in Prometheus; a histogram's series add ``_bucket``, ``_sum`` or ``_count`` to it."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in ``unit``."""


METRICS = (
    Metric(
        "claude.agent.cost.usd",
        "counter",
        "usd",
        ("tenant", "tier", "model", "user"),
        "Cost of turns in US dollars; the only metric with a user.",
        "claude_agent_cost_usd_total",
    ),
    Metric(
        "claude.agent.duration.ms",
        "histogram",
        "ms",
        ("tenant", "tier", "model", "error.type"),
        "Duration of turns, by the session's model; error.type is set on those that failed.",
        "claude_agent_duration_seconds",
        _TURN_MS,
    ),
    Metric(
        "claude.agent.tool.duration.ms",
        "histogram",
        "ms",
        ("tenant", "tier", "tool"),
        "Duration of tool calls, without the wait for a person.",
        "claude_agent_tool_duration_seconds",
        _TOOL_MS,
    ),
    Metric(
        "claude.agent.tool.errors",
        "counter",
        "{error}",
        ("tenant", "tier", "tool", "error.type"),
        "Tool calls that failed or were refused.",
        "claude_agent_tool_errors_total",
    ),
    Metric(
        "claude.agent.errors.total",
        "counter",
        "{error}",
        ("tenant", "tier", "model", "error.type"),
        "Errors of agents, runners and sessions.",
        "claude_agent_errors_total",
    ),
    Metric(
        "claude.agent.tokens",
        "counter",
        "{token}",
        ("tenant", "tier", "model", "kind"),
        f"Tokens billed, subagents included, by kind: {', '.join(TOKEN_KINDS)}.",
        "claude_agent_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.duration",
        "histogram",
        "s",
        (*_REQUEST, "error.type"),
        "Duration of model requests.",
        "gen_ai_client_inference_duration_seconds",
        _OPERATION_S,
    ),
    Metric(
        "gen_ai.client.inference.time_to_first_chunk",
        "histogram",
        "s",
        _REQUEST,
        "Time from a model request to the first chunk of its answer.",
        "gen_ai_client_inference_time_to_first_chunk_seconds",
        _OPERATION_S,
    ),
    Metric(
        "gen_ai.client.inference.usage.input_tokens",
        "counter",
        "{token}",
        _USAGE,
        "Input tokens of model requests, cached ones included.",
        "gen_ai_client_inference_usage_input_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.usage.output_tokens",
        "counter",
        "{token}",
        _USAGE,
        "Output tokens of model requests, those of reasoning included.",
        "gen_ai_client_inference_usage_output_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        "counter",
        "{token}",
        _USAGE,
        "Input tokens that were read from the prompt cache.",
        "gen_ai_client_inference_usage_cache_read_input_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.usage.cache_write.input_tokens",
        "counter",
        "{token}",
        _USAGE,
        "Input tokens that were written to the prompt cache.",
        "gen_ai_client_inference_usage_cache_write_input_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.usage.reasoning.output_tokens",
        "counter",
        "{token}",
        _USAGE,
        "Output tokens of reasoning, where the API reports them.",
        "gen_ai_client_inference_usage_reasoning_output_tokens_total",
    ),
    Metric(
        "gen_ai.client.inference.operation.input_tokens",
        "histogram",
        "{token}",
        (*_REQUEST, "error.type"),
        "Input tokens of one model request, cached ones included.",
        "gen_ai_client_inference_operation_input_tokens",
        _TOKENS,
    ),
    Metric(
        "gen_ai.client.inference.operation.output_tokens",
        "histogram",
        "{token}",
        (*_REQUEST, "error.type"),
        "Output tokens of one model request.",
        "gen_ai_client_inference_operation_output_tokens",
        _TOKENS,
    ),
    Metric(
        "gen_ai.invoke_agent.duration",
        "histogram",
        "s",
        (*_AGENT, "error.type"),
        "Duration of turns (claude-agent) and of subagents, by the agent's name.",
        "gen_ai_invoke_agent_duration_seconds",
        _AGENT_S,
    ),
    Metric(
        "gen_ai.invoke_agent.inference_calls",
        "histogram",
        "{inference_call}",
        _AGENT,
        "Model requests of one turn or subagent, without those of its subagents.",
        "gen_ai_invoke_agent_inference_calls",
        _CALLS,
    ),
    Metric(
        "gen_ai.invoke_agent.tool_calls",
        "histogram",
        "{tool_call}",
        _AGENT,
        "Tool calls of one turn or subagent, without those of its subagents.",
        "gen_ai_invoke_agent_tool_calls",
        _CALLS,
    ),
    Metric(
        "gen_ai.execute_tool.duration",
        "histogram",
        "s",
        ("gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.type", "tenant", "tier", "error.type"),
        "Duration of tool calls, with the waits for a person and for other calls.",
        "gen_ai_execute_tool_duration_seconds",
        _OPERATION_S,
    ),
    Metric(
        "claude.agent.approval.wait",
        "histogram",
        "ms",
        ("tenant", "tier", "decision"),
        "Time that approvals and questions waited for an answer.",
        "claude_agent_approval_wait_seconds",
        _WAIT_MS,
    ),
    Metric(
        "claude.agent.approvals",
        "counter",
        "{approval}",
        ("tenant", "tier", "tool", "decision", "decided_by"),
        "Approvals and questions by how they ended, and by who decided.",
        "claude_agent_approvals_total",
    ),
    Metric(
        "claude.agent.sandbox.creation.duration",
        "histogram",
        "ms",
        ("tenant", "tier", "sandbox.kind", "error.type"),
        "Time to create a sandbox.",
        "claude_agent_sandbox_creation_duration_seconds",
        _CREATION_MS,
    ),
    Metric(
        "claude.agent.sessions.active",
        "up_down_counter",
        "{session}",
        ("tenant", "tier"),
        "Sessions under way.",
        "claude_agent_sessions_active",
    ),
    Metric(
        "claude.agent.events",
        "counter",
        "{event}",
        ("tenant", "tier", "type"),
        "Events streamed from sandboxes, by type.",
        "claude_agent_events_total",
    ),
    Metric(
        "claude.agent.telemetry.spans",
        "observable_counter",
        "{span}",
        ("exporter", "outcome", "reason"),
        f"Spans by exporter and outcome: {', '.join(OUTCOMES)}; a drop has a reason.",
        "claude_agent_telemetry_spans_total",
    ),
)

MAX_COUNTER_SERIES = 10_000
"""Maximum number of series of one counter: the SDK's default of 2,000 is too low for 1,000 users and their models. The
SDK adds up everything beyond it under ``otel_metric_overflow``. Histograms, with a series a bucket, stay at 2,000."""

BEFORE = (
    Metric(
        "gen_ai.client.token.usage",
        "histogram",
        "{token}",
        (*_REQUEST, "gen_ai.token.type"),
        "Tokens of one model request, input (cached ones included) and output.",
        "gen_ai_client_token_usage",
        _TOKENS,
    ),
    Metric(
        "gen_ai.client.operation.duration",
        "histogram",
        "s",
        (*_REQUEST, "error.type"),
        "Duration of model requests.",
        "gen_ai_client_operation_duration_seconds",
        _OPERATION_S,
    ),
    Metric(
        "gen_ai.client.operation.time_to_first_chunk",
        "histogram",
        "s",
        _REQUEST,
        "Time from a model request to the first chunk of its answer.",
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        _OPERATION_S,
    ),
)
"""The metrics that the GenAI conventions v1.41 had in place of ``gen_ai.client.inference.*``."""

BY_NAME = {metric.name: metric for metric in (*METRICS, *BEFORE)}


def is_exported(metric: Metric, conventions: Conventions) -> bool:
    """Return whether telemetry that follows these GenAI conventions has a metric."""
    if metric in BEFORE:
        return conventions != "v0.1.0"
    return conventions != "v1.41.0" or not metric.name.startswith("gen_ai.")
