"""The host runs sessions with the real runner, SDK and CLI in a local sandbox."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agent_runner.contract import protocol as p
from host_client import AgentOptions, AgentResult, LocalSandbox, Session, open_session, run_agent
from host_client.client._reader import EventReader, Fault, Gap
from host_client.errors import ConfigurationError, NotAskedError, NotWaitingError, SandboxStartError, StreamLostError
from host_client.sandbox.local import LocalProcess
from host_client.telemetry import TelemetryConfig, initialize_telemetry
from tests.support.hosts import DEFAULT_CHAT, host_lab, numbered, views
from tests.support.runs import Fifo, is_gone, tree

pytestmark = pytest.mark.anyio

ONE_TOOL = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: Done.
"""

LONG_TOOL = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(60)'"}}]
          - text: After the interrupt.
"""

WHOLE_TRACE = [
    [
        "agent.session",
        ["sandbox.create"],
        ["agent.execute", [DEFAULT_CHAT], ["execute_tool Bash", ["agent.approval"]], [DEFAULT_CHAT]],
        ["sandbox.cleanup"],
    ]
]


async def test_one_prompt_is_one_trace_from_the_session_to_the_tool() -> None:
    with host_lab(ONE_TOOL) as lab:
        options = AgentOptions(user_id="ada", tenant_id="acme", attributes={"org": "acme"})
        result = await run_agent("go", options, approvals="auto", environ=lab.environ)
    spans = views(result.spans)
    assert tree(spans) == WHOLE_TRACE
    assert {span.trace_id for span in spans} == {result.trace_id}
    for span in spans:
        own = {key: span.attributes.get(key) for key in ("user.id", "tenant.id", "org")}
        assert own == {"user.id": "ada", "tenant.id": "acme", "org": "acme"}, span.name
    assert len({span.attributes["session.id"] for span in spans}) == 1
    assert (result.text, result.is_error, result.exit_code) == ("Done.", False, 0)
    assert result.raise_for_error() is result
    assert result.cost_usd > 0


async def test_the_callers_trace_goes_on() -> None:
    caller = f"00-{'c' * 32}-{'d' * 16}-00"
    with host_lab(ONE_TOOL) as lab:
        result = await run_agent("go", approvals="auto", environ=lab.environ, traceparent=caller)
    assert result.trace_id == "c" * 32
    root = next(span for span in views(result.spans) if span.name == "agent.session")
    assert root.parent_span_id == "d" * 16


async def test_a_person_decides_each_call_and_is_named() -> None:
    script = """
        model: scripted
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch first}}]
              - tools: [{name: Bash, input: {command: touch second}}]
              - expect: not this one
                tools:
                  - name: AskUserQuestion
                    input:
                      questions:
                        - question: Which?
                          header: W
                          multiSelect: false
                          options: [{label: A, description: a}, {label: B, description: b}]
              - expect: '"Which?"="B"'
                text: Done.
              - text: Second turn.
    """
    seen: list[p.AnyEvent] = []
    with host_lab(script) as lab:
        async with open_session("go", AgentOptions(user_id="ada"), environ=lab.environ) as session:
            async for event in session:
                seen.append(event)
                await _decide(session, event)
                if isinstance(event, p.Result):
                    await (session.send("more") if event.data.turn == 1 else session.finish())
            trace = views(session.trace.kept)
    resolved = [(e.data.decision, e.data.decided_by) for e in seen if isinstance(e, p.ApprovalResolved)]
    assert resolved == [("allow", "ada"), ("deny", "grace")]
    assert [e.data.result for e in seen if isinstance(e, p.Result)] == ["Done.", "Second turn."]
    assert session.cost_usd == pytest.approx(sum(e.data.cost_usd for e in seen if isinstance(e, p.Result)))
    assert sum(span.name == "agent.execute" for span in trace) == 2


async def _decide(session: Session, event: p.AnyEvent) -> None:
    match event:
        case p.ApprovalRequest() if event.data.input["command"] == "touch first":
            await session.approve(event.data.approval_id)
            with pytest.raises(NotWaitingError):
                await session.deny(event.data.approval_id)
        case p.ApprovalRequest():
            await session.deny(event.data.approval_id, "not this one", decided_by="grace")
        case p.QuestionRequest():
            with pytest.raises(NotAskedError, match="there is no question 'Which'"):
                await session.answer(event.data.question_id, {"Which": "A"})
            await session.answer(event.data.question_id, {"Which?": "B"})
            with pytest.raises(NotWaitingError):
                await session.answer(event.data.question_id, {"Which?": "A"})
        case _:
            pass


async def test_a_function_can_decide_and_edit() -> None:
    async def approver(request: p.ApprovalRequest) -> p.Approval:
        edited = {**request.data.input, "command": "echo edited > made"}
        return p.Approval(
            approval_id=request.data.approval_id, decision="allow", updated_input=edited, decided_by="bot"
        )

    seen: list[p.AnyEvent] = []
    with host_lab(ONE_TOOL) as lab:
        await run_agent("go", approvals=approver, environ=lab.environ, on_event=seen.append)
    assert [(e.data.decision, e.data.decided_by) for e in seen if isinstance(e, p.ApprovalResolved)] == [
        ("allow_edited", "bot")
    ]


async def test_an_approver_that_raises_denies() -> None:
    async def approver(_request: p.ApprovalRequest) -> bool:
        raise RuntimeError("no idea")

    seen: list[p.AnyEvent] = []
    with host_lab(ONE_TOOL) as lab:
        result = await run_agent("go", approvals=approver, environ=lab.environ, on_event=seen.append)
    assert [e.data.decision for e in seen if isinstance(e, p.ApprovalResolved)] == ["deny"]
    assert any(isinstance(e, p.Error) and "no idea" in e.data.message for e in seen)
    assert result.exit_code == 0


async def test_an_approvers_decision_on_another_input_allows_nothing() -> None:
    async def approver(request: p.ApprovalRequest) -> p.Approval:
        return p.Approval(approval_id=request.data.approval_id, decision="allow", input_sha256="0" * 64)

    seen: list[p.AnyEvent] = []
    options = AgentOptions(approval_timeout=1.0)
    with host_lab(ONE_TOOL) as lab:
        await run_agent("go", options, approvals=approver, environ=lab.environ, on_event=seen.append)
    assert [e.data.decision for e in seen if isinstance(e, p.ApprovalResolved)] == ["timeout"]
    (told,) = [e.data for e in seen if isinstance(e, p.Error)]
    assert told.error_type == "protocol"
    assert "input_sha256 is not the digest of the requested input" in told.message


async def test_an_interrupt_ends_the_turn_and_the_conversation_goes_on() -> None:
    results: list[p.Result] = []
    with host_lab(LONG_TOOL) as lab:
        async with open_session("go", approvals="auto", environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.ApprovalResolved):
                    await session.interrupt()
                if isinstance(event, p.Result):
                    results.append(event)
                    await (session.send("more") if len(results) == 1 else session.finish())
    assert [r.data.error_type for r in results] == ["cancelled", None]


async def test_leaving_in_the_middle_of_a_tool_leaves_nothing_behind() -> None:
    with host_lab(LONG_TOOL) as lab:
        sandbox = LocalSandbox()
        async with open_session("go", sandbox=sandbox, approvals="auto", environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.ApprovalResolved):
                    break
            assert session.info is not None
            work = session.info.work
            assert _processes_in(work)
    assert not os.path.exists(work)  # noqa: ASYNC240 - nothing else runs in this loop
    assert _processes_in(work) == []
    assert tree(views(session.trace.kept)) == [
        [
            "agent.session !cancelled",
            ["sandbox.create"],
            [
                "agent.execute !cancelled",
                [DEFAULT_CHAT],
                ["execute_tool Bash !cancelled", ["agent.approval"]],
            ],
            ["sandbox.cleanup"],
        ]
    ]


STRAY = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "(setsid env -i sh -c 'echo $$ > up; exec sleep 600' &); sleep 600"}}]
"""


