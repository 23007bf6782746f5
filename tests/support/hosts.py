"""Sessions of the real host, on a local sandbox or a stand-in of E2B, against the scripted model."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from agent_runner.contract.protocol import AnyEvent
from host_client.sandbox.e2b import E2BOptions, E2BSandbox, Layout
from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.e2b import Image, StandIn
from tests.support.runs import SpanView, spans_in

DEFAULT_CHAT = "chat claude-opus-5-5"
"""The name of a model request's span where no model is configured: the CLI then asks for this one."""

ACCOUNT = "nobody"
"""This machine's account for the agent in a sandbox."""


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


@dataclass
class E2BLab(HostLab):
    """A lab with a stand-in of E2B, in whose sandboxes the real runner and CLI run on this machine."""

    e2b: StandIn
    root: Path

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.e2b.environ}

    @property
    def work(self) -> Path:
        """The agent's working directory."""
        return self.root / "work"

    @property
    def state(self) -> Path:
        """The runner's own directory, with the journals."""
        return self.root / "state"

    def sandbox(self, resume: str | None = None, **options: Any) -> E2BSandbox:
        return E2BSandbox(E2BOptions(**options), environ=self.environ, resume=resume)


@contextmanager
def e2b_lab(script: str, *, python: str = sys.executable) -> Generator[E2BLab]:
    """Serve a script and a stand-in of E2B; every model request must have been expected, no sandbox left running.

    ``python`` is what runs the runner in its sandboxes.
    """
    # Not below pytest's own directory, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="e2b-lab-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "state").mkdir(mode=0o700)
        (root / "work").mkdir()
        for name in ("claude", "tmp"):
            (root / name).mkdir()
        for name in ("work", "claude", "tmp"):
            shutil.chown(root / name, ACCOUNT)
        layout = Layout()
        paths = {layout.python: python, layout.state: f"{root}/state", layout.work: f"{root}/work"}
        paths["u=user;"] = f"u={ACCOUNT};"
        # The CLI names a file for each command by 16 random bits, and the command fails if root left one of that name.
        own = {"CLAUDE_CONFIG_DIR": f"{root}/claude", "CLAUDE_CODE_TMPDIR": f"{root}/tmp"}
        image = Image(paths, {layout.user: ACCOUNT}, own)
        with (
            ScriptedModel(parse_script(script)) as model,
            StandIn(unprivileged=ACCOUNT, image=image) as e2b,
        ):
            yield E2BLab(model, e2b, root)
            assert model.unexpected == []
            assert [sandbox.id for sandbox in e2b.sandboxes if sandbox.state == "running"] == []


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
