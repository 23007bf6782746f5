"""A sanitizer of the host's own over what spans hold of prompts, answers and tool calls.

The runner has redacted and cut it before; this goes over what is left of it. What a sanitizer fails on is
withheld. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan

from agent_runner.contract.genai import CONTENT, MESSAGES, message, read_message
from agent_runner.contract.sanitize import FULL_LENGTH, Sanitizer, preview, replace_lone_surrogates

WITHHELD = "[withheld]"

_logger = logging.getLogger(__name__)


class ContentFilter:
    """Takes spans and returns them with their content sanitized; ``withheld`` counts the texts that it failed on."""

    def __init__(self, sanitize: Sanitizer) -> None:
        self._sanitize = sanitize
        self.withheld = 0

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """Return the span with its content sanitized; one that holds none is returned as it is."""
        return self._clean(span) if _holds_content(span) else span

    def preview(self, text: str) -> str:
        """Return what of a prompt may be noted outside of spans: a line of at most 100 characters."""
        return preview(self.text(text))

    def text(self, text: str) -> str:
        """Return what of a text may be shown."""
        try:
            shown = self._sanitize(text)
            return replace_lone_surrogates(shown[:FULL_LENGTH])
        except Exception as error:  # it is the user's code
            if not self.withheld:
                # Its message may hold the very text.
                _logger.warning("sanitize_prompt raised %s: what it fails on is withheld", type(error).__name__)
            self.withheld += 1
            return WITHHELD

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=self._attributes(span.attributes),
            events=[Event(event.name, self._attributes(event.attributes), event.timestamp) for event in span.events],
            links=span.links,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _attributes(self, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
        given = attributes or {}
        return {name: self._value(name, value) if name in CONTENT else value for name, value in given.items()}

    def _value(self, name: str, value: Any) -> str:
        if not isinstance(value, str):  # nothing of ours: a forged one
            return WITHHELD
        read = read_message(value) if name in MESSAGES else None
        if read is None:
            return self.text(value)
        role, text = read
        return message(role, self.text(text))


def _holds_content(span: ReadableSpan) -> bool:
    holders = (span, *span.events)
    return any(not CONTENT.isdisjoint(holder.attributes or ()) for holder in holders)