@pytest.mark.parametrize("how", ["closed", "adopted"])
async def test_what_left_its_session_and_its_environment_ends_with_a_local_runner(tmp_path: Path, how: str) -> None:
    up, sandbox, options = Fifo(tmp_path / "up"), LocalSandbox(work=tmp_path), AgentOptions(allowed_tools=("Bash",))
    with host_lab(STRAY) as lab:
        async with open_session("go", options, sandbox=sandbox, environ=lab.environ) as session:
            pid = int(await asyncio.to_thread(up.read))
            if how == "closed":
                await sandbox.close()
            else:
                assert session.whereabouts is not None
                await LocalSandbox().adopt(session.whereabouts.info, session.whereabouts.process_id)
            assert is_gone(pid)


def _processes_in(folder: str, mark: str = "") -> list[str]:
    """Return the pids of processes whose working directory is in a folder and whose environment contains a mark."""
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{pid}/environ").read_text(errors="replace")
            if os.readlink(f"/proc/{pid}/cwd").startswith(folder) and mark in environment:
                found.append(pid)
        except OSError:
            continue
    return found


async def test_an_exception_of_the_caller_cleans_up_and_fails_the_trace() -> None:
    session = None
    with host_lab(LONG_TOOL) as lab, pytest.raises(ZeroDivisionError):
        async with open_session("go", approvals="auto", environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.TurnStart):
                    raise ZeroDivisionError("the caller's own")
    assert session is not None
    root = next(s for s in views(session.trace.kept) if s.name == "agent.session")
    assert (root.status, root.attributes["error.type"]) == (2, "internal")


