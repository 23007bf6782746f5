"""Send spans to Langfuse: OTLP over HTTP, with the attributes that Langfuse reads on every span.

Langfuse reads only a span's own attributes, not those of its resource or of its parent. It understands the GenAI
conventions; the attributes that are added here have names of Langfuse's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_runner.contract.genai import MESSAGES
from agent_runner.contract.ownership import OF_THE_HOST, TRACE_NAME
from agent_runner.contract.spans import Attributes
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.otlp import key_values, values_of
from host_client.telemetry.turns import list_price, request_of

from ._adapting import ROOT, each_span, rename_tool
from ._otlp_http import OtlpHttp

_OF_ROOT = OF_THE_HOST | MESSAGES | {"error.type"}
"""Attributes of a session's span that the user has not given by name."""
_TYPES = {"chat": "generation", "invoke_agent": "agent", "execute_tool": "tool"}


def langfuse(endpoint: Endpoint, environment: str = "default", tags: tuple[str, ...] = ()) -> OtlpHttp:
    """Return Langfuse as a destination."""
    return OtlpHttp("langfuse", endpoint, mapping(environment, tags), environment)


def mapping(environment: str, tags: tuple[str, ...] = ()) -> Callable[[bytes], bytes]:
    """Return a function that adds Langfuse's attributes to a serialized request.

    The environment is brought into the form that Langfuse accepts: up to 40 of ``a-z``, ``0-9``, ``-`` and ``_``.
    """
    name = re.sub(r"[^a-z0-9_-]", "-", environment.lower())[:40] or "default"
    return partial(each_span, complete=partial(_complete, environment=name, tags=tags))


def _complete(span: Span, environment: str, tags: tuple[str, ...]) -> None:
    attributes = values_of(span.attributes)
    if span.name == "agent.approval":
        rename_tool(span)
    operation = attributes.get("gen_ai.operation.name")
    kind = _TYPES.get(operation, "span") if isinstance(operation, str) else "span"
    added: Attributes = {
        "langfuse.environment": environment,
        "langfuse.trace.name": str(attributes.get(TRACE_NAME, ROOT)),
        "langfuse.observation.type": kind,
    }
    if tenant := attributes.get("tenant.id"):
        tags = (*tags, f"tenant:{tenant}")
        added["langfuse.trace.metadata.tenant_id"] = str(tenant)
    if tags:
        added["langfuse.trace.tags"] = tags
    if span.name == ROOT:
        # Its parent is at most the caller's span, which is not in Langfuse. Version 4 reads the second name.
        added["langfuse.internal.as_root"] = added["langfuse.internal.is_app_root"] = True
        given = (name for name in attributes if name not in _OF_ROOT and not name.startswith("langfuse."))
        added.update({f"langfuse.trace.metadata.{name}": str(attributes[name]) for name in given})
    if kind == "generation":
        added.update(_of_model_request(span, attributes))
    span.attributes.extend(key_values({name: value for name, value in added.items() if name not in attributes}))


def _of_model_request(span: Span, attributes: Mapping[str, Any]) -> Attributes:
    added: Attributes = {}
    seconds = attributes.get("gen_ai.response.time_to_first_chunk")
    if isinstance(seconds, int | float) and (at := _moment(span.start_time_unix_nano / 1e9 + seconds)) is not None:
        added["langfuse.observation.completion_start_time"] = f'"{at}"'  # as JSON
    if isinstance(attributes.get("gen_ai.usage.input_tokens"), int):
        total = list_price(request_of(attributes))
        if total is not None:
            added["gen_ai.usage.cost"] = total
            added["langfuse.observation.cost_details"] = f'{{"total": {total!r}}}'
    return added


def _moment(seconds: float) -> str | None:
    """Return a time since the epoch in ISO format; None beyond the calendar, because a sandbox may send any number."""
    try:
        second, part = divmod(seconds, 1.0)
        whole = datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
        return f"{whole}.{int(part * 1e6):06}+00:00"
    except (ValueError, OverflowError, OSError):
        return None
