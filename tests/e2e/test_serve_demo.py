"""``host_client serve --demo`` runs a scripted session and leaves no files behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import clean_environment

WAIT_SECONDS = 60


class Demo:
    """A running demo, and the event stream of its session."""

    def __init__(self, home: Path) -> None:
        self.state, self.temporary = home / "state", home / "tmp"
        self.temporary.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "host_client", "serve", "--demo", "--port", "0"],
            env=clean_environment(
                home, "http://127.0.0.1:1", XDG_STATE_HOME=str(self.state), TMPDIR=str(self.temporary)
            ),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        found = next(filter(None, (re.search(r"(http://\S+)#/s/(\S+)", line) for line in self._process.stderr)))
        self._url = f"{found[1]}api/sessions/{found[2]}"
        self._events = urllib.request.urlopen(f"{self._url}/events", timeout=WAIT_SECONDS)

    def until(self, kind: str) -> tuple[dict[str, Any], list[str]]:
        """Read to the next event of a type; return its data and the agent's texts before it."""
        said: list[str] = []
        for line in self._events:
            event: dict[str, Any] = json.loads(line[6:]) if line.startswith(b"data: ") else {"type": ""}
            if event["type"] == kind:
                return event["data"], said
            if event["type"] == "text":
                said.append(event["data"]["text"])
        raise AssertionError(f"the stream ended without {kind}: {said}")

    def post(self, path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self._url}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS):
            pass

    def decide(self, decision: str) -> tuple[str, list[str]]:
        """Decide the next approval request; return the tool's name and the agent's texts before it."""
        asked, said = self.until("approval_request")
        body = {"decision": decision, "input_sha256": asked["input_sha256"]}
        self.post(f"approvals/{asked['approval_id']}", body)
        return asked["tool_name"], said

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=WAIT_SECONDS)

    def left(self) -> list[Path]:
        """Return the demo's files and folders that still exist."""
        return [path for path in (*self.state.rglob("*"), *self.temporary.glob("sandspan*")) if path.exists()]

    def close(self) -> None:
        self._events.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()


def test_the_demo_heeds_what_is_allowed_and_leaves_no_dollars_behind(demo: Demo) -> None:
    assert demo.decide("allow")[0] == "Bash"
    tool, said = demo.decide("allow")
    assert (tool, said[0].partition(".")[0]) == ("Edit", "The sum leaves the quantity out")
    asked, said = demo.until("question_request")
    assert said == ["One question before I finish."]
    demo.post(f"questions/{asked['question_id']}", {"answers": {asked["questions"][0]["question"]: "Yes"}})
    assert demo.decide("allow") == ("Write", ["I note it."])
    result, _ = demo.until("result")
    assert result["result"] == "Noted. That is all. What next?"
    assert demo.left() != []
    demo.stop()
    assert demo.left() == []


def test_the_demo_heeds_what_is_refused(demo: Demo) -> None:
    assert demo.decide("deny")[0] == "Bash"
    tool, said = demo.decide("deny")
    assert (tool, said[0].partition(".")[0]) == ("Edit", "Then I do not run them")
    result, _ = demo.until("result")
    assert result["result"].startswith("The demo's script has nothing more to say")
    demo.stop()
    assert demo.left() == []
