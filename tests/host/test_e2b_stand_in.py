"""The real SDK behaves with the stand-in of E2B as it does with E2B."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from connectrpc.errors import ConnectError
from e2b import (
    AsyncCommandHandle,
    AsyncSandbox,
    AsyncTemplate,
    AuthenticationException,
    BuildException,
    CommandExitException,
    FileNotFoundException,
    InvalidArgumentException,
    NotFoundException,
    RateLimitException,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    SandboxUnreachableException,
    TimeoutException,
)
from e2b.exceptions import ServiceBusyException

from tests.support.e2b import (
    Answer,
    CutAfterBytes,
    CutAfterEvents,
    CutAtRandom,
    Ending,
    Hold,
    Outcome,
    Reset,
    ResetAfter,
    Slow,
    StandIn,
    fixed_chunks,
    random_chunks,
)
from tests.support.e2b.connect_protocol import FrameReader, message_frame

pytestmark = pytest.mark.anyio

START = "POST /process.Process/Start"
CREATE = "POST /v2/sandboxes"


@pytest.fixture
def e2b(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as e2b:
        for name, value in e2b.environ.items():
            monkeypatch.setenv(name, value)
        yield e2b


async def write(sandbox: AsyncSandbox, path: str, data: str | bytes, **options: Any) -> str:
    """Write a file; return its path in the sandbox."""
    return (await sandbox.files.write(path, data, **options)).path  # pyright: ignore[reportUnknownMemberType]


async def background(sandbox: AsyncSandbox, command: str, **options: Any) -> AsyncCommandHandle[Any]:
    # Any, as pyright cannot choose an overload for unknown options.
    run: Any = sandbox.commands.run
    return await run(command, background=True, stdin=True, timeout=0, **options)


def alive(pid: int) -> bool:
    try:
        return state_of(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_of(pid: int) -> str:
    """Return the state letter of a process: T for stopped, Z for a zombie."""
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


async def first_number(sandbox: AsyncSandbox, command: str) -> tuple[int, AsyncCommandHandle[Any]]:
    """Start a command that prints a number and goes on; return the number and the command's handle."""
    printed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def take(chunk: str) -> None:
        if not printed.done():
            printed.set_result(chunk)

    handle = await background(sandbox, command, on_stdout=take)
    return int(await asyncio.wait_for(printed, 30)), handle


# Streams


async def test_a_command_whose_time_is_up_is_killed_without_notice_and_its_children_live(
    e2b: StandIn, tmp_path: Path
) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    noticed, child = tmp_path / "noticed", tmp_path / "child"
    command = f"trap 'touch {noticed}' TERM; sleep 600 & echo $! > {child}; wait"
    with pytest.raises(TimeoutException):
        await sandbox.commands.run(command, timeout=3, user="root")
    process = e2b.sandbox(sandbox.sandbox_id).processes[0]
    e2b.until(lambda: process.end)
    assert process.end == {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}
    assert not noticed.exists()
    assert alive(int(child.read_text()))


async def test_a_connection_whose_time_is_up_ends_and_the_process_lives(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "sleep 600")
    with pytest.raises(TimeoutException):
        await (await sandbox.commands.connect(handle.pid, timeout=1)).wait()
    assert [process.pid for process in await sandbox.commands.list()] == [handle.pid]


async def test_output_is_lost_while_nobody_is_connected(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "cat")
    process = e2b.sandbox(sandbox.sandbox_id).processes[0]
    await handle.disconnect()
    e2b.until(lambda: process.readers == 0)
    await sandbox.commands.send_stdin(handle.pid, "nobody reads this\n")
    e2b.until(lambda: bytes(process.lost) == b"nobody reads this\n")
    again = await sandbox.commands.connect(handle.pid)
    await again.send_stdin("somebody does\n")
    await again.close_stdin()
    assert (await again.wait()).stdout == "somebody does\n"


async def test_the_exit_code_is_served_to_one_who_connects_after_the_exit(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "echo before; exit 7")
    with pytest.raises(CommandExitException):
        await handle.wait()
    with pytest.raises(CommandExitException) as caught:
        await (await sandbox.commands.connect(handle.pid)).wait()
    assert (caught.value.exit_code, caught.value.stdout) == (7, "")


