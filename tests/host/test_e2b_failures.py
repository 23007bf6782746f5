"""When E2B fails, the user sees the error type, advice and an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from e2b import SandboxException, TimeoutException
from starlette.responses import HTMLResponse

from agent_runner.contract import protocol as p
from host_client import AgentOptions, open_session, run_agent
from host_client.cli._place import Place
from host_client.cli._run import Job, run_job
from host_client.client import _stream as stream
from host_client.errors import ConfigurationError, SandboxError, SandboxStartError, SessionClosedError, StreamLostError
from host_client.sandbox.e2b import E2BOptions, E2BSandbox, Layout
from host_client.sandbox.e2b import _lifecycle as lifecycle
from host_client.sandbox.e2b._failures import failure_of
from host_client.sandbox.e2b.inventory import find_session
from tests.host.test_e2b_sessions import REPLY
from tests.host.test_session import LONG_TOOL
from tests.support.e2b import Answer, Reset
from tests.support.hosts import E2BLab, e2b_lab

CREATE = "POST /v2/sandboxes"
START = "POST /process.Process/Start"
QUICK = {"Retry-After": "0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "PAUSES", (0.01, 0.01, 0.01))


class Told(NamedTuple):
    """The exit code, error type and error message of a run."""

    code: int
    error_type: str
    text: str


def run(lab: E2BLab, capfd: pytest.CaptureFixture[str], **options: Any) -> Told:
    """Run one prompt with the code of ``host_client run``."""
    upload, environ = options.pop("upload", None), options.pop("environ", lab.environ)
    allowed = AgentOptions(allowed_tools=("Bash",))
    sandbox = E2BSandbox(E2BOptions(**options), environ=environ)
    job = Job(prompt="go", options=allowed, place=Place(sandbox, ()), approvals="deny", environ=environ, upload=upload)
    code, result = run_job(job)
    printed = capfd.readouterr()
    if result is not None:
        return Told(code, result.error_type or "", result.error_message or "")
    head, _, text = printed.err.removeprefix("host_client: ").partition(": ")
    return Told(code, head, text)


@pytest.mark.parametrize(
    ("status", "error_type", "advice"),
    [
        (400, "invalid_request", "E2B refused the request"),
        (401, "authentication", "set E2B_API_KEY"),
        (403, "permission_denied", "the E2B key may not do this"),
        (404, "invalid_request", "no such template: build it with `host_client template build`"),
        (429, "rate_limit", "too many requests, or too many sandboxes at once"),
        (500, "sandbox", "E2B failed: try again later"),
        (502, "sandbox", "E2B failed"),
        (503, "overloaded", "E2B is busy"),
    ],
)
def test_a_refused_creation_is_told_with_what_to_do(
    status: int, error_type: str, advice: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with e2b_lab(REPLY) as lab:
        rule = lab.e2b.fail(CREATE, Answer(status, "said by E2B", QUICK), times=None)
        told = run(lab, capfd)
        assert lab.e2b.sandboxes == []
    assert (told.code, told.error_type) == (3, error_type)
    assert advice in told.text
    assert "said by E2B" in told.text
    assert rule.met == (4 if status in (429, 502, 503) else 1)


def test_a_busy_service_that_answers_in_the_end_costs_nothing_but_time(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(CREATE, Answer(503, headers=QUICK), times=3)
        told = run(lab, capfd)
        assert len(lab.e2b.sandboxes) == 1
    assert told == (0, "", "")


def test_a_team_without_transform_rules_is_told_to_take_the_gateway(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.forbid_transform_rules()
        by_name = lab.model.url.replace("127.0.0.1", "localhost")
        told = run(lab, capfd, keys="e2b-secrets", environ={**lab.environ, "ANTHROPIC_BASE_URL": by_name})
        assert lab.e2b.sandboxes == []
    assert (told.code, told.error_type) == (3, "permission_denied")
    assert "use --keys gateway, or ask E2B for network transform rules" in told.text
    assert "Network transform rules are not available for your team" in told.text


def test_a_template_too_old_for_transform_rules_is_told_to_be_built_again() -> None:
    said = "network transform rules are not supported; template must be rebuilt. Template envd version is 0.5.1"
    told = failure_of(SandboxException(f"400: {said}", status_code=400))
    assert (type(told), told.error_type) == (SandboxStartError, "invalid_request")
    assert str(told).startswith("the template is too old for --keys e2b-secrets: build it again with")


def test_a_template_that_is_not_there_is_named_with_how_to_build_it(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab:
        told = run(lab, capfd, template="elsewhere")
    assert (told.code, told.error_type) == (3, "invalid_request")
    assert "'elsewhere' not found" in told.text


def test_an_api_that_cannot_be_reached_is_the_networks_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab, lab.e2b.unreachable():
        told = run(lab, capfd)
    assert (told.code, told.error_type) == (3, "network")
    assert "E2B cannot be reached: check E2B_API_URL" in told.text


def test_a_template_without_the_runner_is_told_by_what_its_shell_said(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab:
        told = run(lab, capfd, layout=Layout(python="/no/such/python"))
    assert (told.code, told.error_type) == (3, "sandbox")
    assert "the sandbox has no runner; its template must be one of Sandspan's" in told.text
    assert "/no/such/python" in told.text


def test_a_template_without_the_agents_account_is_told_as_such(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with e2b_lab(REPLY) as lab:
        told = run(lab, capfd, layout=Layout(user="no-such-user"), upload=tmp_path)
    assert (told.code, told.error_type) == (3, "sandbox")
    assert "(is its template one of Sandspan's?): /usr/bin/id: " in told.text
    assert "no-such-user" in told.text


def test_a_runner_that_cannot_be_started_leaves_no_sandbox(capfd: pytest.CaptureFixture[str]) -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(START, Reset(), times=None)
        told = run(lab, capfd)
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]
    assert (told.code, told.error_type) == (3, "network")


def while_a_tool_runs(lab: E2BLab, does: Callable[[str], object]) -> tuple[int | None, str, str]:
    """Run until the tool starts, call ``does`` with the sandbox's id; return exit code, error type and message."""

    async def act(event: p.AnyEvent) -> None:
        if isinstance(event, p.ToolUse):
            # In a thread, as it may block on the stand-in, which in turn may wait for this loop.
            await asyncio.to_thread(does, lab.e2b.sandboxes[0].id)

    async def work() -> tuple[int | None, str, str]:
        options = AgentOptions(allowed_tools=("Bash",))
        result = await run_agent("go", options, sandbox=lab.sandbox(), environ=lab.environ, on_event=act)
        return result.exit_code, result.error_type or "", result.error_message or ""

    return asyncio.run(work())


