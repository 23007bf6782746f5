"""Apply the user's own sanitizer to the prompts, answers and tool calls in spans. Pure except for a warning.

The runner has redacted and cut these texts before; the sanitizer gets the rest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agent_runner.contract.genai import CONTENT, MESSAGES
from agent_runner.contract.messages import with_texts
from agent_runner.contract.sanitize import FULL_LENGTH, Sanitizer, brief, preview, replace_lone_surrogates

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

WITHHELD = "[withheld]"

_logger = logging.getLogger(__name__)


class ContentFilter:
    """Sanitize content with the user's function; ``withheld`` counts the texts for which that failed."""

    def __init__(self, sanitize: Sanitizer) -> None:
        self._sanitize = sanitize
        self.withheld = 0

    def clean(self, span: Span) -> None:
        """Sanitize the content of a span and of its events in place."""
        for holder in (span, *span.events):
            for pair in holder.attributes:
                if pair.key in CONTENT:
                    pair.value.string_value = self._value(pair)

    def preview(self, text: str) -> str:
        """Return the part of a prompt that may be shown outside of spans: a line of at most 100 characters."""
        return preview(self.text(text))

    def text(self, text: str) -> str:
        """Return the part of a text that may be shown; `WITHHELD` where the sanitizer raises."""
        try:
            shown = self._sanitize(text)
            return replace_lone_surrogates(shown[:FULL_LENGTH])
        except Exception as error:  # the user's code
            if not self.withheld:
                # The error's message may hold the text.
                _logger.warning(
                    "sanitize_prompt raised %s: the texts on which it fails are withheld",
                    type(error).__name__,
                )
            self.withheld += 1
            return WITHHELD

    def _value(self, pair: KeyValue) -> str:
        if not pair.value.HasField("string_value"):  # forged: the runner sends content as text only
            return WITHHELD
        content = pair.value.string_value
        cleaned = with_texts(content, self.text, brief) if pair.key in MESSAGES else None
        return self.text(content) if cleaned is None else cleaned
