"""A model fails: the CLI retries or gives up, and the run reports why."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import pytest

from agent_runner.contract import protocol
from host_client.scripted_model import parse_script
from tests.support.runs import CHAT, OK, WAIT_SECONDS, Finished, Lab, SpanView, lab

MakeLab = Callable[[str], Lab]

ONE_RETRY = {"CLAUDE_CODE_MAX_RETRIES": "1"}


STATUSES = (
    (400, "invalid_request", False, 0),
    (401, "authentication", False, 1),
    (402, "billing", False, 0),
    (403, "authentication", False, 0),
    (404, "invalid_request", False, 0),
    (429, "rate_limit", True, 1),
    (500, "overloaded", True, 1),
    (529, "overloaded", True, 1),
)
"""Statuses of the API, each with its error type, whether it may pass, and how often the CLI asks again."""


def failing(status: int) -> str:
    return f"conversations: {{main: {{replies: [{{fail: [{{status: {status}, message: no luck, times: 99}}]}}]}}}}"


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_each_status_of_the_api_ends_its_turn_with_its_error_type(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab(failing(400))
    runner = lab.start("--gateway", gateway, env=ONE_RETRY)
    ends, requests = [0], [0]
    for status, *_ in STATUSES:
        lab.model.script = parse_script(failing(status))
        runner.send(protocol.Prompt(text="go"))
        runner.until(protocol.Result)
        ends.append(len(runner.events))
        requests.append(len(lab.model.requests))
    done = runner.finish()
    assert done.one(protocol.End).data == protocol.EndData(reason="completed", exit_code=1)
    assert (done.exit_code, done.types[0], done.types[-1]) == (1, "start", "end")
    for turn, (status, error_type, retryable, retries) in enumerate(STATUSES):
        if gateway == "on" and status == 401:
            retries = 0  # the gateway tells the CLI that a refused key will be refused again
        events = [each for each in done.events[ends[turn] : ends[turn + 1]] if each.type not in ("start", "telemetry")]
        assert [each.type for each in events] == ["turn_start", *["log"] * retries, "error", "result"], status
        *logs, error, result = events[1:]
        assert isinstance(error, protocol.Error) and isinstance(result, protocol.Result)
        assert (error.data.error_type, error.data.retryable) == (error_type, retryable)
        assert (result.data.is_error, result.data.error_type) == (True, error_type)
        for log in logs:
            message = rf"the model answered {status} \({error_type}\), attempt 1; again in \d+ s"
            assert isinstance(log, protocol.Log) and re.fullmatch(message, log.data.text)
        asked = requests[turn + 1] - requests[turn] if gateway == "on" else 1
        assert done.tree[turn] == [f"agent.execute !{error_type}", *[[f"{CHAT} !{error_type}"]] * asked]
        chats = [span for span in done.spans if span.name == CHAT and span.parent_span_id == result.span_id]
        _check_failed_requests(chats, status, error_type, retries, by_gateway=gateway == "on")


def _check_failed_requests(
    chats: list[SpanView], status: int, error_type: str, retries: int, *, by_gateway: bool
) -> None:
    if by_gateway:
        assert {chat.attributes["http.response.status_code"] for chat in chats} == {status}
        assert all("no luck" in chat.message for chat in chats)
        return
    assert [name for name, _ in chats[0].events] == ["api_retry"] * retries
    for _, attributes in chats[0].events:
        assert attributes["error.type"] == error_type
        assert attributes["http.response.status_code"] == status
        assert attributes["retry.attempt"] == 1
        assert attributes["retry.delay_ms"] > 0


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_a_refused_key_is_told_with_the_variable_that_it_is_from(make_lab: MakeLab, gateway: str) -> None:
    statuses = (401, 403)
    lab = make_lab(failing(401))
    runner = lab.start("--gateway", gateway, env={"CLAUDE_CODE_MAX_RETRIES": "0"})
    for status in statuses:
        lab.model.script = parse_script(failing(status))
        runner.send(protocol.Prompt(text="go"))
        runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 1
    turns = [span for span in done.spans if span.name == "agent.execute"]
    told = zip(statuses, done.of(protocol.Error), done.of(protocol.Result), turns, strict=True)
    for status, error, result, turn in told:
        message = (
            f"the model's API refused the key (HTTP {status}: no luck). It is from ANTHROPIC_API_KEY: check that it is"
            f" complete, not revoked, and a key for {lab.model.url} (ANTHROPIC_BASE_URL)"
        )
        assert (error.data.error_type, error.data.message, error.data.retryable) == ("authentication", message, False)
        assert (result.data.error_type, result.data.result) == ("authentication", message)
        assert turn.message == message


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_what_may_succeed_is_asked_again_as_often_as_the_setting_says(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab(failing(429))
    runner = lab.start("--gateway", gateway, "--max-retries", "2", env={"CLAUDE_CODE_MAX_RETRIES": "0"})
    for requests, status in ((3, 429), (6, 529)):
        lab.model.script = parse_script(failing(status))
        runner.send(protocol.Prompt(text="go"))
        runner.until(protocol.Result)
        assert len(lab.model.requests) == requests
    assert runner.finish().exit_code == 1


RECOVERED = """
    conversations:
      main:
        replies:
          - text: At last.
            fail: [{status: 529}]
