"""The commands in a real terminal, with real signals and real output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from agent_runner.contract.protocol import decode_event
from host_client.sandbox.e2b import E2BOptions
from host_client.scripted_model import ScriptedModel, parse_script
from tests.host.test_session import LONG_TOOL, ONE_TOOL
from tests.support.account import need_root
from tests.support.commands import invoked
from tests.support.hosts import DEFAULT_CHAT
from tests.support.runs import clean_environment

LIMIT = 60.0
ROOT = Path(__file__).resolve().parents[2]
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self.text = ""

    def until(self, words: str) -> None:
        """Wait until words appear on the screen."""
        limit = time.monotonic() + LIMIT
        seen = len(self.text) if words not in self.text else 0
        while words not in self.text[seen:]:
            assert time.monotonic() < limit, f"no {words!r} in {self.text[-3000:]}"
            if not self._read():
                break
        assert words in self.text, self.text[-3000:]

    def type(self, line: str) -> None:
        os.write(self._screen, line.encode())

    def finish(self) -> int:
        limit = time.monotonic() + LIMIT
        while self._read():
            assert time.monotonic() < limit, self.text[-3000:]
        return self.process.wait(timeout=LIMIT)

    def close(self) -> None:
        """Close the terminal, as a user closes its window."""
        if self._screen >= 0:
            os.close(self._screen)
            self._screen = -1

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], LIMIT)
        assert ready, f"nothing came: {self.text[-3000:]}"
        try:
            chunk = os.read(self._screen, 65536)
        except OSError:  # Linux reports EIO once the other side of the terminal is closed
            return False
        self.text += SEQUENCE.sub("", chunk.decode("utf-8", "replace")).replace("\r\n", "\n")
        return bool(chunk)


@contextlib.contextmanager
def terminal(
    tmp_path: Path, *args: str, model: ScriptedModel | None = None, is_controlling: bool = False, **environ: str
) -> Generator[Terminal]:
    """Start ``host_client`` in a terminal; closing a terminal that ``is_controlling`` sends SIGHUP."""
    screen, tty = pty.openpty()
    about = {"TERM": "xterm-256color", "COLUMNS": "120", "USER": "ada", **environ}
    env = clean_environment(tmp_path, model.url if model else None, **about)
    process = subprocess.Popen(
        [sys.executable, "-m", "host_client", *args],
        stdin=tty,
        stdout=tty,
        stderr=tty,
        env=env,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if is_controlling else None,
    )
    os.close(tty)
    shown = Terminal(process, screen)
    try:
        yield shown
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=LIMIT)
        shown.close()


def piped(
    tmp_path: Path, *args: str, model: ScriptedModel | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """Run ``host_client`` to its end without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "host_client", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=clean_environment(tmp_path, model.url if model else None, **environ),
        cwd=ROOT,
        timeout=LIMIT,
        check=False,
    )


def test_the_demo_asks_at_a_terminal_and_mends_the_program(tmp_path: Path) -> None:
    with terminal(tmp_path, "demo") as demo:
        demo.until("Allow Edit?")
        demo.until("price * quantity")
        demo.until("reason >")
        demo.type("y\n")
        assert demo.finish() == 0
    for words in (
        "AssertionError",
        "allow by ada",
        "3 checks passed",
        "waiting for a person",
        "✓ done",
        "invoke_agent general-purpose",
    ):
        assert words in demo.text, words


def test_the_demo_takes_no_for_an_answer(tmp_path: Path) -> None:
    with terminal(tmp_path, "demo") as demo:
        demo.until("reason >")
        demo.type("n not on a Friday\n")
        assert demo.finish() == 0
    assert "serve --demo" in demo.text
    assert "not on a Friday" in demo.text
    assert "I was not allowed to change the file" in demo.text


