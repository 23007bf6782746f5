"""Convert OTLP requests to a readable form in which two versions of the code can be compared field by field.

The grouping of spans under resources and scopes, the order of attributes, and the attributes that hosts have added
since f6f5305 are ignored; everything else counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, cast

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan

from agent_runner.contract.genai import MESSAGES

Json = dict[str, Any]


CONVENTIONS: Final = "v1.41.0"
"""Version of the GenAI conventions whose names f6f5305 gave spans and metrics."""

ADDED_TO_ROOTS = MESSAGES | {"langfuse.internal.is_app_root"}
"""Attributes of a session's span that hosts have added since f6f5305, besides the user's attributes for Langfuse."""


def spans_of(request: bytes) -> list[Json]:
    """Return the spans of a serialized request in order, each with its resource and its scope."""
    found: list[Json] = []
    message = ExportTraceServiceRequest.FromString(request)
    for of_resource in message.resource_spans:
        _leave_out(of_resource.resource, {"deployment.environment.name"})
        resource = {**_dict(of_resource.resource), "schema_url": of_resource.schema_url}
        for of_scope in of_resource.scope_spans:
            scope = {**_dict(of_scope.scope), "schema_url": of_scope.schema_url}
            for span in of_scope.spans:
                if span.name == "agent.session":
                    given = {f"langfuse.trace.metadata.{pair.key}" for pair in span.attributes}
                    _leave_out(span, ADDED_TO_ROOTS | given)
                ids = {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_span_id": span.parent_span_id.hex(),
                }
                found.append({"resource": resource, "scope": scope, **_dict(span), **ids})
    return found


def _leave_out(of: Resource | Span, names: Collection[str]) -> None:
    kept = [pair for pair in of.attributes if pair.key not in names]
    del of.attributes[:]
    of.attributes.extend(kept)


def by_id(spans: Sequence[Json]) -> dict[str, Json]:
    """Return the spans as a dict by span id; fail if an id occurs twice."""
    found = {span["span_id"]: span for span in spans}
    assert len(found) == len(spans), "a span came twice"
    return dict(sorted(found.items()))


def readable_spans(spans: Sequence[ReadableSpan]) -> list[Json]:
    """Return spans of the OpenTelemetry SDK in the same readable form, through the SDK's own OTLP encoder."""
    return spans_of(encode_spans(spans).SerializeToString())


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each difference between two JSON values."""
    match then, now:
        case dict(), dict():
            old, new = cast("Json", then), cast("Json", now)
            for name in sorted({*old, *new}):
                yield from differences(old.get(name), new.get(name), f"{path}.{name}")
        case list(), list() if len(cast("list[Any]", then)) == len(cast("list[Any]", now)):
            for number, (old, new) in enumerate(zip(cast("list[Any]", then), cast("list[Any]", now), strict=True)):
                yield from differences(old, new, f"{path}[{number}]")
        case _ if then != now:
            yield f"{path}: was {str(then)[:300]!r}, is {str(now)[:300]!r}"
        case _:
            pass


_MOMENTS = ("start_time_unix_nano", "time_unix_nano")


def metrics_in(request: bytes) -> dict[str, Json]:
    """Return the metrics of a serialized request by name, with their points by labels and without timestamps."""
    message = ExportMetricsServiceRequest.FromString(request)
    found: dict[str, Json] = {}
    for of_resource in message.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                about = MessageToDict(metric, preserving_proto_field_name=True)
                (kind,) = about.keys() & {"sum", "gauge", "histogram"}
                data = about.pop(kind)
                points = {_labels(point): _without(point, *_MOMENTS, "attributes") for point in data.pop("data_points")}
                found[about.pop("name")] = {**about, "kind": kind, **data, "points": dict(sorted(points.items()))}
    return dict(sorted(found.items()))


def _labels(point: Json) -> str:
    pairs = {pair["key"]: next(iter(pair["value"].values())) for pair in point.get("attributes", [])}
    return ",".join(f"{name}={value}" for name, value in sorted(pairs.items()))


def _without(values: Json, *names: str) -> Json:
    return {name: value for name, value in values.items() if name not in names}


def _dict(message: Any) -> Json:
    return _sorted(MessageToDict(message, preserving_proto_field_name=True))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _attributes(each) if name == "attributes" else _sorted(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_sorted(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _attributes(pairs: Any) -> Any:
    """Return attributes sorted by name; attributes with the same name keep their order."""
    return sorted(([pair.get("key", ""), _sorted(pair.get("value", {}))] for pair in pairs), key=lambda pair: pair[0])
