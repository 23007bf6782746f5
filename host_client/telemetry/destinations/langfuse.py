"""Langfuse: OTLP over HTTP, and on every span the attributes that its ingestion reads.

Only a span's own attributes count there: it takes nothing from the resource, and children inherit nothing. What
it reads by the GenAI conventions is there already; what follows is the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_runner.prices import PRICES, cost
from host_client.telemetry.endpoints import Endpoint

from .otlp_http import OtlpHttp

ROOT = "agent.session"
_TYPES = {"chat": "generation", "invoke_agent": "agent", "execute_tool": "tool"}
_USAGE = {
    "cache_read_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_creation_input_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}


def langfuse(endpoint: Endpoint, environment: str = "default", tags: tuple[str, ...] = ()) -> OtlpHttp:
    """Return Langfuse as a destination."""
    return OtlpHttp("langfuse", endpoint, mapping(environment, tags), environment)


def mapping(environment: str, tags: tuple[str, ...] = ()) -> Callable[[bytes], bytes]:
    """Return the function that makes of a request what Langfuse takes; an environment is ``[a-z0-9-_]{1,40}``."""
    name = re.sub(r"[^a-z0-9_-]", "-", environment.lower())[:40] or "default"
    return partial(_mapped, environment=name, tags=tags)


def _mapped(request: bytes, environment: str, tags: tuple[str, ...]) -> bytes:
    try:
        message = ExportTraceServiceRequest.FromString(request)
    except DecodeError:
        return request  # the receiver says what it thinks of it
    for of_resource in message.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                _complete(span, environment, tags)
    return message.SerializeToString()


def _complete(span: Span, environment: str, tags: tuple[str, ...]) -> None:
    given: dict[str, Any] = {pair.key: _plain(pair.value) for pair in span.attributes}
    if span.name == "agent.approval":
        # It would give the span its name: a wait for a person is no tool.
        for pair in span.attributes:
            if pair.key == "gen_ai.tool.name":
                pair.key = "approval.tool_name"
    for name, value in _added(span, given, environment, tags):
        if name not in given:
            span.attributes.append(KeyValue(key=name, value=value))


def _added(
    span: Span, given: Mapping[str, Any], environment: str, tags: tuple[str, ...]
) -> Iterator[tuple[str, AnyValue]]:
    operation = given.get("gen_ai.operation.name")
    yield "langfuse.observation.type", _text(_TYPES.get(str(operation), "span"))
    yield "langfuse.environment", _text(environment)
    yield "langfuse.trace.name", _text(ROOT)
    if tenant := given.get("tenant.id"):
        tags = (*tags, f"tenant:{tenant}")
        yield "langfuse.trace.metadata.tenant_id", _text(str(tenant))
    if tags:
        yield "langfuse.trace.tags", AnyValue(array_value=ArrayValue(values=[_text(tag) for tag in tags]))
    if span.name == ROOT:
        # Also where it has a parent, which is the caller's and in another place.
        yield "langfuse.internal.as_root", AnyValue(bool_value=True)
    if operation == "chat":
        yield from _of_chat(span, given)


def _of_chat(span: Span, given: Mapping[str, Any]) -> Iterator[tuple[str, AnyValue]]:
    first = given.get("gen_ai.response.time_to_first_chunk")
    if isinstance(first, int | float) and (at := _moment(span.start_time_unix_nano / 1e9 + first)):
        yield "langfuse.observation.completion_start_time", _text(json.dumps(at))
    if (total := _list_price(given)) is not None:
        yield "gen_ai.usage.cost", AnyValue(double_value=total)
        yield "langfuse.observation.cost_details", _text(json.dumps({"total": total}))


def _moment(seconds: float) -> str | None:
    """Return a time since the epoch as text; None for one that no calendar has: a sandbox may say anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _list_price(given: Mapping[str, Any]) -> float | None:
    """Return what a model request costs by list price, in US dollars; None for a model without one."""
    model = str(given.get("gen_ai.response.model") or given.get("gen_ai.request.model") or "")
    tokens = given.get("gen_ai.usage.input_tokens")
    if not isinstance(tokens, int) or not model.startswith(tuple(PRICES)):
        return None
    usage = {name: _count(given, attribute) for name, attribute in _USAGE.items()}
    # The conventions count cached tokens in; the price list, as the API, does not.
    cached = usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    return round(cost(model, {**usage, "input_tokens": max(0, tokens - cached)}), 9)


def _count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name, 0)
    return value if isinstance(value, int) else 0


def _text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else None
