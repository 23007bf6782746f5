"""Langfuse: OTLP over HTTP, and on every span the attributes that its ingestion reads.

Only a span's own attributes count there: it takes nothing from the resource, and children inherit nothing. What
it reads by the GenAI conventions is there already; what follows is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from struct import Struct
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from host_client.telemetry.attributes import read
from host_client.telemetry.endpoints import Endpoint
from host_client.telemetry.shallow import Message, Request, Span, spans_of
from host_client.telemetry.turns import list_price, request_of

from .otlp_http import OtlpHttp

ROOT = "agent.session"
_BEGAN = "langfuse.observation.completion_start_time"
_COST = "gen_ai.usage.cost"
_COST_DETAILS = "langfuse.observation.cost_details"
_DOUBLE = Struct("<d").pack
_TYPES = {"chat": "generation", "invoke_agent": "agent", "execute_tool": "tool"}


def langfuse(endpoint: Endpoint, environment: str = "default", tags: tuple[str, ...] = ()) -> OtlpHttp:
    """Return Langfuse as a destination."""
    return OtlpHttp("langfuse", endpoint, mapping(environment, tags), environment)


def mapping(environment: str, tags: tuple[str, ...] = ()) -> Callable[[bytes], bytes]:
    """Return the function that makes of a request what Langfuse takes; an environment is ``[a-z0-9-_]{1,40}``."""
    name = re.sub(r"[^a-z0-9_-]", "-", environment.lower())[:40] or "default"
    return partial(_mapped, environment=name, tags=tags)


def _mapped(request: bytes, environment: str, tags: tuple[str, ...]) -> bytes:
    try:
        message = Request.FromString(request)
        for span in spans_of(message):
            _complete(span, environment, tags)
    except DecodeError:
        return request  # the receiver says what it thinks of it
    return message.SerializeToString()


def _complete(span: Message, environment: str, tags: tuple[str, ...]) -> None:
    found = dict(map(read.__getitem__, span.attributes[:]))
    name = span.name
    if name == "agent.approval":
        _rename_tool(span)
    operation = found.get("gen_ai.operation.name")
    kind = _TYPES.get(operation, "span") if isinstance(operation, str) else "span"
    always = _always(kind, found.get("tenant.id"), name == ROOT, environment, tags)
    if found.keys().isdisjoint(always.by_name):
        added = always.joined
    else:  # what the span has under such a name stays alone
        added = b"".join(field for key, field in always.by_name.items() if key not in found)
    span.MergeFromString(added + _of_chat(span, found) if kind == "generation" else added)


def _rename_tool(span: Message) -> None:
    """Take from a wait for a person the attribute that would give it a tool's name."""
    for number, encoded in enumerate(span.attributes):
        if read[encoded][0] == "gen_ai.tool.name":
            tool = KeyValue.FromString(encoded)
            tool.key = "approval.tool_name"
            span.attributes[number] = tool.SerializeToString()


class _Fields(NamedTuple):
    """Attributes as the fields of a span that they are."""

    by_name: Mapping[str, bytes]
    joined: bytes


@lru_cache(256)
def _always(kind: str, tenant: object, is_root: bool, environment: str, tags: tuple[str, ...]) -> _Fields:
    """Return what spans of one kind get."""
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
    fields = {name: _field(name, value) for name, value in added.items()}
    return _Fields(fields, b"".join(fields.values()))


def _of_chat(span: Message, found: Mapping[str, Any]) -> bytes:
    added = b""
    if _BEGAN not in found and (at := _first_chunk_at(span, found)) is not None:
        added = _with_text(_BEGAN, f'"{at}"')  # as JSON
    if (total := _list_price(found)) is not None:
        if _COST not in found:
            added += _before_number(_COST) + _DOUBLE(total)
        if _COST_DETAILS not in found:
            added += _with_text(_COST_DETAILS, f'{{"total": {total!r}}}')
    return added


def _first_chunk_at(span: Message, found: Mapping[str, Any]) -> str | None:
    seconds = found.get("gen_ai.response.time_to_first_chunk")
    return _moment(span.start_time_unix_nano / 1e9 + seconds) if isinstance(seconds, int | float) else None


def _moment(seconds: float) -> str | None:
    """Return a time since the epoch as text; None for one that no calendar has: a sandbox may say anything."""
    try:
        second, part = divmod(seconds, 1.0)
        return f"{_second(second)}.{int(part * 1e6):06}+00:00"
    except (ValueError, OverflowError, OSError):
        return None


@lru_cache(16)
def _second(number: float) -> str:
    return datetime.fromtimestamp(number, UTC).replace(tzinfo=None).isoformat()


def _list_price(given: Mapping[str, Any]) -> float | None:
    """Return what a model request costs by list price, in US dollars; None for a model without one."""
    return list_price(request_of(given)) if isinstance(given.get("gen_ai.usage.input_tokens"), int) else None


def _text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def _field(name: str, value: AnyValue) -> bytes:
    return Span(attributes=[KeyValue(key=name, value=value).SerializeToString()]).SerializeToString()


# The value stands last in such a field, and before it the same for all of one length: to make messages of them would
# take as long as all else that a span needs.


def _with_text(name: str, value: str) -> bytes:
    """Return an attribute; ``value`` is ASCII, and not empty."""
    return _before_text(name, len(value)) + value.encode()


@lru_cache(256)
def _before_text(name: str, size: int) -> bytes:
    return _field(name, _text(" " * size))[:-size]


@lru_cache
def _before_number(name: str) -> bytes:
    return _field(name, AnyValue(double_value=1.0))[:-8]