"""


def test_a_retry_that_succeeds_is_a_request_of_its_own(make_lab: MakeLab) -> None:
    done = make_lab(RECOVERED).run("--prompt", "go", env=ONE_RETRY)
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "log", "text", "result", "end"]
    assert done.tree == [["agent.execute", [f"{CHAT} !overloaded"], [CHAT]]]


def test_without_a_gateway_a_retry_that_succeeds_is_an_event_on_its_request(make_lab: MakeLab) -> None:
    done = make_lab(RECOVERED).run("--prompt", "go", "--gateway", "off", env=ONE_RETRY)
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "log", "text", "result", "end"]
    assert done.tree == [["agent.execute", [CHAT]]]
    chat = done.span(CHAT)
    assert chat.status == OK
    (retry,) = chat.events
    assert retry[0] == "api_retry"
    # The time to the first chunk is the person's wait, retries included.
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] * 1000 >= retry[1]["retry.delay_ms"]


@pytest.mark.parametrize("gateway", ["on", "off"])
@pytest.mark.parametrize(
    ("failure", "error_type"), [("cut: true", "network"), ("error: overloaded_error", "overloaded")]
)
def test_a_stream_that_breaks_halfway_is_asked_for_again(
    make_lab: MakeLab, failure: str, error_type: str, gateway: str
) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - text: This is the whole answer, in several deltas.
                fail: [{{{failure}}}]
                usage: {{input_tokens: 11, output_tokens: 7}}
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway, env=ONE_RETRY)
    assert done.exit_code == 0
    broken = [[f"{CHAT} !{error_type}"]] if gateway == "on" else []  # the messages report one request
    assert done.tree == [["agent.execute", *broken, [CHAT]]]
    assert [text.data.text for text in done.of(protocol.Text)] == ["This is the whole answer, in several deltas."]
    chat = [span for span in done.spans if span.name == CHAT][-1]
    assert chat.attributes["gen_ai.usage.input_tokens"] == 11
    assert chat.attributes["gen_ai.usage.output_tokens"] == 7
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["end_turn"]


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_a_refused_connection_is_a_network_error(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        env = {**ONE_RETRY, "ANTHROPIC_BASE_URL": url}
        done = lab.run("--prompt", "go", "--gateway", gateway, env=env)
    assert done.exit_code == 1
    assert done.types == ["start", "turn_start", "log", "error", "result", "end"]
    assert done.one(protocol.Log).data.text.startswith("the model did not answer (network), attempt 1")
    assert done.tree == [["agent.execute !network", *[[f"{CHAT} !network"]] * (2 if gateway == "on" else 1)]]
    assert (done.one(protocol.Error).data.error_type, done.one(protocol.Error).data.retryable) == ("network", False)


NO_HOST = ".".join(["a" * 60] * 5)
"""A name that is too long for DNS, which no resolver asks anybody for."""


def test_a_model_that_cannot_be_reached_is_given_up_soon(tmp_path: Path) -> None:
    cases = [(host, gateway) for host in ("127.0.0.1", NO_HOST) for gateway in ("on", "off")]
    with socket.socket() as closed, ExitStack() as stack:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        # The four wait for their retries at the same time.
        runners = [
            stack.enter_context(lab(tmp_path / str(number), "conversations: {main: {replies: []}}")).start(
                "--prompt", "go", "--gateway", gateway, env={"ANTHROPIC_BASE_URL": f"http://{host}:{port}"}
            )
            for number, (host, gateway) in enumerate(cases)
        ]
        for (host, gateway), runner in zip(cases, runners, strict=True):
            _check_given_up(runner.finish(), host, port, by_gateway=gateway == "on")


def _check_given_up(done: Finished, host: str, port: int, *, by_gateway: bool) -> None:
    why = f"{host} refuses connections on port {port}" if host == "127.0.0.1" else f"there is no host {host[:100]}"
    message = f"the model cannot be reached: {why}. Check ANTHROPIC_BASE_URL"
    error, result = done.one(protocol.Error).data, done.one(protocol.Result).data
    assert (error.error_type, error.message, error.retryable) == ("network", message, False)
    assert (result.error_type, result.result) == ("network", message)
    chats = [span for span in done.spans if span.name == CHAT]
    assert done.tree == [["agent.execute !network", *[[f"{CHAT} !network"]] * len(chats)]]
    assert done.exit_code == 1
    attempts = len(chats) if by_gateway else len(chats[0].events)
    assert 1 <= attempts <= 6, "of the 11 that the CLI would make"


@pytest.mark.parametrize(("gateway", "requests"), [("on", 1), ("off", 2)])
def test_a_refused_key_is_not_tried_again_and_again(make_lab: MakeLab, gateway: str, requests: int) -> None:
    lab = make_lab("conversations: {main: {replies: [{fail: [{status: 401, times: 99}]}]}}")
    done = lab.run("--prompt", "go", "--gateway", gateway)
    assert done.one(protocol.Error).data.message.startswith("the model's API refused the key (HTTP 401")
    assert done.tree == [["agent.execute !authentication", [f"{CHAT} !authentication"]]]
    assert len(lab.model.requests) == requests
    assert done.exit_code == 1


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_a_model_that_is_back_in_time_is_asked_again(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Back.}]}}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        runner = lab.start("--prompt", "go", "--gateway", gateway, env={"ANTHROPIC_BASE_URL": url})
        runner.until(protocol.Log, lambda log: "attempt 1" in log.data.text)
        with forwarding(closed, urlsplit(lab.model.url)):
            done = runner.finish()
    assert done.one(protocol.Text).data.text == "Back."
    assert done.exit_code == 0


@contextmanager
def forwarding(bound: socket.socket, to: SplitResult) -> Generator[None]:
    """Listen on a bound socket and forward its connections until the end of the block."""
    bound.listen()
    loop = asyncio.new_event_loop()
    is_over = asyncio.Event()

    async def forward() -> None:
        server = await asyncio.start_server(pass_on, sock=bound)
        await is_over.wait()
        server.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(to.hostname, to.port)
        with closing(here), closing(writer):
            await asyncio.gather(copy(reader, here), copy(there, writer))

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left of its tasks, and awaits it
        thread = threading.Thread(target=runner.run, args=(forward(),))
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(is_over.set)
            thread.join(WAIT_SECONDS)


@pytest.mark.parametrize(("gateway", "requests"), [("on", 2), ("off", 1)])
def test_a_model_that_does_not_answer_is_a_timeout(make_lab: MakeLab, gateway: str, requests: int) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: late, delay: 30}]}}")
    done = lab.run("--prompt", "go", "--gateway", gateway, env={**ONE_RETRY, "API_TIMEOUT_MS": "300"})
    assert done.exit_code == 1
    assert done.tree == [["agent.execute !timeout", *[[f"{CHAT} !timeout"]] * requests]]
    assert (done.one(protocol.Error).data.error_type, done.one(protocol.Error).data.retryable) == ("timeout", True)


def test_a_turn_that_takes_too_many_requests_ends_as_max_turns(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo one}}]
              - tools: [{name: Bash, input: {command: echo two}}]
              - text: never
    """)
    done = lab.run("--prompt", "go", "--max-turns", "1")
    assert done.exit_code == 1
    assert done.types == ["start", "turn_start", "tool_use", "tool_result", "error", "result", "end"]
    assert done.tree == [["agent.execute !max_turns", [CHAT], ["execute_tool Bash"]]]
    assert (done.one(protocol.Error).data.error_type, done.one(protocol.Error).data.retryable) == ("max_turns", False)
    assert done.one(protocol.Result).data.subtype == "error_max_turns"


def test_a_conversation_that_costs_too_much_ends_as_budget_exceeded(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo one}}]
                usage: {input_tokens: 100000, output_tokens: 1000}
              - text: never
    """)
    done = lab.run("--prompt", "go", "--max-budget-usd", "0.01")
    assert done.exit_code == 1
    assert done.tree == [["agent.execute !budget_exceeded", [CHAT], ["execute_tool Bash !budget_exceeded"]]]
    assert done.one(protocol.Error).data.error_type == "budget_exceeded"
    assert done.one(protocol.Result).data.error_type == "budget_exceeded"
    assert done.one(protocol.Result).data.cost_usd > 0.01


def test_a_failed_turn_does_not_end_the_conversation(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - {text: Now it works., fail: [{status: 403}]}
    """)
    runner = lab.start("--prompt", "go", env=ONE_RETRY)
    runner.until(protocol.Result)
    runner.send(protocol.Prompt(text="again"))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 1
    assert done.tree == [
        ["agent.execute !authentication", [f"{CHAT} !authentication"]],
        ["agent.execute", [CHAT]],
    ]
