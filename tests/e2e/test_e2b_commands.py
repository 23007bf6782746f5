"""The commands on E2B: real processes and the real SDK with a stand-in of E2B, which runs the real runner and CLI."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from e2b import Sandbox

from agent_runner.contract.protocol import decode_event
from host_client.sandbox.e2b._connection import api_params
from tests.e2e.test_commands import LIMIT, ROOT, piped, terminal
from tests.host.test_session import LONG_TOOL, ONE_TOOL
from tests.support.commands import invoked
from tests.support.hosts import E2BLab, e2b_lab
from tests.support.runs import clean_environment


def host_client(lab: E2BLab, home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``host_client`` with the stand-in of E2B to its end."""
    done = piped(home, *args, model=lab.model, **{**lab.e2b.environ, **environ})
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def started(lab: E2BLab, home: Path, *args: str) -> Generator[subprocess.Popen[bytes]]:
    """Start a command, wait until its agent's tool runs, and kill the command after the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "host_client", *args, "--json", "--allowed-tools", "Bash"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean_environment(home, lab.model.url, **lab.e2b.environ),
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(decode_event(line).type == "tool_use" for line in process.stdout), "no tool ran"
            yield process
        finally:
            process.kill()


def until(holds: Callable[[], bool]) -> None:
    """Poll until a condition holds that another process brings about; fail after a limit."""
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_auto_takes_e2b_when_its_key_is_set_and_says_so(tmp_path: Path) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        done = host_client(lab, tmp_path, "run", "go", "--approvals", "auto", "--download", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "E2B sandbox, template sandspan (E2B_API_KEY is set; --sandbox local runs it here)" in done.stdout
    assert "without isolation" not in done.stdout
    assert "sandbox.create" in done.stdout
    assert (tmp_path / "out" / "made").exists()


def test_local_is_taken_without_a_key_or_when_asked_for(tmp_path: Path) -> None:
    with e2b_lab(ONE_TOOL + ONE_TOOL.split("replies:")[1]) as lab:
        asked = host_client(lab, tmp_path, "run", "go", "--approvals", "auto", "--sandbox", "local")
        auto = host_client(lab, tmp_path, "run", "go", "--approvals", "auto", E2B_API_KEY="")
        assert lab.e2b.sandboxes == []
    for done in (asked, auto):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "without isolation" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--sandbox", "e2b"), "no key for E2B: set E2B_API_KEY"),
        (("--sandbox", "elsewhere"), "--sandbox takes one of auto, e2b, local"),
        (("--keep", "pause"), "--keep pause is for a sandbox in E2B"),
        (("--keys", "env"), "--keys is for a sandbox in E2B"),
        (("--secret-name", "mine"), "--secret-name is for a sandbox in E2B"),
        (("--keys", "gateway"), "--keys is for a sandbox in E2B"),
        (("--allow-out", "example.com"), "--allow-out is for a sandbox in E2B"),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_starts(
    tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    done = invoked(tmp_path, "run", "go", *args)
    assert done.returncode == 2
    assert says in done.stderr.decode()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--keep", "somewhere"), "--keep takes `pause` for a sandbox in E2B"),
        (("--keys", "nowhere"), "--keys takes one of gateway, e2b-secrets, env"),
        (("--secret-name", "mine"), "--secret-name requires --keys e2b-secrets"),
        (("--keys", "env", "--secret-name", "mine"), "--secret-name requires --keys e2b-secrets"),
        (("--keys", "e2b-secrets", "--secret-name", ""), "--secret-name takes the name of a secret"),
        (
            ("--allow-out", "http://x/y"),
            "--allow-out http://x/y: takes a host (example.com, *.example.com), an address",
        ),
        (("--allow-out", "example.com", "--allow-out", "10.0.0.0/99"), "--allow-out 10.0.0.0/99: takes a host"),
        (("--allow-out", "1.2.3"), "--allow-out 1.2.3: takes a host"),
        (("--timeout", "0"), "--timeout takes 10 to 86400 seconds"),
        (("--timeout", "3"), "--timeout takes 10 to 86400 seconds"),
        (("--metadata", "x"), "--metadata 'x': takes name=value"),
    ],
)
def test_options_that_e2b_cannot_follow_are_told(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    done = invoked(tmp_path, "run", "go", *args, E2B_API_KEY="e2b_x", E2B_API_URL="http://127.0.0.1:1")
    assert done.returncode == 2
    assert says in done.stderr.decode()


def test_a_session_kept_by_a_pause_is_resumed_by_its_id_in_the_same_trace(tmp_path: Path) -> None:
    script = """
        model: scripted
        conversations:
          main:
            replies:
              - {text: First., usage: {input_tokens: 1000, output_tokens: 100}}
              - {text: Second., usage: {input_tokens: 30, output_tokens: 7}}
              - text: Third.
    """
    with e2b_lab(script) as lab:
        first = host_client(lab, tmp_path, "run", "one", "--keep", "pause", "--user-id", "ada")
        assert "Claude session" not in first.stdout
        assert first.returncode == 0, first.stdout + first.stderr
        session = re.findall(r"host_client resume (\S+)", first.stdout)[0]
        listed = host_client(lab, tmp_path, "sandboxes", "list", COLUMNS="40").stdout
        assert re.search(rf"\tpaused\t{session}\t\tada\t[^\t]+\t\tone\n$", listed), listed
        second = host_client(lab, tmp_path, "resume", session[:8], "two", "--trace-out", str(tmp_path / "trace.json"))
        assert second.returncode == 0, second.stdout + second.stderr
        assert "Second." in second.stdout
        assert "30 tokens in, 7 out" in second.stdout
        assert [made.state for made in lab.e2b.sandboxes] == ["paused"]
        third = host_client(lab, tmp_path, "resume", session, "three", "--end")
        assert third.returncode == 0, third.stdout + third.stderr
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]
        messages = json.dumps(lab.model.requests[-1].body["messages"])
        assert "First." in messages
        assert "Second." in messages
    traces = [re.findall(r"trace ([0-9a-f]{32})", done.stdout)[0] for done in (first, second, third)]
    assert len(set(traces)) == 1
    exported = (tmp_path / "trace.json").read_text()
    assert '"user.id"' in exported
    assert '"ada"' in exported


NOTED = {"sandspan": "1", "sandspan.timeout": "300"}


def noted(lab: E2BLab, session: str, prompt: str = "") -> str:
    """Create a sandbox with a session's metadata; return its id."""
    notes = {**NOTED, "session.id": session, "prompt": prompt}
    return Sandbox.create("sandspan", metadata=notes, **api_params(lab.e2b.environ)).sandbox_id


