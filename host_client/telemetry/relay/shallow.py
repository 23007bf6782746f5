"""OTLP's messages of spans, in which attributes, resources and scopes stay the bytes that they are on the wire.

To read an attribute as a message takes three objects and ten calls, and the spans of a trace mostly say the same. As
bytes it is one object, under which what was made of the same bytes before is found. On the wire both are alike, and so
are ``TracesData`` and a request to export spans. Links and the URLs of schemas have no field here: they stay in a
message that is written again, unless ``DiscardUnknownFields`` was called.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.trace.v1 import trace_pb2

Message = Any
"""A message of the classes below, which are made when this is imported and have OTLP's names."""

_LEFT_OUT = frozenset({"links", "schema_url"})


def _described() -> FileDescriptorProto:
    """Return OTLP's own description of spans, with bytes where it has a message of another file."""
    file = FileDescriptorProto()
    trace_pb2.DESCRIPTOR.CopyToProto(file)
    del file.dependency[:]
    for message in file.message_type:
        for of in (message, *message.nested_type):
            _leave_closed(of, f".{file.package}.")
    return file


def _leave_closed(message: DescriptorProto, package: str) -> None:
    fields = [field for field in message.field if field.name not in _LEFT_OUT]
    for field in fields:
        if field.type_name and not field.type_name.startswith(package):
            field.ClearField("type_name")
            field.type = FieldDescriptorProto.TYPE_BYTES
    del message.field[:]
    message.field.extend(fields)


_pool = DescriptorPool()
_pool.Add(_described())

Request: Any = GetMessageClass(_pool.FindMessageTypeByName("opentelemetry.proto.trace.v1.TracesData"))
"""An ``ExportTraceServiceRequest``."""

Span: Any = GetMessageClass(_pool.FindMessageTypeByName("opentelemetry.proto.trace.v1.Span"))


def spans_of(request: Message) -> Iterator[Message]:
    """Yield the spans of a request."""
    return chain.from_iterable(
        of_scope.spans for of_resource in request.resource_spans for of_scope in of_resource.scope_spans
    )
