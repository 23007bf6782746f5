"""The versions of the GenAI semantic conventions whose names telemetry can have. Pure.

The runner writes the names of v0.1.0. They differ from those of v1.41.0, the last version of the core conventions, in
the metrics (`metrics.instruments.BEFORE`), in the name of an attribute, and in that agents' spans have no provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from agent_runner.contract.genai import CACHE_WRITE, PROVIDER

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

Conventions = Literal["v0.1.0", "v1.41.0", "both"]
CACHE_WRITE_BEFORE = "gen_ai.usage.cache_creation.input_tokens"
"""The name of `CACHE_WRITE` in v1.41.0."""

_PROVIDER = "gen_ai.provider.name"

CONVENTIONS: tuple[Conventions, ...] = get_args(Conventions)


def rename(span: Span, conventions: Conventions) -> None:
    """Give the attributes of a span the names of the conventions, or both names."""
    if conventions == "v0.1.0":
        return
    pairs = {pair.key: pair for pair in span.attributes}
    operation = pairs.get("gen_ai.operation.name")
    if operation is not None and operation.value.string_value == "invoke_agent" and _PROVIDER not in pairs:
        span.attributes.add(key=_PROVIDER).value.string_value = PROVIDER
    written = pairs.get(CACHE_WRITE)
    if written is None or CACHE_WRITE_BEFORE in pairs:
        return
    if conventions == "both":
        span.attributes.add(key=CACHE_WRITE_BEFORE, value=written.value)
    else:
        written.key = CACHE_WRITE_BEFORE