def test_ids_are_listed_whole_at_any_width_and_for_programs(tmp_path: Path) -> None:
    session = str(uuid.uuid4())
    with e2b_lab(ONE_TOOL) as lab:
        sandbox = noted(lab, session, "Make\tthe tests pass, all of them, and then the docs")
        for columns in ("80", "40", "200"):
            environ = {**lab.e2b.environ, "COLUMNS": columns}
            with terminal(tmp_path, "sandboxes", "list", model=lab.model, **environ) as shown:  # pyright: ignore[reportArgumentType] - all of them are variables
                assert shown.finish() == 0
            assert re.search(rf"^{sandbox}  running  {session}\b", shown.text, re.MULTILINE), shown.text
            widest = max(map(len, shown.text.split("\n")))
            assert widest <= max(int(columns), len(f"{sandbox}  running  {session}"))
            assert ("Make the tests pass" in shown.text) == (columns == "200")
        piped_out = host_client(lab, tmp_path, "sandboxes", "list", COLUMNS="40").stdout.split("\n")
        (listed,) = map(json.loads, host_client(lab, tmp_path, "sandboxes", "list", "--json").stdout.splitlines())
        Sandbox.kill(sandbox, **api_params(lab.e2b.environ))
        assert host_client(lab, tmp_path, "sandboxes", "list", "--json").stdout == ""
    assert piped_out[0].split("\t") == ["sandbox", "state", "session", "host", "user", "started", "ends", "prompt"]
    assert piped_out[1].split("\t")[:3] == [sandbox, "running", session]
    assert piped_out[1].endswith("\tMake the tests pass, all of them, and then the docs")
    assert (listed["sandbox_id"], listed["session_id"], listed["state"]) == (sandbox, session, "running")
    assert listed["ends_at"] > listed["started_at"]


def test_a_prefix_that_several_sessions_share_is_not_enough(tmp_path: Path) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        made = [noted(lab, f"0123abcd-{each}") for each in ("one", "two")]
        done = host_client(lab, tmp_path, "resume", "0123abcd", "go")
        for sandbox in made:
            Sandbox.kill(sandbox, **api_params(lab.e2b.environ))
    assert done.returncode == 2
    assert "host_client resume: the ids of 2 sessions begin with 0123abcd: give more characters" in done.stderr


