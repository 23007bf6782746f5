"""End a run that fails before its first turn: an ``error`` event, that turn's span, and the ``end`` event.

It imports no Claude Agent SDK, as that may be what is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ._config import Config, ConfigError
from ._events import Events
from ._span_settings import common_attributes, sanitizer_of
from ._telemetry import SpanSink
from .contract import genai
from .contract.protocol import EndData, ErrorData, LogData
from .contract.sanitize import Sanitizer
from .contract.spans import Spans
from .contract.trace_context import TraceContext

# The value after it may be a prompt or hold a secret, so a span has the setting's name only.
_SETTING = re.compile(r"(AGENT_[A-Z_]+|--[a-z-]+)=")
_MISCONFIGURED = EndData(reason="misconfigured", exit_code=2)


def unprompted(events: Events) -> int:
    """Emit the error of a run that got no prompt, which therefore has no turn, and the ``end`` event."""
    message = "no prompt: set AGENT_PROMPT, give --prompt, or send a prompt command"
    events.emit(ErrorData(error_type="invalid_request", message=message))
    events.emit(_MISCONFIGURED)
    return _MISCONFIGURED.exit_code


@dataclass(frozen=True)
class FailedStart:
    """Ends a run whose agent was not started. Each method returns the exit code."""

    config: Config
    events: Events
    sink: SpanSink
    context: TraceContext

    def misconfigured(self, message: str) -> int:
        """Emit an error about the configuration, the first turn's span and the ``end`` event."""
        setting = _SETTING.match(message)
        shown = f"{setting[1]} is not valid" if setting else "the configuration is not valid"
        return self._end(ErrorData(error_type="invalid_request", message=message), _MISCONFIGURED, shown)

    def not_installed(self, error: ModuleNotFoundError) -> int:
        """Emit an error about a missing package, the first turn's span and the ``end`` event."""
        message = f"{error.name} is not installed, and the runner needs it: pip install 'sandspan[runner]'"
        end = EndData(reason="failed", exit_code=3)
        return self._end(ErrorData(error_type="internal", message=message), end, message)

    def _end(self, error: ErrorData, end: EndData, shown: str) -> int:
        spans = Spans(common_attributes(self.config))
        span = spans.open_root("agent.execute", self.context, genai.invoke_agent(self.config.model, 1))
        if self.config.prompt is not None:
            genai.set_input(span, self.config.prompt, self._sanitizer())
        span.fail(error.error_type, shown)
        spans.close(span)
        self.events.emit(error, span)
        self.sink.export(spans.take_ended())
        if lost := self.sink.close():
            self.events.emit(LogData(stream="telemetry", text=lost))
        self.events.emit(end)
        return end.exit_code

    def _sanitizer(self) -> Sanitizer | None:
        try:
            return sanitizer_of(self.config, self.config.content)
        except ConfigError:
            return None  # the prompt must not reach a span without the sanitizer that cannot be imported