class Watched(LocalSandbox):
    """A sandbox whose runner a test can kill."""

    started: LocalProcess | None = None

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        process = await super().run(args, env)
        self.started = self.started or process
        return process


async def test_a_subagent_of_a_killed_runner_has_its_span() -> None:
    script = """
        model: scripted
        conversations:
          main:
            replies:
              - tools: [{name: Agent, input: {description: d, prompt: Work, run_in_background: false}}]
          helper:
            when: Work
            replies:
              - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(60)'"}}]
    """
    sandbox = Watched()

    def kill_at_work(event: p.AnyEvent) -> None:
        if isinstance(event, p.ToolUse) and event.data.parent_tool_use_id is not None:
            assert sandbox.started is not None
            os.kill(sandbox.started.pid, signal.SIGKILL)

    options = AgentOptions(allowed_tools=("Bash",))
    with host_lab(script) as lab:
        result = await run_agent("go", options, sandbox=sandbox, environ=lab.environ, on_event=kill_at_work)
    spans = {span.name: span for span in views(result.spans)}
    names = ("agent.execute", "execute_tool Agent", "invoke_agent general-purpose", "execute_tool Bash")
    below = [spans[name] for name in names]
    assert [span.parent_span_id for span in below[1:]] == [span.span_id for span in below[:-1]]
    assert {span.attributes["error.type"] for span in below} == {"sandbox"}
    assert all(span.attributes["sandspan.rebuilt"] is True for span in below)
    assert _processes_in("/", "SANDSPAN_SANDBOX=" + sandbox.name) == []


async def test_a_killed_runner_ends_the_stream_with_an_error_and_the_trace_is_whole() -> None:
    sandbox, seen = Watched(), list[p.AnyEvent]()

    def kill_at_work(event: p.AnyEvent) -> None:
        seen.append(event)
        if isinstance(event, p.ApprovalResolved):
            assert sandbox.started is not None
            os.kill(sandbox.started.pid, signal.SIGKILL)

    with host_lab(LONG_TOOL) as lab:
        result = await run_agent("go", sandbox=sandbox, approvals="auto", environ=lab.environ, on_event=kill_at_work)
    assert (result.is_error, result.error_type, result.exit_code) == (True, "sandbox", -9)
    assert "killed by signal 9" in (result.error_message or "")
    assert isinstance(seen[-1], p.Error)
    spans = views(result.spans)
    assert tree(spans) == [
        [
            "agent.session !sandbox",
            ["sandbox.create"],
            ["agent.execute !sandbox", ["execute_tool Bash !sandbox", ["agent.approval"]]],
            ["sandbox.cleanup"],
        ]
    ] or tree(spans)[0][2][1] == [DEFAULT_CHAT]
    tool = next(span for span in spans if span.name == "execute_tool Bash")
    announced = next(event for event in seen if isinstance(event, p.ToolUse))
    assert tool.start == pytest.approx(announced.ts * 1e9, abs=1e6)
    assert tool.attributes["sandspan.rebuilt"] is True
    assert _processes_in("/", "SANDSPAN_SANDBOX=" + sandbox.name) == []