@pytest.mark.parametrize("keys", ["gateway", "env"])
def test_without_a_key_for_the_model_no_sandbox_is_made(tmp_path: Path, keys: str) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        done = host_client(lab, tmp_path, "run", "go", "--keys", keys, ANTHROPIC_API_KEY="")
        assert lab.e2b.sandboxes == []
    assert done.returncode == 2
    assert "host_client run: no key for the model" in done.stderr


def test_a_session_is_resumed_with_its_key_where_it_was(tmp_path: Path) -> None:
    script = "conversations: {main: {replies: [{text: First.}, {text: Second.}]}}"
    with e2b_lab(script) as lab:
        first = host_client(lab, tmp_path, "run", "one", "--keep", "pause", "--keys", "env")
        session = re.findall(r"host_client resume (\S+)", first.stdout)[0]
        refused = host_client(lab, tmp_path, "resume", session, "two", "--keys", "e2b-secrets")
        second = host_client(lab, tmp_path, "resume", session, "two", "--end")
    assert refused.returncode == 2
    assert "this session began with --keys env, so E2B's proxy has no key to add" in refused.stderr
    assert second.returncode == 0, second.stdout + second.stderr
    for done in (first, second):
        assert "the model's key is in the agent's environment" in done.stdout


def test_a_session_to_be_kept_is_listed_with_a_host_that_is_gone(tmp_path: Path) -> None:
    with e2b_lab(LONG_TOOL) as lab, started(lab, tmp_path, "run", "go", "--keep", "pause") as killed:
        killed.kill()
        killed.wait(LIMIT)
        (listed,) = map(json.loads, host_client(lab, tmp_path, "sandboxes", "list", "--json").stdout.splitlines())
        swept = host_client(lab, tmp_path, "sandboxes", "sweep", "--all")
    assert (listed["host"], listed["keep"], swept.returncode) == ("gone", "pause", 0)


def test_an_unknown_session_is_told_with_where_to_look(tmp_path: Path) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        done = host_client(lab, tmp_path, "resume", "no-such-session", "go")
    assert done.returncode == 2
    assert "no sandbox has session no-such-session: `host_client sandboxes list` shows" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_host_leaves_no_sandbox(tmp_path: Path, number: int, code: int) -> None:
    with e2b_lab(LONG_TOOL) as lab, started(lab, tmp_path, "run", "go") as process:
        process.send_signal(number)
        assert process.wait(LIMIT) == code
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]


def test_ctrl_c_twice_leaves_no_sandbox(tmp_path: Path) -> None:
    with e2b_lab(LONG_TOOL) as lab, started(lab, tmp_path, "run", "go") as process:
        process.send_signal(signal.SIGINT)
        until(lambda: sum(request.path.endswith("/SendInput") for request in lab.e2b.requests) >= 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]


def test_sweep_removes_what_a_killed_host_left_and_nothing_else(tmp_path: Path) -> None:
    with e2b_lab(LONG_TOOL) as lab, started(lab, tmp_path, "run", "go") as killed:
        killed.kill()
        killed.wait(LIMIT)
        listed = host_client(lab, tmp_path, "sandboxes", "list", COLUMNS="40").stdout
        assert re.search(r"\trunning\t[^\t]{36}\tgone\t", listed)
        dry = host_client(lab, tmp_path, "sandboxes", "sweep", "--dry-run")
        left = lab.e2b.sandboxes[0]
        assert (dry.returncode, dry.stdout) == (0, f"{left.id} would be removed\n")
        assert left.state == "running"
        swept = host_client(lab, tmp_path, "sandboxes", "sweep")
        assert (swept.returncode, swept.stdout) == (0, f"{left.id} removed\n")
        assert left.state == "gone"
        again = host_client(lab, tmp_path, "sandboxes", "sweep")
        assert (again.returncode, again.stdout) == (0, "nothing to remove\n")


def test_a_wrong_key_is_told_with_what_to_do(tmp_path: Path) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        done = host_client(lab, tmp_path, "run", "go", E2B_API_KEY="e2b_wrong")
    assert done.returncode == 3
    assert "authentication: E2B refused the key: set E2B_API_KEY" in done.stderr
