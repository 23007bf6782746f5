"""The costs of runs in their results, in the ledger and in ``host_client costs``, exact to a billionth of a dollar."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.prices import cost
from host_client import AgentOptions, AgentResult, LocalSandbox, open_session, run_agent
from host_client.sandbox.local import LocalProcess
from host_client.scripted_model import ScriptedModel, parse_script
from host_client.telemetry import SamplingConfig, TelemetryConfig, initialize_telemetry
from host_client.telemetry.costs.report import add_up
from host_client.telemetry.export import endpoints
from tests.e2e.test_commands import ROOT, piped
from tests.host.test_e2b_sessions import until
from tests.support.collector import Collector
from tests.support.hosts import HostLab, host_lab
from tests.support.runs import clean_environment

# The subagent uses another model, which has other prices.
SCRIPT = """
    conversations:
      main:
        replies:
          - {text: One., usage: {input_tokens: 1001, output_tokens: 103}}
          - tools:
              - name: Agent
                input: {description: d, prompt: Say hello, model: haiku, subagent_type: general-purpose,
                        run_in_background: false}
          - {text: Two., usage: {input_tokens: 207, cache_read_input_tokens: 5003, cache_creation_input_tokens: 71}}
          - {text: Three., usage: {input_tokens: 409, output_tokens: 47}}
          - {text: Four., usage: {input_tokens: 811, output_tokens: 83}}
      helper:
        when: Say hello
        replies:
          - tools: [{name: Bash, input: {command: echo hello}}]
            usage: {input_tokens: 513, cache_read_input_tokens: 17, output_tokens: 31}
          - text: hello was said
      fails:
        when: Fail
        replies:
          - {tools: [{name: Bash, input: {command: "true"}}], usage: {input_tokens: 3007}}
          - {fail: [{status: 400, times: 20}], text: Never.}
"""

MODEL = "claude-sonnet-4-5"
HELPER = "claude-haiku-5-5"


def nano(results: Sequence[p.ResultData]) -> int:
    return sum(round(Decimal(repr(result.cost_usd)) * 10**9) for result in results)


def costs(home: Path, *options: str) -> dict[str, Any]:
    """Return the output of ``host_client costs --json``."""
    done = piped(home, "costs", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by(home: Path, key: str) -> dict[str | None, int]:
    told = costs(home, "--by", key)
    assert sum(row["cost_nano_usd"] for row in told["rows"]) == told["total"]["cost_nano_usd"]
    return {row[key]: row["cost_nano_usd"] for row in told["rows"]}


async def conversation(lab: HostLab, home: Path, telemetry: Any) -> tuple[list[p.ResultData], list[p.ResultData]]:
    """Run three turns and, resumed, a fourth for the user ada; then a failing turn for the user bob."""
    ada = AgentOptions(user_id="ada", tenant_id="acme", model=MODEL)
    results: list[p.ResultData] = []
    kept = home / "kept"
    async with open_session(
        "first", ada, sandbox=LocalSandbox(keep=kept), approvals="auto", telemetry=telemetry, environ=lab.environ
    ) as session:
        async for event in session:
            if isinstance(event, p.Result):
                results.append(event.data)
                await (session.send("next") if len(results) < 3 else session.finish())

    def note(event: p.AnyEvent) -> None:
        if isinstance(event, p.Result):
            target.append(event.data)

    target = results
    again = AgentOptions(
        user_id="ada", tenant_id="acme", model=MODEL, resume=results[0].session_id, attributes={"team": "search"}
    )
    sandbox = LocalSandbox(keep=kept)
    await run_agent("on", again, sandbox=sandbox, telemetry=telemetry, environ=lab.environ, on_event=note)
    target = failed = list[p.ResultData]()
    bob = AgentOptions(user_id="bob", tenant_id="acme", model=MODEL)
    await run_agent("Fail", bob, approvals="auto", telemetry=telemetry, environ=lab.environ, on_event=note)
    return results, failed


@pytest.mark.anyio
async def test_the_ledger_is_the_sum_of_the_runs_whoever_is_asked_for(tmp_path: Path) -> None:
    ledger = tmp_path / ".local" / "state" / "sandspan" / "ledger.sqlite"
    # Sampling keeps no trace; the ledger counts all turns.
    config = TelemetryConfig(exporters=(), sampling=SamplingConfig(rate=0.0), ledger=ledger)
    telemetry = initialize_telemetry(config)
    with host_lab(SCRIPT) as lab:
        adas, bobs = await conversation(lab, tmp_path, telemetry)
    assert telemetry.shutdown()
    assert [result.result for result in adas] == ["One.", "Two.", "Three.", "Four."]
    assert [result.is_error for result in bobs] == [True]
    total = nano(adas) + nano(bobs)
    assert by(tmp_path, "user") == {"ada": nano(adas), "bob": nano(bobs)}
    assert by(tmp_path, "error") == {None: nano(adas), bobs[0].error_type: nano(bobs)}
    assert costs(tmp_path)["total"]["failed_nano_usd"] == nano(bobs) > 0
    assert by(tmp_path, "attribute:team") == {"search": nano(adas[3:]), None: nano(adas[:3]) + nano(bobs)}
    assert by(tmp_path, "tenant") == {"acme": total}
    assert sum(by(tmp_path, "day").values()) == total
    # The last result's total is the SDK's own sum of ada's turns.
    assert nano(adas) == round(adas[-1].total_cost_usd * 1e9)
    assert costs(tmp_path)["total"]["turns"] == 5
    of_helper = round(adas[-1].model_usage[HELPER]["costUSD"] * 1e9)
    assert by(tmp_path, "model") == {MODEL: total - of_helper, HELPER: of_helper}


TRACED = """
    conversations:
      main:
        replies:
          - tools:
              - name: Agent
                input: {description: d, prompt: Say hello, model: haiku, subagent_type: general-purpose,
                        run_in_background: false}
            usage: {input_tokens: 1001, output_tokens: 103, cache_creation_input_tokens: 7001,
                    more: {cache_creation: {ephemeral_1h_input_tokens: 3000, ephemeral_5m_input_tokens: 4001}}}
          - {text: One., usage: {input_tokens: 207, cache_read_input_tokens: 5003, output_tokens: 11}}
          - text: Two.
            usage: {input_tokens: 120000, output_tokens: 47,
                    more: {inference_geo: us, server_tool_use: {web_search_requests: 2}}}
      helper:
        when: Say hello
        replies:
          - tools: [{name: Bash, input: {command: echo hello}}]
            usage: {input_tokens: 100013, cache_read_input_tokens: 17, output_tokens: 31, more: {inference_geo: us}}
          - {text: hello was said, usage: {input_tokens: 601, output_tokens: 37}}
      fails:
        when: Fail
        replies:
          - tools: [{name: Bash, input: {command: "true"}}]
            usage: {input_tokens: 3007, output_tokens: 29, more: {speed: fast}}
          - {fail: [{status: 400, times: 20}], text: Never.}