@pytest.mark.parametrize("is_controlling", [True, False])
def test_a_terminal_that_is_closed_ends_the_run(tmp_path: Path, is_controlling: bool) -> None:
    with (
        ScriptedModel(parse_script(ONE_TOOL)) as model,
        terminal(tmp_path, "run", "go", model=model, is_controlling=is_controlling) as run,
    ):
        run.until("reason >")
        run.close()
        assert run.process.wait(timeout=LIMIT) != 0


def test_without_a_terminal_the_demo_says_that_it_approves_by_itself(tmp_path: Path) -> None:
    done = piped(tmp_path, "demo")
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "the demo approves all tool calls itself" in text
    assert "allow by policy:auto" in text
    assert "3 checks passed" in text


def test_json_puts_events_alone_on_stdout_and_the_trace_in_a_file(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = piped(
            tmp_path,
            *("run", "go", "--json", "--approvals", "auto", "--user-id", "ada", "--attribute", "org=acme"),
            *("--content", "none", "--tool-content", "full", "--trace-out", str(tmp_path / "trace.json")),
            model=model,
        )
    assert done.returncode == 0, done.stderr
    events = [decode_event(line) for line in done.stdout.splitlines()]
    assert [event.seq for event in events if event.seq] == list(range(1, 1 + sum(bool(e.seq) for e in events)))
    assert events[-1].type == "end"
    assert b"without isolation" in done.stderr
    request = json.loads((tmp_path / "trace.json").read_text())
    spans = [
        span for resource in request["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]
    ]
    assert {span["name"] for span in spans} == {
        "agent.session",
        "sandbox.create",
        "agent.execute",
        DEFAULT_CHAT,
        "execute_tool Bash",
        "agent.approval",
        "sandbox.cleanup",
    }
    for span in spans:
        attributes = {pair["key"]: pair["value"].get("stringValue") for pair in span["attributes"]}
        assert (attributes["org"], attributes["user.id"]) == ("acme", "ada")
        assert "gen_ai.input.messages" not in attributes
        assert ("gen_ai.tool.call.arguments" in attributes) == (span["name"] == "execute_tool Bash")


def test_without_a_terminal_nobody_can_be_asked_so_it_is_denied(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = piped(tmp_path, "run", "go", model=model)
    assert done.returncode == 0, done.stderr
    assert "stdin is not a terminal" in done.stdout.decode()
    assert "deny by policy:deny" in done.stdout.decode()
    advice = "every tool call was denied (Bash): --approvals auto allows every call, --allowed-tools allows some tools"
    assert advice in done.stdout.decode()


def test_a_person_who_denied_every_call_is_given_no_advice_about_it(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model, terminal(tmp_path, "run", "go", model=model) as run:
        run.until("reason >")
        run.type("n\n")
        assert run.finish() == 0
    assert "deny by ada" in run.text
    assert "every tool call was denied" not in run.text


def test_a_traceparent_that_cannot_be_followed_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = piped(tmp_path, "run", "go", "--approvals", "auto", model=model, TRACEPARENT="00-garbage")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("traceparent is malformed: '00-garbage'; it is ignored") == 1


def test_the_trace_goes_on_from_the_environment(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        parent = f"00-{'c' * 32}-{'d' * 16}-01"
        done = piped(tmp_path, "run", "go", "--approvals", "auto", model=model, TRACEPARENT=parent)
    assert f"trace {'c' * 32}" in done.stdout.decode()


def test_with_telemetry_off_no_opentelemetry_sdk_is_imported(tmp_path: Path) -> None:
    """Check both host and runner; the run's output is the same."""
    program = """
import asyncio, sys
from host_client import run_agent
result = asyncio.run(run_agent("go", approvals="auto"))
print(result.text, [name for name in sys.modules if name.startswith("opentelemetry")])
"""
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=clean_environment(tmp_path, model.url, OTEL_ENABLED="false"),
            capture_output=True,
            cwd=ROOT,
            timeout=LIMIT,
            check=True,
        )
    assert done.stdout.decode().strip() == "Done. []"


def test_cwd_is_worked_in_in_place(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = piped(tmp_path, "run", "go", "--approvals", "auto", "--cwd", str(tmp_path / "project"), model=model)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "project" / "made").exists()


def test_ctrl_c_once_interrupts_the_turn(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(LONG_TOOL)) as model, terminal(tmp_path, "run", "go", model=model) as run:
        run.until("reason >")
        run.type("y\n")
        run.until("allow by ada")
        run.process.send_signal(signal.SIGINT)
        run.until("interrupting;")
        assert run.finish() == 130
    assert "✗ cancelled: interrupted  trace" in run.text
    assert "execute_tool Bash" in run.text


def test_ctrl_c_twice_stops(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(LONG_TOOL)) as model, terminal(tmp_path, "run", "go", model=model) as run:
        run.until("reason >")
        run.process.send_signal(signal.SIGINT)
        run.until("interrupting")
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_cleans_up_and_is_told_by_the_exit_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "tmp").mkdir()
    with (
        ScriptedModel(parse_script(LONG_TOOL)) as model,
        terminal(tmp_path, "run", "go", model=model, TMPDIR=str(tmp_path / "tmp")) as run,
    ):
        run.until("reason >")
        run.process.send_signal(number)
        run.until("stopping")
        assert run.finish() == code
    assert "agent.session" in run.text
    assert list((tmp_path / "tmp").glob("sandspan-*")) == []


def test_more_signals_hurry_and_the_directory_is_still_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with (
        ScriptedModel(parse_script(LONG_TOOL)) as model,
        terminal(tmp_path, "run", "go", model=model, TMPDIR=str(tmp_path / "tmp")) as run,
    ):
        run.until("reason >")
        for _ in range(3):
            run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 143
    assert list((tmp_path / "tmp").glob("sandspan-*")) == []


def test_ctrl_c_while_it_starts_ends_the_turn(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(LONG_TOOL)) as model, terminal(tmp_path, "run", "go", model=model) as run:
        run.until("sandbox local-")
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 130
    assert "Allow Bash?" not in run.text


def test_an_editor_that_fails_is_told_and_the_question_comes_again(tmp_path: Path) -> None:
    with (
        ScriptedModel(parse_script(ONE_TOOL)) as model,
        terminal(tmp_path, "run", "go", model=model, EDITOR="false") as run,
    ):
        run.until("reason >")
        run.type("e\n")
        run.until("the editor failed")
        run.until("reason >")
        run.type("y\n")
        assert run.finish() == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("run", "go", "--approvals", "maybe"), "--approvals takes one of ask, auto, deny"),
        (("run", "go", "--attribute", "novalue"), "takes name=value"),
        (("run", "go", "--tool-content", "all"), "host_client run: --tool-content takes one of none, preview, full"),
        (("serve", "--content", "all"), "host_client serve: --content takes one of none, preview, full"),
        (("run", "go", "--permission-mode", "yolo"), "host_client run: --permission-mode takes one of"),
        (("run", "go", "--max-budget-usd", "0"), "host_client run: --max-budget-usd takes a number above 0"),
        (("run", "go", "--max-retries", "-1"), "host_client run: --max-retries takes a whole number of 0 or more"),
        (("run", "go", "--cwd", "/nowhere"), "is not a directory"),
        (("run", "go", "--resume", "x"), "needs --keep"),
        (
            ("run", "go", "--trace-out", "/nowhere/t.json"),
            "host_client run: --trace-out /nowhere/t.json: there is no dir",
        ),
        (("run", "go", "--trace-out", "/usr"), "--trace-out /usr: takes a file, and this is a directory"),
        (("demo", "--trace-out", "/usr"), "host_client demo: --trace-out /usr: takes a file, and this is a directory"),
        (("run", "go", "--upload", "/nowhere"), "--upload /nowhere: there is no such file or folder"),
        (("run", "go", "--download", "/etc/hosts"), "--download /etc/hosts: takes a folder, and this is a file"),
        (("run", "go", "--upload", ".", "--cwd", "."), "--upload and --cwd exclude each other"),
        (("run", "go", "--attribute", "org=a,b"), "--attribute 'org=a,b': takes name=value, without a comma"),
        (("run", ""), "host_client run: the prompt is empty"),
        (("run", " "), "host_client run: the prompt is empty"),
        (("resume", "0123456789", ""), "host_client resume: the prompt is empty"),
        (("resume", "0123456789", "go", "--approvals", "maybe"), "--approvals takes one of ask, auto, deny"),
        (("resume", "", "go"), "host_client resume: session '': give its id, or at least the first 8 characters"),
        (("resume", "0123456", "go"), "session '0123456': give its id, or at least the first 8 characters"),
        (("demo", "--prompt", "x"), "host_client demo: --prompt needs --script"),
        (("demo", "--script", "/nowhere.yaml", "--prompt", "x"), "cannot read the script /nowhere.yaml"),
    ],
)
def test_a_bad_option_is_one_clear_message_and_exit_2(tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    done = invoked(tmp_path, *args)
    assert done.returncode == 2
    message = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", done.stderr.decode()))
    assert told in message


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("run", "go", "--approvals", "maybe"), "--approvals takes one of ask, auto, deny"),
        (("run", "go", "--cwd", "/nowhere"), "/nowhere is not a directory"),
        (("run", "go", "--sandbox", "e2b", "--keys", "pocket"), "--keys takes one of gateway, e2b-secrets, env"),
        (("run", "go", "--sandbox", "e2b", "--allow-out", "a b"), "--allow-out a b: takes a host"),
        (("run", "go", "--sandbox", "e2b", "--timeout", "1"), "--timeout takes 10 to 86400 seconds"),
        (("resume", "0123456789", "go", "--permission-mode", "yolo"), "--permission-mode takes one of"),
    ],
)
def test_a_bad_option_is_told_before_a_missing_key(tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    done = invoked(tmp_path, *args, ANTHROPIC_API_KEY="")
    assert done.returncode == 2
    assert told in done.stderr.decode()
    assert b"no key" not in done.stderr


def test_without_a_key_for_the_model_nothing_is_started(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        gateway = piped(tmp_path, "run", "go", model=model, ANTHROPIC_API_KEY="")
        assert model.requests == []
    bare = piped(tmp_path, "run", "go", ANTHROPIC_API_KEY="")
    for done in (gateway, bare):
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"host_client run: no key for the model: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN" in done.stderr
    told = f"if {model.url} needs none, set ANTHROPIC_AUTH_TOKEN to any word"
    assert told in gateway.stderr.decode()
    assert b"ANTHROPIC_AUTH_TOKEN" not in bare.stderr


def test_any_word_is_key_enough_for_a_gateway_that_needs_none(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        environ = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "any"}
        done = piped(tmp_path, "run", "go", "--approvals", "auto", model=model, **environ)
    assert done.returncode == 0, done.stdout


REFUSING = """
    conversations:
      main:
        replies:
          - {fail: [{status: 401, message: that is no key, times: 9}], text: Never said.}
"""


def test_a_key_that_the_model_refuses_is_told_once_and_ends_with_1(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(REFUSING)) as model:
        done = piped(tmp_path, "run", "go", model=model, CLAUDE_CODE_MAX_RETRIES="0")
    text = done.stdout.decode()
    assert done.returncode == 1
    assert text.count("that is no key") == 1
    assert "✗ failed: authentication  trace" in text
    told = " ".join(text.split())
    assert "the model's API refused the key (HTTP 401: that is no key). It is from ANTHROPIC_API_KEY: check" in told
    assert f"a key for {model.url} (ANTHROPIC_BASE_URL)" in told
    assert "set ANTHROPIC_API_KEY" not in told


BUSY = """
    conversations:
      main:
        replies:
          - {fail: [{status: 529, times: 99}], text: Never said.}
"""


@pytest.mark.parametrize("times", [0, 1])
def test_a_busy_model_is_asked_again_as_often_as_the_option_says(tmp_path: Path, times: int) -> None:
    with ScriptedModel(parse_script(BUSY)) as model:
        done = piped(tmp_path, "run", "go", "--max-retries", str(times), model=model)
        assert len(model.requests) == times + 1
    assert done.returncode == 1
    assert "overloaded" in done.stdout.decode()


@pytest.mark.parametrize("options", [(), ("--verbatim-prompts",)], ids=["without", "with"])
def test_a_prompt_reads_no_file_with_the_option_for_that(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "secret").write_text("the content of the file")
    with ScriptedModel(parse_script("conversations: {main: {replies: [{text: Done.}]}}")) as model:
        done = piped(tmp_path, "run", f"summarize @{tmp_path}/secret", *options, model=model)
        (request,) = model.requests
    assert done.returncode == 0
    assert ("the content of the file" in str(request.body["messages"])) is not bool(options)


def test_root_is_told_how_permissions_can_be_bypassed_and_that_works(tmp_path: Path) -> None:
    need_root()
    run = ("run", "go", "--permission-mode", "bypassPermissions")
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        refused = piped(tmp_path, *run, model=model)
        assert model.requests == []
        done = piped(tmp_path, *run, model=model, IS_SANDBOX="1")
    text = " ".join(refused.stdout.decode().split())
    assert refused.returncode == 2
    assert "permission mode bypassPermissions: Claude Code does not take it from root. Set IS_SANDBOX=1 if" in text
    assert "may succeed" not in text
    assert done.returncode == 0, done.stdout
    assert "allow by" not in done.stdout.decode()


def test_a_killed_runner_ends_with_137(tmp_path: Path) -> None:
    script = """
        conversations:
          main: {replies: [{tools: [{name: Bash, input: {command: "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"}}]}]}
    """
    with ScriptedModel(parse_script(script)) as model:
        done = piped(tmp_path, "run", "go", "--approvals", "auto", model=model)
    assert done.returncode == 137, done.stdout
    assert "the runner was killed by signal 9" in done.stdout.decode()


def test_with_json_the_end_line_says_why(tmp_path: Path) -> None:
    with ScriptedModel(parse_script(REFUSING)) as model:
        done = piped(tmp_path, "run", "go", "--json", model=model, CLAUDE_CODE_MAX_RETRIES="0")
    (line,) = [line for line in done.stderr.decode().split("\n") if line.startswith("✗")]
    assert line.startswith("✗ authentication: ")
    assert "that is no key" in line


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (("--max-turns", "1"), "✗ max_turns: the limit of 1 is reached (--max-turns)  trace"),
        (
            ("--max-budget-usd", "0.0001"),
            "✗ budget_exceeded: the budget of $0.0001 is spent (--max-budget-usd)  trace",
        ),
    ],
)
def test_a_limit_that_ends_a_run_is_named_by_its_option(tmp_path: Path, limit: tuple[str, ...], says: str) -> None:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        done = piped(tmp_path, "run", "go", "--approvals", "auto", *limit, model=model)
    assert done.returncode == 1
    assert says in done.stdout.decode()


