"""The GenAI semantic conventions v0.1.0 as a table, and a checker of spans and metrics that follow it.

Source: repository open-telemetry/semantic-conventions-genai, `model/gen-ai/*.yaml` and `docs/gen-ai/*.md`, read as of
its first release (commits 024a4f9 of client-inference.md, 066d4a7 of gen-ai-token-metrics.md, 32c328e of migration.md).
The table has the operations that Sandspan performs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from host_client.telemetry.metrics.instruments import Metric

    from .runs import SpanView

INTERNAL, CLIENT = 1, 3
KINDS = {INTERNAL: "internal", CLIENT: "client"}

Check = Callable[[Any], bool]


def is_int(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, cast("list[Any]", value)))


def is_true(value: Any) -> bool:
    """The conventions leave the attribute out of requests that do not stream."""
    return value is True


def _parsed(value: Any) -> list[dict[str, Any]] | None:
    """Return the objects of a JSON list, or None for another value."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, dict) for each in found) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


PARTS: dict[str, dict[str, Check]] = {
    "text": {"content": is_text},
    "reasoning": {"content": is_text},
    "tool_call": {"name": is_text},
    "tool_call_response": {"response": lambda _: True},
    "server_tool_call": {"name": is_text, "server_tool_call": lambda call: is_text(call.get("type"))},
}
"""What a part of each type requires; a part of any other type requires nothing."""


def are_parts(parts: Any) -> bool:
    return isinstance(parts, list) and all(
        isinstance(part.get("type"), str)
        and all(key in part and check(part[key]) for key, check in PARTS.get(part["type"], {}).items())
        for part in cast("list[dict[str, Any]]", parts)
    )


def are_messages(value: Any) -> bool:
    messages = _parsed(value)
    return messages is not None and all(is_text(each.get("role")) and are_parts(each.get("parts")) for each in messages)


def are_answers(value: Any) -> bool:
    return are_messages(value) and all(is_text(each.get("finish_reason")) for each in _parsed(value) or [])


def are_instructions(value: Any) -> bool:
    parts = _parsed(value)
    return parts is not None and are_parts(parts) and all(part["type"] == "text" for part in parts)


def are_definitions(value: Any) -> bool:
    tools = _parsed(value)
    return tools is not None and all(is_text(tool.get("type")) and is_text(tool.get("name")) for tool in tools)


def one_of(*values: str) -> Check:
    return lambda value: value in values


EVERYWHERE: dict[str, Check] = {"gen_ai.conversation.id": is_text}
"""Attributes that applications may add to any span."""

REQUEST: dict[str, Check] = {
    "gen_ai.request.model": is_text,
    "gen_ai.request.max_tokens": is_int,
    "gen_ai.request.temperature": is_number,
    "gen_ai.request.top_p": is_number,
    "gen_ai.request.stop_sequences": is_texts,
}
CONTENT: dict[str, Check] = {
    "gen_ai.input.messages": are_messages,
    "gen_ai.output.messages": are_answers,
    "gen_ai.system_instructions": are_instructions,
    "gen_ai.tool.definitions": are_definitions,
}


class Operation(NamedTuple):
    """The spans of one operation: their kind, their names, and the attributes of the conventions that they may have."""

    kind: int
    names: tuple[str, ...]
    """Templates of names; without an attribute in a template, the words before it alone are the name."""
    required: tuple[str, ...]
    attributes: Mapping[str, Check]


OPERATIONS = {
    "chat": Operation(
        CLIENT,
        ("chat {gen_ai.request.model}",),
        ("gen_ai.provider.name",),
        {
            **REQUEST,
            **CONTENT,
            "gen_ai.provider.name": one_of("anthropic"),
            "gen_ai.request.stream": is_true,
            "gen_ai.request.top_k": is_int,
            "gen_ai.request.reasoning.level": is_text,
            "gen_ai.response.id": is_text,
            "gen_ai.response.model": is_text,
            "gen_ai.response.finish_reasons": is_texts,
            "gen_ai.response.time_to_first_chunk": is_number,
            "gen_ai.usage.input_tokens": is_int,
            "gen_ai.usage.output_tokens": is_int,
            "gen_ai.usage.cache_read.input_tokens": is_int,
            "gen_ai.usage.cache_write.input_tokens": is_int,
            "gen_ai.usage.reasoning.output_tokens": is_int,
        },
    ),
    # The name of a turn's span is not the conventions'; its operation classifies it.
    "invoke_agent": Operation(
        INTERNAL,
        ("invoke_agent {gen_ai.agent.name}", "agent.execute"),
        (),
        {
            **REQUEST,
            **CONTENT,
            "gen_ai.agent.name": is_text,
            "gen_ai.agent.description": is_text,
            "gen_ai.response.finish_reasons": is_texts,
            "gen_ai.usage.input_tokens": is_int,
            "gen_ai.usage.output_tokens": is_int,
        },
    ),
    "execute_tool": Operation(
        INTERNAL,
        ("execute_tool {gen_ai.tool.name}",),
        ("gen_ai.tool.name",),
        {
            "gen_ai.tool.name": is_text,
            "gen_ai.tool.call.id": is_text,
            "gen_ai.tool.type": one_of("function", "extension", "datastore"),
            "gen_ai.tool.description": is_text,
            "gen_ai.tool.call.arguments": is_text,
            "gen_ai.tool.call.result": is_text,
        },
    ),
}