def test_a_sandbox_that_ends_under_the_run_is_told_as_gone() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        code, error_type, message = while_a_tool_runs(lab, lab.e2b.lose)
    assert (code, error_type) == (None, "sandbox")
    assert message.startswith("the sandbox no longer exists: its time was up (--timeout), or it was removed")


def test_a_killed_runner_is_told_by_its_signal() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        code, error_type, message = while_a_tool_runs(lab, lambda made: lab.e2b.sandbox(made).processes[0].signal(9))
    assert (code, error_type) == (-9, "sandbox")
    assert message.startswith("the runner was killed by signal 9 without an end event")


def test_a_sandbox_that_cannot_be_reached_for_too_long_is_the_networks_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_ATTACHES", 3)

    def cut_off(made: str) -> None:
        lab.e2b.close_port(made)
        lab.e2b.cut_streams()

    with e2b_lab(LONG_TOOL) as lab:
        _, error_type, message = while_a_tool_runs(lab, cut_off)
    assert error_type == "network"
    assert "attempts in a row to read the runner's events brought none" in message


def test_a_sandbox_that_can_be_reached_again_goes_on_as_if_nothing_was() -> None:
    def cut_off(made: str) -> None:
        lab.e2b.close_port(made)
        lab.e2b.cut_streams()
        lab.e2b.open_port(made)

    with e2b_lab(LONG_TOOL.replace("time.sleep(60)", "time.sleep(0.1)")) as lab:
        assert while_a_tool_runs(lab, cut_off) == (0, "", "")


@pytest.mark.anyio
async def test_a_command_to_a_dead_runner_is_refused_not_lost() -> None:
    with e2b_lab(REPLY) as lab:
        async with open_session(None, sandbox=lab.sandbox(), environ=lab.environ) as session:
            runner = lab.e2b.sandboxes[0].processes[0]
            runner.signal(9)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_ended(runner), runner.finished.get_loop()))
            with pytest.raises(SessionClosedError):
                await session.send("go")


async def _ended(runner: Any) -> None:
    await runner.finished


@pytest.mark.anyio
async def test_a_sandbox_that_is_not_there_cannot_be_resumed() -> None:
    with e2b_lab(REPLY) as lab, pytest.raises(SandboxError) as caught:
        await run_agent("go", sandbox=lab.sandbox(resume="no-such-sandbox"), environ=lab.environ)
    assert caught.value.error_type == "sandbox"
    assert "the sandbox no longer exists" in str(caught.value)


def test_what_is_no_e2b_is_told_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    async def page(app: Any, scope: Any, receive: Any, send: Any) -> None:
        await HTMLResponse("<html>Please log in</html>")(scope, receive, send)

    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(CREATE, page, times=None)
        told = run(lab, capfd)
    assert (told.code, told.error_type) == (3, "network")
    assert "the server that answered is not E2B: check E2B_API_URL" in told.text


@pytest.mark.anyio
@pytest.mark.parametrize("session_id", ["", "no-such-session"])
async def test_a_session_nobody_has_is_not_somebody_elses(session_id: str) -> None:
    with e2b_lab(REPLY) as lab:
        sandbox = lab.sandbox()
        await sandbox.create({"sandspan": "1", "sandspan.run_id": "run-1", "session.id": "somebody-elses"})
        with pytest.raises(ConfigurationError, match="no sandbox has session"):
            await find_session(lab.environ, session_id)
        assert (await find_session(lab.environ, "somebody-elses")).session_id == "somebody-elses"
        await sandbox.close()


@pytest.mark.anyio
async def test_closing_twice_and_after_somebody_else_is_no_error() -> None:
    with e2b_lab(REPLY) as lab:
        sandbox = lab.sandbox()
        await sandbox.create({"sandspan.run_id": "run-1"})
        await asyncio.to_thread(lab.e2b.lose, lab.e2b.sandboxes[0].id)
        await sandbox.close()
        await sandbox.close()


def test_a_slow_answer_is_a_timeout() -> None:
    told = failure_of(TimeoutException("Request timed out"))
    assert (type(told), told.error_type) == (StreamLostError, "timeout")
