"""Sessions of the real host, on a local sandbox, against the scripted model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan

from agent_runner.protocol import AnyEvent
from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.runs import SpanView, spans_in


@dataclass
class HostLab:
    """A scripted model and the environment that points a host at it."""

    model: ScriptedModel

    @property
    def environ(self) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": self.model.url,
            "ANTHROPIC_API_KEY": "sk-ant-not-a-key",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }


@contextmanager
def host_lab(script: str) -> Generator[HostLab]:
    """Serve a script; every request must have been expected."""
    with ScriptedModel(parse_script(script)) as model:
        yield HostLab(model)
        assert model.unexpected == []


def views(spans: Sequence[ReadableSpan]) -> list[SpanView]:
    """Return spans as a backend gets them."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return list(spans_in(encode_spans(list(spans)).SerializeToString()))


def numbered(events: Sequence[AnyEvent]) -> list[int]:
    """Return the numbers of the events that have one."""
    return [event.seq for event in events if event.seq is not None]
