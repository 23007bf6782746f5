"""Trace a run down to the processes that its tools start, with the CLI's own telemetry and an OTLP receiver.

The CLI's telemetry gives each process of a Bash call a TRACEPARENT of its own. A file that the CLI's shells read gives
them the receiver's endpoint, as the CLI passes no ``OTEL_*`` variable on to them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ._callers import find_caller
from ._foreign_spans import ForeignSpan
from ._loopback import without_proxy
from ._otlp_receiver import PATH, OtlpReceiver
from ._process_spans import MAX_SPANS, ProcessSpans
from .contract.genai import CONTENT
from .contract.sanitize import brief

if TYPE_CHECKING:
    from ._telemetry import SpanSink
    from ._translate import Translator

_EXPORT_INTERVAL_MS = 1000
"""Milliseconds after which the CLI exports ended spans, for which the spans of a call's processes wait."""

_END_SECONDS = 1.0
"""Maximum seconds that the end of a run waits for spans that are being read."""

_PROTOCOL = "http/protobuf"
_SHELL_FILE = "CLAUDE_ENV_FILE"
"""The CLI's variable with the path of a file that its shells read before each command."""


class DeepTrace:
    """The receiver of one run. `begin` connects it to the run's spans."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Prepare a receiver; ``environ`` is the CLI's environment. Raise OSError if no file can be written."""
        self._receiver = OtlpReceiver()
        self._spans: ProcessSpans | None = None
        self._fault: str | None = None
        self._shell_file = _shell_file(self._receiver.endpoint, environ.get(_SHELL_FILE))
        self.environ = {
            "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
            "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
            "CLAUDE_CODE_PROPAGATE_TRACEPARENT": "1",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": self._receiver.endpoint + PATH,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _PROTOCOL,
            "OTEL_TRACES_EXPORT_INTERVAL": str(_EXPORT_INTERVAL_MS),
            "OTEL_METRICS_INCLUDE_SESSION_ID": "true",  # by it spans of the run's CLI and of others are told apart
            _SHELL_FILE: str(self._shell_file),
            **without_proxy(environ),
        }
        """Variables of a CLI that exports to the receiver, and whose tools' processes do too."""

    async def start(self) -> None:
        """Begin to serve."""
        await self._receiver.start()

    def begin(self, translator: Translator, sink: SpanSink) -> None:
        """Take what is received, give it its place among the spans of a run, and send it to the run's sink."""
        withheld = CONTENT if translator.agents.sanitize is None else ()
        self._spans = ProcessSpans(translator.spans.common, withheld, sink.pass_on, translator.spans.clock)
        translator.turns.on_begin = self._spans.begin_turn
        translator.calls.on_begin = self._spans.begin_call
        self._receiver.take = self._take

    async def _take(self, spans: list[ForeignSpan], port: int) -> None:
        assert self._spans is not None
        try:
            caller = None
            if self._spans.lacks_parents(spans):
                # The process is still there, as it waits for the answer.
                caller = await self._receiver.in_thread(find_caller, port, self._receiver.port)
            self._spans.receive(spans, caller)
        except Exception as error:  # a failure of telemetry must not fail the run
            self._fault = repr(error)

    async def finish(self) -> list[str]:
        """Stop after the CLI's end, and send what waits; return a message for each kind of loss."""
        with contextlib.suppress(OSError):
            self._shell_file.unlink()
        unread = await self._receiver.stop(_END_SECONDS)
        if self._spans is None:
            return []
        try:
            self._spans.finish()
        except Exception as error:  # as above
            self._fault = repr(error)
        messages: list[str] = []
        if unread:
            messages.append(f"{unread} requests with spans of tools' processes were not read before the run's end")
        if left_out := self._spans.left_out:
            messages.append(f"{left_out} spans of tools' processes were left out: a run has at most {MAX_SPANS}")
        if self._fault is not None:
            messages.append(brief(f"spans of tools' processes were lost: {self._fault}"))
        return messages


def _shell_file(endpoint: str, before: str | None) -> Path:
    """Write the file that shells read; it reads the user's own, ``before``, first. Other accounts can read it."""
    lines: list[str] = []
    if before:
        own = shlex.quote(before)
        lines.append(f"[ -r {own} ] && . {own}")
    lines += [
        f"export OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} OTEL_EXPORTER_OTLP_PROTOCOL={_PROTOCOL}",
        "export OTEL_TRACES_EXPORTER=otlp OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none",
    ]
    with tempfile.NamedTemporaryFile("w", prefix="agent_runner-", suffix=".sh", delete=False) as file:
        file.write("\n".join(lines) + "\n")
        os.fchmod(file.fileno(), 0o644)
    return Path(file.name)