OWN: dict[str, tuple[str, ...]] = {
    "agent.session": ("gen_ai.input.messages", "gen_ai.output.messages"),
    "agent.approval": ("gen_ai.tool.name", "gen_ai.tool.call.id"),
}
"""Spans for which the conventions have no operation, and the attributes of the conventions that they have."""


def violations(spans: Iterable[SpanView]) -> list[str]:
    """Return a sentence for each way in which a span does not follow the conventions."""
    return [f"{span.name}: {fault}" for span in spans for fault in _faults(span)]


def _faults(span: SpanView) -> Iterable[str]:
    given = {name: value for name, value in span.attributes.items() if name.startswith("gen_ai.")}
    for name in EVERYWHERE:
        if name in given and not EVERYWHERE[name](given.pop(name)):
            yield f"{name} has the wrong type"
    operation = OPERATIONS.get(str(given.pop("gen_ai.operation.name", None)))
    if operation is None:
        unknown = given.keys() - set(OWN.get(span.name, ()))
        if unknown:
            yield f"no operation, but {sorted(unknown)}"
        return
    if (span.status == 2) != ("error.type" in span.attributes):
        yield "a failed span has error.type, and no other"
    if ("server.address" in span.attributes) != ("server.port" in span.attributes):
        yield "server.address and server.port go together"
    if span.kind != operation.kind:
        yield f"its kind is not {KINDS[operation.kind]}"
    if span.name not in _names(operation, span.attributes):
        yield f"it is not named as in {operation.names}"
    for name in operation.required:
        if name not in given:
            yield f"{name} is missing"
    for name, value in given.items():
        check = operation.attributes.get(name)
        if check is None:
            yield f"{name} is not of this operation"
        elif not check(value):
            yield f"{name} has a wrong value: {value!r}"


def _names(operation: Operation, attributes: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for template in operation.names:
        words, _, attribute = template.partition(" {")
        value = attributes.get(attribute.rstrip("}")) if attribute else None
        names.append(f"{words} {value}" if value is not None else words)
    return names


_OF_REQUEST = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
)
_OPERATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_AGENT_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_CALLS = (1, 2, 4, 8, 16, 32, 64, 128)


class Instrument(NamedTuple):
    """A metric of the conventions."""

    kind: str
    unit: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()


def _usage() -> Instrument:
    return Instrument("counter", "{token}", (*_OF_REQUEST, "gen_ai.token.modality"))


_AGENT = ("gen_ai.operation.name", "gen_ai.agent.name")
_CLIENT = "gen_ai.client.inference"
INSTRUMENTS = {
    f"{_CLIENT}.duration": Instrument("histogram", "s", (*_OF_REQUEST, "error.type"), _OPERATION_S),
    f"{_CLIENT}.time_to_first_chunk": Instrument("histogram", "s", _OF_REQUEST, _OPERATION_S),
    f"{_CLIENT}.usage.input_tokens": _usage(),
    f"{_CLIENT}.usage.output_tokens": _usage(),
    f"{_CLIENT}.usage.cache_read.input_tokens": _usage(),
    f"{_CLIENT}.usage.cache_write.input_tokens": _usage(),
    f"{_CLIENT}.usage.reasoning.output_tokens": _usage(),
    f"{_CLIENT}.operation.input_tokens": Instrument("histogram", "{token}", (*_OF_REQUEST, "error.type"), _TOKENS),
    f"{_CLIENT}.operation.output_tokens": Instrument("histogram", "{token}", (*_OF_REQUEST, "error.type"), _TOKENS),
    "gen_ai.invoke_agent.duration": Instrument("histogram", "s", (*_AGENT, "error.type"), _AGENT_S),
    "gen_ai.invoke_agent.inference_calls": Instrument("histogram", "{inference_call}", _AGENT, _CALLS),
    "gen_ai.invoke_agent.tool_calls": Instrument("histogram", "{tool_call}", _AGENT, _CALLS),
    "gen_ai.execute_tool.duration": Instrument(
        "histogram",
        "s",
        ("gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.type", "error.type"),
        _OPERATION_S,
    ),
}

OWN_LABELS = {"tenant", "tier"}
"""Labels of the conventions' metrics that Sandspan adds."""


def violations_of_metrics(metrics: Sequence[Metric]) -> list[str]:
    """Return a sentence for each way in which a metric does not follow the conventions."""
    faults: list[str] = []
    for metric in metrics:
        if not metric.name.startswith("gen_ai."):
            continue
        known = INSTRUMENTS.get(metric.name)
        if known is None:
            faults.append(f"{metric.name} is not a metric of the conventions")
            continue
        labels = tuple(label for label in metric.labels if label not in OWN_LABELS)
        found = Instrument(metric.kind, metric.unit, labels, metric.buckets)
        if found != known:
            faults.append(f"{metric.name}: {found} is not {known}")
    return faults