@pytest.mark.parametrize("chunking", [fixed_chunks(1), fixed_chunks(7), random_chunks(seed=1, most=20)])
async def test_chunks_are_not_lines_and_characters_stay_whole(e2b: StandIn, chunking: Any) -> None:
    e2b.rechunk(chunking)
    sandbox = await AsyncSandbox.create("sandspan")
    chunks: list[str] = []
    text = "grüße, 日本 🎉\n" * 20
    await write(sandbox, "text", text)
    await sandbox.commands.run("cat text", on_stdout=chunks.append)
    assert "".join(chunks) == text
    assert any(not chunk.endswith("\n") for chunk in chunks)


async def test_a_slow_reader_loses_nothing(e2b: StandIn) -> None:
    e2b.slow_down(0.001)
    sandbox = await AsyncSandbox.create("sandspan")
    taken = 0

    async def take(chunk: str) -> None:
        nonlocal taken
        await asyncio.sleep(0)
        taken += len(chunk)

    result = await sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x", on_stdout=take)
    assert (taken, len(result.stdout)) == (3_000_000, 3_000_000)


async def test_a_reader_that_stops_stalls_the_process(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    go_on = asyncio.Event()

    async def take(chunk: str) -> None:
        await go_on.wait()

    handle = await background(sandbox, "exec head -c 50000000 /dev/zero", on_stdout=take)
    waits_in = Path("/proc") / str(handle.pid) / "wchan"
    e2b.until(lambda: "pipe_write" in waits_in.read_text())
    assert [process.pid for process in await sandbox.commands.list()] == [handle.pid]
    go_on.set()
    assert len((await handle.wait()).stdout) == 50_000_000


async def test_an_exception_in_a_callback_ends_the_reading_and_is_raised_by_wait(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")

    def refuse(chunk: str) -> None:
        raise ZeroDivisionError

    handle = await background(sandbox, "echo one; sleep 600", on_stdout=refuse)
    with pytest.raises(ZeroDivisionError):
        await handle.wait()


async def test_input_to_a_process_that_does_not_read_blocks_until_the_request_times_out(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "sleep 600")
    with pytest.raises(TimeoutException):
        await handle.send_stdin("x" * 200_000, request_timeout=1)
    process = e2b.sandbox(sandbox.sandbox_id).processes[0]
    assert process.end is None


async def test_kill_is_sigkill_to_the_process_alone(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    child, handle = await first_number(sandbox, "trap '' TERM; sleep 600 & echo $!; wait")
    assert await handle.kill()
    with pytest.raises(CommandExitException) as caught:
        await handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert alive(child)


# Exceptions


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_refusal_of_the_api_is_a_sandbox_exception_with_its_status(e2b: StandIn, status: int) -> None:
    e2b.fail(CREATE, Answer(status, "no"))
    with pytest.raises(SandboxException, match="no") as caught:
        await AsyncSandbox.create("sandspan")
    assert type(caught.value) is SandboxException
    assert caught.value.status_code == status


async def test_a_wrong_key_and_no_key_are_authentication_exceptions(
    e2b: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuthenticationException):
        await AsyncSandbox.create("sandspan", api_key="e2b_wrong")
    monkeypatch.delenv("E2B_API_KEY")
    with pytest.raises(AuthenticationException):
        await AsyncSandbox.create("sandspan")
    assert not issubclass(AuthenticationException, SandboxException)


@pytest.mark.parametrize(
    ("status", "raised"),
    [(429, RateLimitException), (502, SandboxException), (503, ServiceBusyException), (504, SandboxException)],
)
async def test_what_may_pass_is_tried_four_times(e2b: StandIn, status: int, raised: type[Exception]) -> None:
    rule = e2b.fail(CREATE, Answer(status), times=None)
    with pytest.raises(raised) as caught:
        await AsyncSandbox.create("sandspan", idempotency_key="one")
    assert type(caught.value) is raised
    assert rule.met == 4
    assert {request.headers["idempotency-key"] for request in e2b.requests} == {"one"}


async def test_what_passes_is_not_seen(e2b: StandIn) -> None:
    e2b.fail(CREATE, Answer(503), times=3)
    sandbox = await AsyncSandbox.create("sandspan")
    assert [made.id for made in e2b.sandboxes] == [sandbox.sandbox_id]


async def test_retry_after_is_waited_for(e2b: StandIn) -> None:
    e2b.fail(CREATE, Answer(429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    await AsyncSandbox.create("sandspan")
    assert time.monotonic() - began >= 1


async def test_an_api_that_cannot_be_reached_is_a_raw_connect_error(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with e2b.unreachable(), pytest.raises(httpx.ConnectError):
        await AsyncSandbox.create("sandspan")
    assert (await sandbox.get_info()).state == SandboxState.RUNNING


async def test_an_exit_code_other_than_0_is_raised(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(CommandExitException) as caught:
        await sandbox.commands.run("echo out; echo err >&2; exit 3")
    assert caught.value.exit_code == 3
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "err\n")


async def _by_cutting_now(e2b: StandIn, sandbox: AsyncSandbox, ending: Ending) -> object:
    handle = await background(sandbox, "sleep 600")
    assert e2b.cut_streams(ending) == 1
    return await handle.wait()


async def _by_events(e2b: StandIn, sandbox: AsyncSandbox, ending: Ending) -> object:
    e2b.fail(START, CutAfterEvents(2, ending))
    return await (await background(sandbox, "echo one; sleep 600")).wait()


async def _by_bytes(e2b: StandIn, sandbox: AsyncSandbox, ending: Ending) -> object:
    e2b.fail(START, CutAfterBytes(60, ending))
    return await (await background(sandbox, "echo one; sleep 600")).wait()


async def test_a_silent_stream_stays_open_and_brings_nothing_while_all_else_goes_on(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    heard: list[str] = []
    handle = await background(
        sandbox, "while read line; do echo $line; echo $line > noted; done", on_stdout=heard.append
    )
    assert e2b.silence_streams() == 1
    await handle.send_stdin("one\n")
    noted = await sandbox.commands.run("until [ -s noted ]; do sleep 0.01; done; cat noted")
    assert (noted.stdout, heard) == ("one\n", [])
    await asyncio.to_thread(e2b.lose, sandbox.sandbox_id)
    with pytest.raises(SandboxNotRunningException):
        await sandbox.commands.list()
    assert e2b.silence_streams() == 1  # one stream is still open
    assert heard == []
    await handle.disconnect()


_Cut = Callable[[StandIn, AsyncSandbox, Ending], Awaitable[object]]
CUTS = [_by_cutting_now, _by_events, _by_bytes]


@pytest.mark.parametrize("cut", CUTS)
async def test_a_stream_that_lost_its_sandbox_is_unreachable_while_the_sandbox_lives(e2b: StandIn, cut: _Cut) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(SandboxUnreachableException):
        await cut(e2b, sandbox, Ending.LOST)
    assert len(await sandbox.commands.list()) == 1


@pytest.mark.parametrize("cut", CUTS)
async def test_a_reset_stream_is_a_raw_connect_error_while_the_sandbox_answers(e2b: StandIn, cut: _Cut) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(ConnectError):
        await cut(e2b, sandbox, Ending.RESET)
    assert len(await sandbox.commands.list()) == 1


@pytest.mark.parametrize("cut", CUTS)
async def test_a_stream_without_an_end_event_is_a_bare_exception(e2b: StandIn, cut: _Cut) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(Exception, match="without an end event") as caught:
        await cut(e2b, sandbox, Ending.EOF)
    assert type(caught.value) is Exception
    assert len(await sandbox.commands.list()) == 1


async def test_a_stream_is_unreachable_when_the_network_is_down(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "cat")
    with e2b.unreachable(), pytest.raises(SandboxUnreachableException):
        await handle.wait()
    again = await sandbox.commands.connect(handle.pid)
    await again.send_stdin("back\n")
    await again.close_stdin()
    assert (await again.wait()).stdout == "back\n"


async def test_a_closed_port_is_unreachable_and_opens_again(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    e2b.close_port(sandbox.sandbox_id)
    with pytest.raises(SandboxUnreachableException, match="port is not open"):
        await sandbox.commands.run("true")
    assert not await sandbox.is_running()
    e2b.open_port(sandbox.sandbox_id)
    assert (await sandbox.commands.run("echo up")).stdout == "up\n"


async def test_a_sandbox_that_is_gone_is_not_running(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "sleep 600")
    e2b.lose(sandbox.sandbox_id)
    with pytest.raises(SandboxNotRunningException):
        await handle.wait()
    with pytest.raises(SandboxNotRunningException, match="was not found"):
        await sandbox.commands.run("true")
    with pytest.raises(SandboxNotRunningException, match="was not found"):
        await sandbox.files.read("anything")


async def test_input_to_a_dead_process_is_not_found_and_without_stdin_a_sandbox_exception(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    dead = await background(sandbox, "true")
    await dead.wait()
    with pytest.raises(NotFoundException):
        await sandbox.commands.send_stdin(dead.pid, "x")
    with pytest.raises(NotFoundException):
        await sandbox.commands.connect(2**22 + 1)  # above the maximum pid
    deaf = await sandbox.commands.run("sleep 600", background=True)
    with pytest.raises(SandboxException) as caught:
        await deaf.send_stdin("x")
    assert type(caught.value) is SandboxException
    _, closed = await first_number(sandbox, "exec 0<&-; echo 0; sleep 600")
    with pytest.raises(SandboxException) as caught:
        await closed.send_stdin("x")
    assert type(caught.value) is SandboxException
    assert alive(closed.pid)


async def test_a_bad_directory_and_a_bad_account_are_refused(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        await sandbox.commands.run("true", cwd="/no/such/place")
    with pytest.raises(AuthenticationException, match="nobody-of-that-name"):
        await sandbox.commands.run("true", user="nobody-of-that-name")


async def test_an_unknown_sandbox_is_not_found_and_a_second_kill_false(e2b: StandIn) -> None:
    with pytest.raises(SandboxNotFoundException):
        await AsyncSandbox.connect("no-such-sandbox")
    sandbox = await AsyncSandbox.create("sandspan")
    assert await sandbox.kill()
    assert not await sandbox.kill()
    with pytest.raises(SandboxNotFoundException):
        await sandbox.set_timeout(10)


async def test_without_the_sandboxs_token_envd_refuses(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    e2b.sandbox(sandbox.sandbox_id).access_token = "another"
    with pytest.raises(AuthenticationException):
        await sandbox.commands.run("true")
    assert await sandbox.is_running()


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (401, AuthenticationException),
        (404, NotFoundException),
        (429, RateLimitException),
        (500, SandboxException),
        (502, SandboxUnreachableException),
        (503, SandboxUnreachableException),
    ],
)
async def test_a_refusal_of_envd_is_not_tried_again(e2b: StandIn, status: int, raised: type[Exception]) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    rule = e2b.fail("POST /process.Process/*", Answer(status), times=None)
    with pytest.raises(raised):
        await sandbox.commands.list()
    assert rule.met == 1


# Sandboxes


async def test_an_unknown_template_is_404(e2b: StandIn) -> None:
    with pytest.raises(SandboxException) as caught:
        await AsyncSandbox.create("no-such-template")
    assert caught.value.status_code == 404


async def test_a_create_whose_answer_was_lost_makes_one_sandbox_with_the_same_key(e2b: StandIn) -> None:
    e2b.fail(CREATE, ResetAfter())
    with pytest.raises(httpx.TransportError):
        await AsyncSandbox.create("sandspan", idempotency_key="a-key")
    sandbox = await AsyncSandbox.create("sandspan", idempotency_key="a-key")
    assert [made.id for made in e2b.sandboxes] == [sandbox.sandbox_id]
    e2b.fail(CREATE, Reset())
    with pytest.raises(httpx.TransportError):
        await AsyncSandbox.create("sandspan", idempotency_key="another-key")
    assert len(e2b.sandboxes) == 1


async def test_a_create_can_be_slow_or_held(e2b: StandIn) -> None:
    e2b.fail(CREATE, Slow(600))
    with pytest.raises(httpx.TimeoutException):
        await AsyncSandbox.create("sandspan", request_timeout=0.5)
    hold = Hold()
    e2b.fail(CREATE, hold)
    creating = asyncio.create_task(AsyncSandbox.create("sandspan"))
    await asyncio.wait_for(asyncio.wrap_future(hold.met), 30)
    assert e2b.sandboxes == []
    hold.release()
    sandbox = await creating
    assert [made.id for made in e2b.sandboxes] == [sandbox.sandbox_id]


async def test_what_a_sandbox_was_made_with_is_kept(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create(
        "sandspan",
        timeout=77,
        metadata={"run": "a b/c"},
        envs={"GREETING": "hello"},
        lifecycle={"on_timeout": "pause"},
        network={"allow_out": ["api.anthropic.com"], "deny_out": ["0.0.0.0/0"]},
    )
    made = e2b.sandbox(sandbox.sandbox_id)
    assert (made.template.name, made.metadata, made.envs) == ("sandspan", {"run": "a b/c"}, {"GREETING": "hello"})
    assert made.timeouts == [77]
    assert made.network == {"allowOut": ["api.anthropic.com"], "denyOut": ["0.0.0.0/0"]}
    assert made.lifecycle == {"onTimeout": "pause", "autoResume": False}
    info = await sandbox.get_info()
    assert (info.template_id, info.metadata, info.cpu_count, info.memory_mb) == ("tpl-sandspan", made.metadata, 2, 512)
    assert (await sandbox.get_metrics())[0].cpu_count == 2
    assert (await sandbox.commands.run("echo $GREETING")).stdout == "hello\n"


def rules(headers: dict[str, str], domain: str = "api.anthropic.com", times: int = 1) -> Any:
    """Return network options with the same rule for a domain, once or more often."""
    return {"rules": {domain: [{"transform": {"headers": headers}}] * times}}


DENY_ALL = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out"

REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"allow_out": ["example.com"]}, DENY_ALL),
    ({"allow_out": ["8.8.8.8", "*.example.com"], "deny_out": ["8.8.8.0/24"]}, DENY_ALL),
    ({"allow_out": ["0.0.0.0"]}, "invalid allowed address 0.0.0.0"),
    ({"deny_out": ["example.com"]}, "invalid denied CIDR example.com"),
    ({"deny_out": ["10.0.0.0/8:22"]}, "invalid denied CIDR 10.0.0.0/8:22"),
    ({"mask_request_host": "bücher.example"}, "mask request host 'bücher.example' is not ASCII."),
    (rules({}, domain="127.0.0.1"), 'Rule domain "127.0.0.1" is not a valid domain name.'),
    (rules({}, domain="*.example.com"), 'Rule domain "*.example.com" is not a valid domain name.'),
    (rules({}, domain=""), "Rule domain must not be empty."),
    (rules({}, domain="a" * 129), "exceeds maximum length of 128 characters."),
    (rules({}, times=2), 'Domain "api.anthropic.com" can have at most 1 transform rule.'),
    ({"rules": {f"{n}.example.com": [] for n in range(11)}}, "Network rules can have at most 10 domains."),
    (rules({f"x-{n}": "" for n in range(21)}), 'Domain "api.anthropic.com" can have at most 20 headers per rule.'),
    (rules({"": "x"}), "must not be empty."),
    (rules({"x y": "x"}), 'Header name "x y" in rule for domain "api.anthropic.com" must contain only valid HTTP'),
    (rules({"x" * 65: "x"}), "exceeds maximum length of 64 characters."),
    (rules({"x": "a\nb"}), 'Value for header "x" in rule for domain "api.anthropic.com" contains invalid characters.'),
    (rules({"x": "x" * 2049}), "exceeds maximum length of 2048 characters."),
    (rules({"x": "${e2b.secrets.a b}"}), "Network transform header contains a malformed E2B placeholder."),
    (rules({"x": "${e2b.secrets.a"}), "Network transform header contains a malformed E2B placeholder."),
    (rules({"x": "".join(f"${{e2b.secrets.s{n}}}" for n in range(33))}), "references more than 32 secrets."),
]


@pytest.mark.parametrize(("network", "says"), REFUSED_OPTIONS, ids=lambda value: None)
async def test_network_options_that_e2bs_api_refuses_are_refused_with_its_words(
    e2b: StandIn, network: Any, says: str
) -> None:
    with pytest.raises(SandboxException) as caught:
        await AsyncSandbox.create("sandspan", network=network)
    assert caught.value.status_code == 400
    assert says in str(caught.value)
    assert e2b.sandboxes == []


@pytest.mark.parametrize(
    "network",
    [
        {"allow_out": ["example.com", "*.example.com"], "deny_out": ["0.0.0.0/0"]},
        {"allow_out": ["8.8.8.8", "10.0.0.1/8"]},
        rules({"x-api-key": "${e2b.secrets.anthropic}"}),
        rules({"x": "${e2b.secrets.A}${e2b.secrets.a}" * 33}),
        {"rules": {}, "allow_public_traffic": False},
    ],
)
async def test_network_options_that_e2bs_api_takes_are_taken(e2b: StandIn, network: Any) -> None:
    await AsyncSandbox.create("sandspan", network=network)
    assert len(e2b.sandboxes) == 1


async def test_an_update_of_the_network_follows_the_same_rules(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    with pytest.raises(SandboxException, match=DENY_ALL):
        await sandbox.update_network({"allow_out": ["example.com"]})
    await sandbox.update_network({"deny_out": ["8.8.8.8"]})
    assert e2b.sandboxes[0].network == {"denyOut": ["8.8.8.8"]}


async def test_a_team_without_transform_rules_is_refused_them(e2b: StandIn) -> None:
    e2b.forbid_transform_rules()
    with pytest.raises(SandboxException, match="Network transform rules are not available for your team"):
        await AsyncSandbox.create("sandspan", network=rules({"x": "y"}))


async def test_sandboxes_are_found_by_metadata_and_state_page_by_page(e2b: StandIn) -> None:
    ids = [(await AsyncSandbox.create("sandspan", metadata={"of": "a b&c"})).sandbox_id for _ in range(3)]
    other = await AsyncSandbox.create("sandspan", metadata={"of": "another"})
    await other.pause()
    pages = AsyncSandbox.list(query=SandboxQuery(metadata={"of": "a b&c"}), limit=2)
    found: list[str] = []
    while pages.has_next:
        found += [info.sandbox_id for info in await pages.next_items()]
    assert sorted(found) == sorted(ids)
    paused = await AsyncSandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED])).next_items()
    assert [info.sandbox_id for info in paused] == [other.sandbox_id]


async def test_a_sandbox_ends_when_its_time_is_up_unless_it_is_renewed(e2b: StandIn) -> None:
    renewed, left = await AsyncSandbox.create("sandspan", timeout=2), await AsyncSandbox.create("sandspan", timeout=2)
    await renewed.set_timeout(600)
    handle = await background(left, "sleep 600")
    with pytest.raises(SandboxNotRunningException):
        await handle.wait()
    assert e2b.sandbox(left.sandbox_id).state == "gone"
    assert not await left.is_running()
    assert await renewed.is_running()


async def test_a_sandbox_may_pause_when_its_time_is_up(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan", timeout=1, lifecycle={"on_timeout": "pause"})
    e2b.until(lambda: e2b.sandbox(sandbox.sandbox_id).state == "paused")
    assert (await sandbox.get_info()).state == SandboxState.PAUSED


async def test_a_paused_sandbox_stands_still_and_goes_on_when_connected_to(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    child, handle = await first_number(sandbox, "setsid sleep 600 & echo $!; read line; echo $line; kill %1")
    assert await sandbox.pause()
    assert not await sandbox.pause()
    with pytest.raises(SandboxNotRunningException):
        await handle.wait()
    with pytest.raises(SandboxNotRunningException):
        await sandbox.commands.run("true")
    for pid in (child, handle.pid):
        e2b.until(lambda pid=pid: state_of(pid) == "T")
    again = await AsyncSandbox.connect(sandbox.sandbox_id)
    connected = await again.commands.connect(handle.pid)
    await connected.send_stdin("awake\n")
    assert (await connected.wait()).stdout == "awake\n"


async def test_a_paused_sandbox_may_resume_by_itself(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan", lifecycle={"on_timeout": "pause", "auto_resume": True})
    await sandbox.pause()
    assert (await sandbox.commands.run("echo awake")).stdout == "awake\n"


async def test_killing_a_sandbox_kills_what_has_a_session_of_its_own(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    child, _ = await first_number(sandbox, "setsid --fork bash -c 'echo $$; exec sleep 600'; sleep 600")
    root = e2b.sandbox(sandbox.sandbox_id).root
    assert alive(child)
    assert await sandbox.kill()
    assert not alive(child)
    assert not root.exists()


async def test_nothing_is_left_behind() -> None:
    with StandIn() as e2b:
        credentials = {"api_key": e2b.keys.api_key, "api_url": e2b.url, "sandbox_url": e2b.url}
        sandbox = await AsyncSandbox.create("sandspan", **credentials)  # pyright: ignore[reportArgumentType]
        child, handle = await first_number(sandbox, "setsid --fork bash -c 'echo $$; exec sleep 600'; sleep 600")
        root = e2b.sandbox(sandbox.sandbox_id).root.parent
    assert not alive(child)
    assert not root.exists()
    with pytest.raises(SandboxUnreachableException):
        await handle.wait()


# Commands


async def test_a_command_has_a_clean_environment_and_a_home_of_the_sandbox(
    e2b: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_MACHINE", "secret")
    sandbox = await AsyncSandbox.create("sandspan")
    result = await sandbox.commands.run("env", envs={"MINE": "1"})
    env = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert env["MINE"] == "1"
    assert env["HOME"] == env["PWD"] == f"{e2b.sandbox(sandbox.sandbox_id).root}/home/user"
    assert "OF_THIS_MACHINE" not in env
    assert set(env) <= {
        *("MINE", "HOME", "PWD", "PATH", "USER", "LOGNAME", "SHLVL", "_"),
        *("E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
async def test_user_is_an_unprivileged_account_and_root_is_root(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    assert (await sandbox.commands.run("id -un; touch mine; stat -c %U mine")).stdout == "nobody\nnobody\n"
    assert (await sandbox.commands.run("id -un", user="root")).stdout == "root\n"
    assert (await sandbox.commands.run("id -un", user="daemon")).stdout == "daemon\n"


async def test_input_can_be_streamed(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "cat")
    async with sandbox.commands.stream_input(handle.pid) as stream:
        await stream.send("one ")
        await stream.send("two")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "one two"
    assert e2b.sandbox(sandbox.sandbox_id).processes[0].received == b"one two"
    with pytest.raises(NotFoundException):
        async with sandbox.commands.stream_input(handle.pid) as stream:
            await stream.send("late")


async def test_two_readers_get_the_same(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    first = await background(sandbox, "cat")
    second = await sandbox.commands.connect(first.pid)
    await first.send_stdin("to both\n")
    await first.close_stdin()
    assert [(await handle.wait()).stdout for handle in (first, second)] == ["to both\n", "to both\n"]


async def test_a_process_killed_from_outside_ends_with_its_signal(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    handle = await background(sandbox, "exec sleep 600")
    e2b.kill_process(handle.pid)
    with pytest.raises(CommandExitException) as caught:
        await handle.wait()
    assert caught.value.exit_code == -1
    assert not await sandbox.commands.kill(handle.pid)


async def test_random_cuts_are_the_same_for_the_same_seed(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")

    async def outcomes(seed: int) -> list[type[BaseException] | None]:
        rule = e2b.fail("POST /process.Process/Connect", CutAtRandom(seed, most_bytes=300), times=6)
        found: list[type[BaseException] | None] = []
        for _ in range(6):
            handle = await background(sandbox, "cat")
            connected = await asyncio.gather(sandbox.commands.connect(handle.pid), return_exceptions=True)
            await handle.send_stdin("x" * 300)
            await handle.close_stdin()
            waited = [connected[0]] if isinstance(connected[0], BaseException) else [None]
            if not isinstance(connected[0], BaseException):
                waited = await asyncio.gather(connected[0].wait(), return_exceptions=True)
            found.append(type(waited[0]) if isinstance(waited[0], BaseException) else None)
        assert rule.met == 6
        return found

    first = await outcomes(5)
    assert first == await outcomes(5)
    assert None not in first
    assert len(set(first)) > 1


async def test_a_silent_stream_says_that_it_lives(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "X-Access-Token": e2b.sandbox(sandbox.sandbox_id).access_token,
        "Content-Type": "application/connect+json",
        "Keepalive-Ping-Interval": "0.05",
    }
    started = message_frame({"process": {"cmd": "/bin/sleep", "args": ["600"]}})
    reader, events = FrameReader(), list[Any]()
    async with (
        httpx.AsyncClient(base_url=e2b.url, headers=headers, trust_env=False) as client,
        client.stream("POST", "/process.Process/Start", content=started) as answer,
    ):
        async for data in answer.aiter_bytes():
            events += reader.feed(data)
            if len(events) >= 3:
                break
    pid = e2b.sandbox(sandbox.sandbox_id).processes[0].pid
    keepalive: Any = {"event": {"keepalive": {}}}
    assert events[:3] == [{"event": {"start": {"pid": pid}}}, keepalive, keepalive]


# Files


async def test_files_are_written_and_read(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    content = os.urandom(300_000)
    written = await write(sandbox, "deep/er/file", content)
    assert written == f"{e2b.sandbox(sandbox.sandbox_id).root}/home/user/deep/er/file"
    assert bytes(await sandbox.files.read("deep/er/file", format="bytes")) == content
    await sandbox.files.write_files([{"path": "a", "data": "1"}, {"path": "b", "data": b"2"}])
    await write(sandbox, "c", "zipped" * 1000, gzip=True)
    assert await sandbox.files.read("c") == "zipped" * 1000
    stream = await sandbox.files.read("deep/er/file", format="stream")
    assert b"".join([part async for part in stream]) == content
    assert [entry.name for entry in await sandbox.files.list("~")] == ["a", "b", "c", "deep"]
    assert len(await sandbox.files.list("~", depth=3)) == 6
    assert (await sandbox.files.get_info("a")).size == 1
    assert (await sandbox.files.rename("a", "d")).name == "d"
    await sandbox.files.remove("deep")
    assert not await sandbox.files.exists("deep")
    assert await sandbox.files.make_dir("dir")
    assert not await sandbox.files.make_dir("dir")
    with pytest.raises(FileNotFoundException):
        await sandbox.files.read("no-such-file")


async def test_a_download_can_be_cut(e2b: StandIn) -> None:
    sandbox = await AsyncSandbox.create("sandspan")
    await write(sandbox, "file", "x" * 100_000)
    e2b.fail("GET /files", CutAfterBytes(50_000))
    with pytest.raises(httpx.ReadError):
        await sandbox.files.read("file")
    assert len(await sandbox.files.read("file")) == 100_000


# Templates


async def test_a_build_is_kept_as_it_was_asked_for_and_makes_the_template(e2b: StandIn, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text("pass")
    template = (
        AsyncTemplate(file_context_path=tmp_path)
        .from_image("python:3.12")
        .copy("package", "/opt/package", user="root", mode=0o755)
        .set_start_cmd("sleep 1", "true")
    )
    lines: list[str] = []
    e2b.build_as(Outcome(tuple(f"line {number}" for number in range(250)), lines_a_poll=200))
    made = await AsyncTemplate.build(
        template,
        "mine:v1",
        tags=["latest"],
        cpu_count=4,
        memory_mb=2048,
        on_build_logs=lambda entry: lines.append(entry.message),
    )
    build = e2b.builds[0]
    assert (build.template_id, build.build_id) == (made.template_id, made.build_id)
    assert (build.name, build.tags, build.cpu_count, build.memory_mb) == ("mine", ("v1", "latest"), 4, 2048)
    assert (build.from_image, build.start_cmd, build.ready_cmd) == ("python:3.12", "sleep 1", "true")
    assert [(step["type"], step["args"]) for step in build.steps] == [
        ("COPY", ["package", "/opt/package", "root", "0755"])
    ]
    assert build.uploaded() == ["package", "package/module.py"]
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(250)]
    sandbox = await AsyncSandbox.create("mine:v1")
    assert (await sandbox.get_info()).cpu_count == 4


async def test_a_build_can_fail(e2b: StandIn) -> None:
    e2b.build_as(Outcome(error="no such package", step="1"))
    with pytest.raises(BuildException, match="no such package"):
        await AsyncTemplate.build(AsyncTemplate().from_image("python:3.12").run_cmd("false"), "mine")
    assert not await AsyncTemplate.exists("mine")


async def test_templates_have_tags(e2b: StandIn) -> None:
    assert await AsyncTemplate.exists("sandspan")
    assert not await AsyncTemplate.exists("no-such-template")
    await AsyncTemplate.assign_tags("sandspan", ["v1", "v2"])
    await AsyncTemplate.remove_tags("sandspan", "v1")
    assert [tag.tag for tag in await AsyncTemplate.get_tags("sandspan")] == ["default", "v2"]
    with pytest.raises(SandboxException):
        await AsyncSandbox.create("sandspan:v1")
    await AsyncSandbox.create("sandspan:v2")


async def test_cli_1_asks_for_a_build_of_its_image(e2b: StandIn) -> None:
    headers = {"Authorization": f"Bearer {e2b.keys.access_token}"}
    async with httpx.AsyncClient(base_url=e2b.url, headers=headers, trust_env=False) as client:
        assert (await client.get("/teams")).json()[0]["apiKey"] == e2b.keys.api_key
        asked = {"alias": "mine", "dockerfile": "FROM x", "startCmd": "run", "cpuCount": 2, "memoryMB": 512}
        made = (await client.post("/templates", json=asked)).json()
        again = await client.post(f"/templates/{made['templateID']}", json=asked)
        assert again.json()["templateID"] == made["templateID"]
        build = f"/templates/{made['templateID']}/builds/{made['buildID']}"
        assert (await client.get(f"{build}/status")).json()["status"] == "waiting"
        assert (await client.post(build)).status_code == 202
        logs: list[str] = []
        status = "building"
        while status == "building":
            answer = (await client.get(f"{build}/status", params={"logsOffset": len(logs)})).json()
            logs, status = logs + answer["logs"], answer["status"]
    assert (status, len(logs)) == ("ready", 4)
    assert (e2b.builds[0].dockerfile, e2b.builds[0].start_cmd, e2b.builds[0].cpu_count) == ("FROM x", "run", 2)
    assert await AsyncTemplate.exists("mine")
