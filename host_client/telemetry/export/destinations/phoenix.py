"""Send spans to Phoenix: OTLP over HTTP, with the attributes of the OpenInference conventions beside the GenAI ones.

Phoenix 20.26 converts a part of the GenAI attributes itself. It shows no input and output without ``input.value`` and
``output.value``, drops messages without a finish reason, prices a request by ``llm.model_name``, and reads cached
tokens by older names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent_runner.contract.messages import read_messages, read_text
from agent_runner.contract.ownership import TRACE_NAME
from agent_runner.contract.spans import Attributes
from host_client.telemetry.conventions import rename
from host_client.telemetry.export.endpoints import PHOENIX_PROJECT, Endpoint
from host_client.telemetry.otlp import key_values, values_of

from ._adapting import ROOT, each_span, rename_tool
from ._otlp_http import OtlpHttp

_PROJECT = "openinference.project.name"
_MAX_MESSAGES = 32
_MAX_CALLS = 32
"""Maximum numbers of messages of a request, the last ones, and of calls of a message that are shown one by one."""
_KINDS = {"chat": "LLM", "invoke_agent": "AGENT", "execute_tool": "TOOL"}
_OF_ALL = {
    "input": ("gen_ai.input.messages", "gen_ai.tool.call.arguments"),
    "output": ("gen_ai.output.messages", "gen_ai.tool.call.result"),
}
_OF_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "AGENT": {"agent.name": ("gen_ai.agent.name",)},
    "TOOL": {
        "tool.name": ("gen_ai.tool.name",),
        "tool.id": ("gen_ai.tool.call.id",),
        "tool.parameters": ("gen_ai.tool.call.arguments",),
    },
    "LLM": {
        "llm.provider": ("gen_ai.provider.name",),
        "llm.system": ("gen_ai.provider.name",),
        "llm.model_name": ("gen_ai.response.model", "gen_ai.request.model"),
        "llm.token_count.prompt": ("gen_ai.usage.input_tokens",),
        "llm.token_count.completion": ("gen_ai.usage.output_tokens",),
        "llm.token_count.prompt_details.cache_read": ("gen_ai.usage.cache_read.input_tokens",),
        "llm.token_count.prompt_details.cache_write": (
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation.input_tokens",
        ),
        "llm.token_count.completion_details.reasoning": ("gen_ai.usage.reasoning.output_tokens",),
    },
}
"""OpenInference's attributes of each kind of span, and the GenAI attributes of which the first present one is used."""


def phoenix(endpoint: Endpoint, project: str = PHOENIX_PROJECT) -> OtlpHttp:
    """Return a project of Phoenix as a destination."""
    return OtlpHttp("phoenix", endpoint, mapping(project), project)


def mapping(project: str) -> Callable[[bytes], bytes]:
    """Return a function that adds OpenInference's attributes and the project to a serialized request."""
    return partial(each_span, complete=_complete, describe=partial(_set_project, project=project))


def _set_project(resource: Resource, project: str) -> None:
    others = [pair for pair in resource.attributes if pair.key != _PROJECT]
    del resource.attributes[:]
    resource.attributes.extend([*others, *key_values({_PROJECT: project})])


def _complete(span: Span) -> None:
    rename(span, "both")  # Phoenix 20.26 reads the older name
    attributes = values_of(span.attributes)
    if span.name == "agent.approval":
        rename_tool(span)
    if span.name == ROOT:
        span.name = str(attributes.get(TRACE_NAME, ROOT))  # Phoenix has no other name of a trace
        # Phoenix lists a trace or session by a span without a parent, and the caller's span is elsewhere.
        span.parent_span_id = b""
    kind = _KINDS.get(str(attributes.get("gen_ai.operation.name")), "CHAIN")
    added: Attributes = {"openinference.span.kind": kind}
    for name, sources in _OF_KIND.get(kind, {}).items():
        if (value := _first(attributes, sources)) is not None:
            added[name] = value
    for name, sources in _OF_ALL.items():
        if (value := _first(attributes, sources)) is not None:
            added.update(_content(name, str(value)))
    if kind == "LLM":
        added.update(_of_model_request(attributes))
    span.attributes.extend(key_values({name: value for name, value in added.items() if name not in attributes}))
    if span.status.code == Status.STATUS_CODE_ERROR:
        _add_exception(span, str(attributes.get("error.type", "")))


def _add_exception(span: Span, error_type: str) -> None:
    """Add the event by which Phoenix counts errors by type; it counts failed spans without one as of no type."""
    attributes = {"exception.type": error_type, "exception.message": span.status.message}
    span.events.add(name="exception", time_unix_nano=span.end_time_unix_nano, attributes=key_values(attributes))


def _first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((attributes[name] for name in names if name in attributes), None)


def _content(name: str, value: str) -> Attributes:
    """Return an input or output with its type: the text of a single message that has any, or JSON."""
    if (text := read_text(value)) is not None:
        return {f"{name}.value": text, f"{name}.mime_type": "text/plain"}
    return {f"{name}.value": value, f"{name}.mime_type": "application/json" if _is_json(value) else "text/plain"}


def _is_json(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict | list)
    except (ValueError, RecursionError):
        return False  # cut at a number of characters


def _message(prefix: str, message: Mapping[str, Any]) -> Attributes:
    """Return OpenInference's attributes of a message in the form of the GenAI conventions."""
    added: Attributes = {f"{prefix}.role": message["role"]}
    texts: list[str] = []
    calls = 0
    for part in message["parts"]:
        match part:
            case {"type": "text", "content": str(text)} | {"type": "tool_call_response", "response": str(text)}:
                texts.append(text)
            case {"type": "tool_call" | "server_tool_call", "name": str(name)} if calls < _MAX_CALLS:
                call = f"{prefix}.tool_calls.{calls}.tool_call"
                added[f"{call}.function.name"] = name
                for key, of in ((f"{call}.id", "id"), (f"{call}.function.arguments", "arguments")):
                    if isinstance(value := part.get(of), str):
                        added[key] = value
                calls += 1
            case _:
                pass
    return {**added, f"{prefix}.content": "\n".join(texts)} if texts else added


def _of_model_request(attributes: Mapping[str, Any]) -> Attributes:
    added: Attributes = {}
    match attributes:
        case {"gen_ai.usage.input_tokens": int(read), "gen_ai.usage.output_tokens": int(written)}:
            added["llm.token_count.total"] = read + written
        case _:
            pass
    for name in ("input", "output"):
        for index, message in enumerate(read_messages(str(attributes.get(f"gen_ai.{name}.messages")))[-_MAX_MESSAGES:]):
            added |= _message(f"llm.{name}_messages.{index}.message", message)
    match attributes.get("gen_ai.response.finish_reasons"):
        case (str(reason), *_):
            added["llm.finish_reason"] = reason
        case _:
            pass
    return added