"""


@pytest.mark.anyio
async def test_the_costs_that_langfuse_adds_up_are_the_ledgers_for_each_model(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    options = AgentOptions(user_id="ada", model=MODEL)
    with Collector() as langfuse, host_lab(TRACED) as lab:
        config = TelemetryConfig(
            exporters=("langfuse",),
            langfuse=endpoints.langfuse(langfuse.url, "pk-lf-own", "sk-lf-own"),
            ledger=ledger,
            spool_directory=tmp_path / "spool",
        )
        telemetry = initialize_telemetry(config)
        async with open_session("go", options, approvals="auto", telemetry=telemetry, environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.Result):
                    await (session.send("on") if event.data.turn == 1 else session.finish())
        fast = AgentOptions(user_id="ada", model="claude-opus-4-6")
        failed = await run_agent("Fail", fast, approvals="auto", telemetry=telemetry, environ=lab.environ)
        assert telemetry.shutdown()
    assert (failed.is_error, failed.cost_usd > 0) == (True, True)
    shown = Counter[str]()
    for span in langfuse.spans:
        if span.attributes["langfuse.observation.type"] == "generation":
            details = json.loads(span.attributes.get("langfuse.observation.cost_details", '{"total": 0}'))
            shown[span.attributes["gen_ai.request.model"]] += details["total"]
    rows, total = add_up([ledger], ["model"])
    assert shown == {row.keys[0]: pytest.approx(row.nano_usd / 1e9, abs=1e-8) for row in rows}
    assert set(shown) == {MODEL, HELPER, fast.model}
    assert total.failed_nano_usd == round(failed.cost_usd * 1e9)


class Killable(LocalSandbox):
    """A local sandbox that keeps the runner's process, so that a test can kill it."""

    pid = 0

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        process = await super().run(args, env)
        self.pid = self.pid or process.pid
        return process


HANGS = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(600)'"}}]
            usage: {input_tokens: 1001, output_tokens: 103, cache_read_input_tokens: 5003}
          - text: Never.
"""


WAITS = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: cat gate}}]
            usage: {input_tokens: 1001, output_tokens: 103}
          - text: Told to nobody.
"""