async def test_work_in_the_background_that_never_ends_is_named_in_the_result() -> None:
    forever = "python3 -c 'import time; time.sleep(600)'"
    script = f"""
        model: scripted
        conversations:
          main:
            replies:
              - tools: [{{name: Bash, input: {{command: "{forever}", run_in_background: true}}}}]
              - text: It runs.
    """
    with host_lab(script) as lab:
        options = AgentOptions(background_timeout=0.5)
        result = await run_agent("go", options, approvals="auto", environ=lab.environ)
    assert (result.text, result.is_error, result.exit_code) == ("It runs.", False, 0)
    assert result.unfinished == (forever,)
    bash = next(span for span in views(result.spans) if span.name == "execute_tool Bash")
    assert (bash.attributes["error.type"], bash.attributes["tool.background"]) == ("timeout", True)


class CutSandbox(LocalSandbox):
    """A local sandbox whose first streams are cut after a random number of bytes."""

    def __init__(self, keep: Path, cuts: int, seed: int) -> None:
        super().__init__(keep=keep)
        self.left = cuts
        self.made = 0
        self._random = random.Random(seed)

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        process = await super().run(args, env)
        if self.left > 0:
            self.left -= 1
            whole = process.output
            limit = self._random.randint(0, 400)
            process.output = lambda: self._cut(whole(), limit)  # pyright: ignore[reportAttributeAccessIssue]
        return process

    async def _cut(self, stream: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
        """Yield the first line, without which no retry would ever progress, and ``limit`` bytes more."""
        first = True
        async for chunk in stream:
            if first and (newline := chunk.find(b"\n") + 1):
                first, limit = False, limit + newline
            yield chunk if first else chunk[:limit]
            if not first:
                limit -= len(chunk)
                if limit <= 0:
                    self.made += 1
                    raise StreamLostError("cut by the test")


@pytest.mark.parametrize("seed", [0])
async def test_no_event_is_lost_or_doubled_however_often_the_stream_is_cut(tmp_path: Path, seed: int) -> None:
    calls = "".join(f"\n          - tools: [{{name: Bash, input: {{command: 'echo {n}'}}}}]" for n in range(30))
    script = f"""
    model: scripted
    conversations:
      main:
        replies:{calls}
          - text: Done.
    """
    sandbox, seen = CutSandbox(tmp_path / "kept", 60, seed), list[p.AnyEvent]()
    with host_lab(script) as lab:
        result = await run_agent("go", sandbox=sandbox, approvals="auto", environ=lab.environ, on_event=seen.append)
    assert sandbox.made >= 25
    (journal,) = (tmp_path / "kept").glob("*.jsonl")
    written = [item for item in EventReader().feed(journal.read_bytes()) if not isinstance(item, Fault | Gap)]
    assert [e for e in seen if e.seq is not None] == written
    assert numbered(seen) == list(range(1, len(written) + 1))
    assert (result.is_error, result.text) == (False, "Done.")
    assert tree(views(result.spans)) == [
        [
            "agent.session",
            ["sandbox.create"],
            ["agent.execute", *[[DEFAULT_CHAT], ["execute_tool Bash"]] * 30, [DEFAULT_CHAT]],
            ["sandbox.cleanup"],
        ]
    ]


async def test_telemetry_off_leaves_the_events_and_no_spans() -> None:
    seen: list[p.AnyEvent] = []
    with host_lab(ONE_TOOL) as lab:
        environ = {**lab.environ, "OTEL_ENABLED": "false"}
        result = await run_agent("go", approvals="auto", environ=environ, on_event=seen.append)
    assert result.spans == ()
    assert not any(isinstance(event, p.TelemetryEvent) for event in seen)
    assert result.text == "Done."


async def test_an_exporter_that_raises_stops_nothing_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            raise OSError("backend down")

        def shutdown(self) -> None:
            """Do nothing."""

    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), custom_exporters=[Broken()]))
    with host_lab(ONE_TOOL) as lab:
        result = await run_agent("go", approvals="auto", environ=lab.environ, telemetry=telemetry)
    assert result.text == "Done."
    assert not await asyncio.to_thread(telemetry.shutdown)
    counts = telemetry.counts()["Broken"]
    assert (counts["exported"], counts["dropped: closed"]) == (0, len(result.spans))
    assert "backend down" in caplog.text


