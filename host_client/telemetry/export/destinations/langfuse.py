"""Langfuse: OTLP over HTTP, and on every span the attributes that its ingestion reads.

Only a span's own attributes count there: it takes nothing from the resource, and children inherit nothing. What
it reads by the GenAI conventions is there already; what follows is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from agent_runner.contract.otlp import of_span
from agent_runner.contract.spans import Attributes
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.relay.attributes import read
from host_client.telemetry.relay.shallow import Message, Request, spans_of
from host_client.telemetry.turns import list_price, request_of

from ._otlp_http import OtlpHttp

ROOT = "agent.session"
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
    added = {**_always(kind, found.get("tenant.id"), name == ROOT, environment, tags)}
    if kind == "generation":
        added.update(_of_chat(span, found))
    if not found.keys().isdisjoint(added):  # what the span has under such a name stays alone
        added = {key: value for key, value in added.items() if key not in found}
    span.MergeFromString(of_span.encoded(added))


def _rename_tool(span: Message) -> None:
    """Take from a wait for a person the attribute that would give it a tool's name."""
    for number, encoded in enumerate(span.attributes):
        if read[encoded][0] == "gen_ai.tool.name":
            tool = KeyValue.FromString(encoded)
            tool.key = "approval.tool_name"
            span.attributes[number] = tool.SerializeToString()


@lru_cache(256)
def _always(kind: str, tenant: object, is_root: bool, environment: str, tags: tuple[str, ...]) -> Attributes:
    """Return what spans of one kind get."""
    added: Attributes = {
        "langfuse.environment": environment,
        "langfuse.trace.name": ROOT,
        "langfuse.observation.type": kind,
    }
    if tenant:
        tags = (*tags, f"tenant:{tenant}")
        added["langfuse.trace.metadata.tenant_id"] = str(tenant)
    if tags:
        added["langfuse.trace.tags"] = tags
    if is_root:
        # Also where it has a parent, which is the caller's and in another place.
        added["langfuse.internal.as_root"] = True
    return added


def _of_chat(span: Message, found: Mapping[str, Any]) -> Attributes:
    added: Attributes = {}
    if (at := _first_chunk_at(span, found)) is not None:
        added["langfuse.observation.completion_start_time"] = f'"{at}"'  # as JSON
    if (total := _list_price(found)) is not None:
        added["gen_ai.usage.cost"] = total
        added["langfuse.observation.cost_details"] = f'{{"total": {total!r}}}'
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