@pytest.mark.anyio
async def test_a_turn_whose_runner_is_killed_is_estimated_and_told_as_such(tmp_path: Path) -> None:
    ledger = tmp_path / ".local" / "state" / "sandspan" / "ledger.sqlite"
    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), ledger=ledger))
    sandbox = Killable()

    def kill_when_spans_came(event: p.AnyEvent) -> None:
        if isinstance(event, p.TelemetryEvent):
            os.kill(sandbox.pid, signal.SIGKILL)

    with host_lab(HANGS) as lab:
        options = AgentOptions(user_id="ada", model=MODEL)
        ended = await run_agent(
            "go",
            options,
            sandbox=sandbox,
            approvals="auto",
            telemetry=telemetry,
            environ=lab.environ,
            on_event=kill_when_spans_came,
        )
    assert (ended.exit_code, ended.cost_usd) == (-9, 0.0)
    assert telemetry.shutdown()
    usage = {"input_tokens": 1001, "output_tokens": 103, "cache_read_input_tokens": 5003}
    expected = round(cost(MODEL, usage) * 1e9)
    (row,) = costs(tmp_path)["rows"]
    assert (row["user"], row["cost_nano_usd"], row["estimated_nano_usd"]) == ("ada", expected, expected)
    assert (row["turns"], row["estimated_turns"], row["cache_read_tokens"]) == (1, 1, 5003)
    table = piped(tmp_path, "costs").stdout.decode()
    assert "estimated" in table.splitlines()[0]
    assert "turns that ended without their cost: 1. It is estimated" in table


def test_a_run_that_is_killed_leaves_what_its_turn_had_spent(tmp_path: Path) -> None:
    ledger = tmp_path / ".local" / "state" / "sandspan" / "ledger.sqlite"
    work = tmp_path / "work"
    work.mkdir()
    os.mkfifo(work / "gate")
    gate = os.open(work / "gate", os.O_RDWR)  # the tool reads until this is closed
    command = [sys.executable, "-m", "host_client", "run", "go", "--sandbox", "local", "--cwd", str(work)]
    command += ["--approvals", "auto", "--user-id", "ada", "--model", MODEL]
    with ScriptedModel(parse_script(WAITS)) as model:
        environ = clean_environment(tmp_path, model.url, TMPDIR=str(tmp_path))
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ, cwd=ROOT
        ) as host:
            try:
                asyncio.run(until(lambda: add_up([ledger], [])[1].turns == 1))
            finally:
                host.kill()
                os.close(gate)  # the runner ends once its host is gone
    usage = {"input_tokens": 1001, "output_tokens": 103}
    expected = round(cost(MODEL, usage) * 1e9)
    (row,) = costs(tmp_path)["rows"]
    assert (row["user"], row["cost_nano_usd"], row["estimated_nano_usd"]) == ("ada", expected, expected)


@pytest.mark.anyio
async def test_the_callback_of_old_is_told_what_the_ledger_has(tmp_path: Path) -> None:
    ledger = tmp_path / ".local" / "state" / "sandspan" / "ledger.sqlite"
    told: list[tuple[float, float]] = []

    def on_result(result: AgentResult) -> None:
        told.append((result.cost_usd, result.duration_ms))

    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), ledger=ledger))
    with host_lab(SCRIPT) as lab:
        options = AgentOptions(user_id="ada", model=MODEL)
        ended = await run_agent("go", options, telemetry=telemetry, environ=lab.environ, on_result=on_result)
    assert telemetry.shutdown()
    ((cost, duration_ms),) = told
    assert (cost, duration_ms) == (ended.cost_usd, ended.duration_ms)
    assert cost > 0 < duration_ms
    assert by(tmp_path, "user") == {"ada": round(cost * 1e9)}


def test_runs_of_the_command_are_in_the_ledger_of_their_user(tmp_path: Path) -> None:
    script = "{conversations: {main: {replies: [{text: One., usage: {input_tokens: 4000}}]}}}"
    with ScriptedModel(parse_script(script)) as model:
        for user in ("ada", "bob"):
            done = piped(tmp_path, "run", "go", "--user-id", user, model=model, ENVIRONMENT="production")
            assert done.returncode == 0, done.stderr
    shared = by(tmp_path, "user")
    assert set(shared) == {"ada", "bob"}
    assert shared["ada"] == shared["bob"] > 0
    table = piped(tmp_path, "costs", "--by", "user").stdout.decode()
    (total,) = [line.split() for line in table.split("\n") if line.split()[:1] == ["total"]]
    assert total[:2] == ["total", "2"]
    assert Decimal(total[2].lstrip("$")) == round(Decimal(sum(shared.values())).scaleb(-9), 4)
    assert costs(tmp_path, "--since", "2000-01-01")["total"]["turns"] == 2
    assert costs(tmp_path, "--since", "2999-01-01")["rows"] == []


def test_without_a_ledger_or_with_a_bad_moment_it_says_what_to_do(tmp_path: Path) -> None:
    off = piped(tmp_path, "costs", SANDSPAN_LEDGER="off")
    assert (off.returncode, off.stdout) == (2, b"")
    assert b"SANDSPAN_LEDGER" in off.stderr
    bad = piped(tmp_path, "costs", "--since", "yesterday")
    assert bad.returncode == 2
    assert b"takes a day" in bad.stderr
    none = piped(tmp_path, "costs")
    assert (none.returncode, none.stdout) == (0, b"the ledger has no such costs (demos are never recorded)\n")
