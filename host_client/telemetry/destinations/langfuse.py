"""Langfuse: OTLP over HTTP, and on every span the attributes that its ingestion reads.

Only a span's own attributes count there: it takes nothing from the resource, and children inherit nothing. What
it reads by the GenAI conventions is there already; what follows is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_runner.prices import family
from host_client.telemetry.endpoints import Endpoint
from host_client.telemetry.turns import NANO, REQUEST_ATTRIBUTES, priced, request_of

from .otlp_http import OtlpHttp

ROOT = "agent.session"
_TYPES = {"chat": "generation", "invoke_agent": "agent", "execute_tool": "tool"}

_PLAIN = frozenset({"string_value", "bool_value", "int_value", "double_value"})


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
    found = {pair.key: pair for pair in span.attributes}
    name = span.name
    if name == "agent.approval" and (tool := found.get("gen_ai.tool.name")) is not None:
        tool.key = "approval.tool_name"  # it would give the span its name: a wait for a person is no tool
    operation = _plain(found.get("gen_ai.operation.name"))
    kind = _TYPES.get(operation, "span") if isinstance(operation, str) else "span"
    always = _always(kind, _plain(found.get("tenant.id")), name == ROOT, environment, tags)
    if found.keys().isdisjoint(always.names):
        span.MergeFromString(always.encoded)
    else:  # what the span has under such a name stays alone
        span.attributes.extend(pair for pair in Span.FromString(always.encoded).attributes if pair.key not in found)
    if kind == "generation":
        _complete_chat(span, found)


class _Always(NamedTuple):
    """What spans of one kind get: the names, and the attributes as the bytes of a span that has no more."""

    names: frozenset[str]
    encoded: bytes


@lru_cache(256)
def _always(kind: str, tenant: object, is_root: bool, environment: str, tags: tuple[str, ...]) -> _Always:
    added = {
        "langfuse.environment": _text(environment),
        "langfuse.trace.name": _text(ROOT),
        "langfuse.observation.type": _text(kind),
    }
    if tenant:
        tags = (*tags, f"tenant:{tenant}")
        added["langfuse.trace.metadata.tenant_id"] = _text(str(tenant))
    if tags:
        added["langfuse.trace.tags"] = AnyValue(array_value=ArrayValue(values=[_text(tag) for tag in tags]))
    if is_root:
        # Also where it has a parent, which is the caller's and in another place.
        added["langfuse.internal.as_root"] = AnyValue(bool_value=True)
    pairs = [KeyValue(key=name, value=value) for name, value in added.items()]
    return _Always(frozenset(added), Span(attributes=pairs).SerializeToString())


def _complete_chat(span: Span, found: Mapping[str, KeyValue]) -> None:
    if "langfuse.observation.completion_start_time" not in found and (at := _first_chunk_at(span, found)):
        span.attributes.add(key="langfuse.observation.completion_start_time").value.string_value = f'"{at}"'  # as JSON
    if (total := _list_price({name: _plain(found.get(name)) for name in REQUEST_ATTRIBUTES})) is None:
        return
    if "gen_ai.usage.cost" not in found:
        span.attributes.add(key="gen_ai.usage.cost").value.double_value = total
    if "langfuse.observation.cost_details" not in found:
        span.attributes.add(key="langfuse.observation.cost_details").value.string_value = f'{{"total": {total!r}}}'


def _first_chunk_at(span: Span, found: Mapping[str, KeyValue]) -> str | None:
    seconds = _plain(found.get("gen_ai.response.time_to_first_chunk"))
    return _moment(span.start_time_unix_nano / 1e9 + seconds) if isinstance(seconds, int | float) else None


def _moment(seconds: float) -> str | None:
    """Return a time since the epoch as text; None for one that no calendar has: a sandbox may say anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _list_price(given: Mapping[str, Any]) -> float | None:
    """Return what a model request costs by list price, in US dollars; None for a model without one."""
    part = priced(request_of(given))
    told = isinstance(given.get("gen_ai.usage.input_tokens"), int)
    return part.nano / NANO if told and family(part.model) is not None else None


def _text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def _plain(pair: KeyValue | None) -> Any:
    """Return the value of an attribute; None for one that is not there or not plain."""
    if pair is None:
        return None
    kind = (value := pair.value).WhichOneof("value")
    return getattr(value, kind) if kind in _PLAIN else None