async def test_a_slow_caller_loses_nothing(tmp_path: Path) -> None:
    """The caller reads nothing until the run is over; the mailbox and the journal hold all events."""
    with host_lab(ONE_TOOL) as lab:
        async with open_session(
            "go", sandbox=LocalSandbox(keep=tmp_path / "kept"), approvals="auto", environ=lab.environ
        ) as session:
            await session.finish()
            async with asyncio.timeout(60):
                await session.ended.wait()
            events = [event async for event in session]
    assert numbered(events) == list(range(1, len(numbered(events)) + 1))
    assert isinstance(events[-1], p.End)


async def test_files_go_in_and_come_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "given").write_text("x")
    script = ONE_TOOL.replace("touch made", "cp given made")
    with host_lab(script) as lab:
        async with open_session("go", approvals="auto", environ=lab.environ, upload=tmp_path / "in") as session:
            await session.finish()
            events = [event async for event in session]
            await session.download(tmp_path / "out")
    assert isinstance(events[-1], p.End)
    assert (tmp_path / "out" / "made").read_text() == "x"


async def test_a_conversation_is_resumed_where_it_was_kept(tmp_path: Path) -> None:
    script = "{conversations: {main: {replies: [{text: One.}, {text: Two.}]}}}"
    with host_lab(script) as lab:
        first = await run_agent("go", sandbox=LocalSandbox(keep=tmp_path / "kept"), environ=lab.environ)
        options = AgentOptions(resume=first.session_id)
        second = await run_agent("on", options, sandbox=LocalSandbox(keep=tmp_path / "kept"), environ=lab.environ)
    assert (first.text, second.text, second.session_id) == ("One.", "Two.", first.session_id)
    assert second.cost_usd == pytest.approx(first.cost_usd)


async def test_bad_options_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="permission_mode"):
        AgentOptions(permission_mode="yolo")
    with pytest.raises(ConfigurationError, match="max_budget_usd"):
        AgentOptions(max_budget_usd=-1)
    with pytest.raises(ConfigurationError, match="not a directory"):
        LocalSandbox(work=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="traceparent is malformed: 'garbage'"):
        await run_agent("go", environ={}, traceparent="garbage")


async def test_a_run_that_fails_before_its_first_turn_has_the_span_of_that_turn() -> None:
    with host_lab(ONE_TOOL.replace("touch made", "true")) as lab:
        options = AgentOptions(user_id="ada", mcp_servers={"lab": "no.such:thing"})
        result = await run_agent("go", options, environ=lab.environ)
    spans = views(result.spans)
    turn = ["agent.execute !invalid_request"]
    assert tree(spans) == [["agent.session !invalid_request", ["sandbox.create"], turn, ["sandbox.cleanup"]]]
    assert {span.attributes["user.id"] for span in spans} == {"ada"}


async def test_a_sandbox_that_cannot_be_made_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SandboxStartError):
        await run_agent("go", sandbox=LocalSandbox(keep=tmp_path / "file" / "below"), environ={})


@pytest.mark.anyio
async def test_a_callback_gets_the_result_with_its_cost_and_duration() -> None:
    seen: list[AgentResult] = []

    async def keep(result: AgentResult) -> None:
        seen.append(result)

    with host_lab("conversations: {main: {replies: [{text: Done.}]}}") as lab:
        result = await run_agent("go", environ=lab.environ, on_result=seen.append)
        again = await run_agent("go", environ=lab.environ, on_result=keep)
    assert seen == [result, again]
    assert result.cost_usd > 0
    assert result.duration_ms > 0