def test_a_kept_directory_ends_with_the_command_that_goes_on_and_counts_each_run_by_itself(tmp_path: Path) -> None:
    script = """
        conversations:
          main:
            replies:
              - {text: First., usage: {input_tokens: 1000, output_tokens: 100}}
              - {text: Second., usage: {input_tokens: 30, output_tokens: 7}}
    """
    with ScriptedModel(parse_script(script)) as model:
        first = piped(tmp_path, "run", "one", "--keep", str(tmp_path / "kept"), model=model)
        (line,) = re.findall(r"continue with: host_client (.*)", first.stdout.decode())
        second = piped(tmp_path, *shlex.split(line), model=model)
        third = piped(tmp_path, "run", "one", model=model)
    for done in (first, second):
        assert done.returncode == 0, done.stdout
    assert "1000 tokens in, 100 out" in first.stdout.decode()
    assert "Second." in second.stdout.decode()
    assert "30 tokens in, 7 out" in second.stdout.decode()
    assert "continue with" not in third.stdout.decode()


def test_at_80_columns_each_request_shows_when_its_first_token_came(tmp_path: Path) -> None:
    script = """
        model: claude-sonnet-4-5-20250929
        conversations:
          main: {replies: [{text: Done., usage: {input_tokens: 123456, output_tokens: 1234}}]}
    """
    args = ("run", "go", "--approvals", "auto", "--model", "claude-sonnet-4-5-20250929")
    with (
        ScriptedModel(parse_script(script)) as model,
        terminal(tmp_path, *args, model=model, COLUMNS="80") as run,
    ):
        assert run.finish() == 0
    lines = [line for line in run.text.split("\n") if "chat claude-sonnet" in line]
    assert len(lines) == 1
    assert re.search(r"123456→1234 tokens, first after [0-9.]+ m?s\s*$", lines[0]), lines


def scripted(tmp_path: Path, script: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a model that replays a script."""
    (tmp_path / "my.yaml").write_text(script)
    return subprocess.run(
        [sys.executable, "-m", "host_client.scripted_model", str(tmp_path / "my.yaml"), *command],
        env=clean_environment(
            tmp_path, ANTHROPIC_AUTH_TOKEN="sk-real", CLAUDE_CODE_MAX_RETRIES="0", PYTHONPATH=str(ROOT)
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=LIMIT,
        check=False,
    )


def test_a_run_against_a_script_is_one_command(tmp_path: Path) -> None:
    run = (sys.executable, "-m", "host_client", "run", "go", "--approvals", "auto")
    done = scripted(tmp_path, ONE_TOOL, *run)
    assert done.returncode == 0, done.stderr
    assert "✓ done" in done.stdout


@pytest.mark.parametrize(("script", "says"), [(ONE_TOOL, "Done.\n"), (REFUSING, "failed: authentication\n")])
def test_the_readmes_example_runs_against_a_script_and_tells_of_an_error(
    tmp_path: Path, script: str, says: str
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    done = scripted(tmp_path, script, sys.executable, "example.py")
    assert (done.returncode, done.stdout) == (0, says), done.stderr


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
        (("sh", "-c", 'test -z "$ANTHROPIC_AUTH_TOKEN" && test "$ANTHROPIC_API_KEY" = any'), 0, ""),
        (("no-such-command",), 127, "no-such-command: No such file or directory"),
        ((sys.executable, "-m", "host_client", "run", "go"), 1, "the script has no reply for a request"),
    ],
)
def test_a_command_against_a_script_ends_as_it_ends(
    tmp_path: Path, command: tuple[str, ...], code: int, says: str
) -> None:
    script = "{conversations: {main: {replies: [{tools: [{name: Bash, input: {command: ls}}]}]}}}"
    done = scripted(tmp_path, script, *command)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_a_script_that_is_none_is_told(tmp_path: Path) -> None:
    done = scripted(tmp_path, "{conversations: 3}", "true")
    assert done.returncode == 2
    assert "my.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_names_the_default_of_the_secret(tmp_path: Path) -> None:
    shown = " ".join(invoked(tmp_path, "run", "--help", COLUMNS="300").stdout.decode().split())
    assert f"Default: {E2BOptions().secret_name}." in shown


def test_a_scripts_missing_reply_fails_the_demo(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("{conversations: {main: {replies: [{tools: [{name: Bash, input: {command: ls}}]}]}}}")
    done = piped(tmp_path, "demo", "--script", str(script), "--prompt", "go")
    assert done.returncode == 1
    assert "the script has no reply for a request" in done.stderr.decode()
