"""Today's host gives the same results for the output of f6f5305's runner as f6f5305's host."""

from __future__ import annotations

import pytest

from tests.compat.files import PLAYED, read_json
from tests.compat.playing import play_all, play_alone
from tests.compat.recordings import NAMES, Json, load

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def played() -> Json:
    """Replay all recorded runs with today's host."""
    return play_all([load(name) for name in NAMES])


@pytest.fixture(scope="module")
def before() -> Json:
    """Return the results that f6f5305's host had for the recorded runs."""
    return read_json(PLAYED)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_has_the_result_that_it_had(played: Json, before: Json, name: str) -> None:
    run, expected = played["runs"][name], before["runs"][name]
    assert known(run["outcome"], expected["outcome"]) == expected["outcome"]
    assert run["own_events"] == expected["own_events"]


@pytest.mark.parametrize("name", NAMES)
def test_every_event_of_an_old_runner_reaches_the_caller_once_and_as_it_was(played: Json, name: str) -> None:
    assert played["runs"][name]["events"] == load(name).events


@pytest.mark.parametrize("name", NAMES)
def test_an_old_runner_is_told_what_it_was_told(played: Json, name: str) -> None:
    recording, run = load(name), played["runs"][name]
    assert [known(command, old) for command, old in zip(run["commands"], recording.commands, strict=True)] == (
        recording.commands
    )
    assert known(run["environment"], recording.about["environment"]) == recording.about["environment"]
    assert known(run["metadata"], recording.about["metadata"]) == {
        **recording.about["metadata"],
        "sandspan.run_id": run["metadata"]["sandspan.run_id"],
    }


def known(given: Json, old: Json) -> Json:
    """Return only the fields that an old runner or host knows; it ignores new ones."""
    return {name: value for name, value in given.items() if name in old}


@pytest.mark.parametrize("name", NAMES)
def test_the_trace_of_an_old_run_is_the_same_span_for_span(played: Json, before: Json, name: str) -> None:
    check_spans(played["runs"][name]["spans"], before["runs"][name]["spans"])


def check_spans(spans: Json, expected: Json) -> None:
    """Compare spans one by one, so that a failure shows a short difference.

    f6f5305 gave the subtype of the CLI's result as the message of a failed session; now it is the error's message.
    """
    assert sorted(spans) == sorted(expected)
    for key, span in expected.items():
        status = dict(spans[key].get("status", {}))
        if status.get("message") != span.get("status", {}).get("message") and span["name"] == "agent.session":
            assert span["status"]["message"].startswith(("success", "error_"))
            assert not status["message"].startswith(("success", "error_"))
            span = {**span, "status": {**span["status"], "message": status["message"]}}
        assert spans[key] == span


@pytest.mark.parametrize("by", ["user", "tenant", "model"])
def test_old_runs_cost_what_they_cost(played: Json, before: Json, by: str) -> None:
    assert played["costs"][by] == before["costs"][by]


def test_old_runs_give_the_metrics_that_they_gave(played: Json, before: Json) -> None:
    assert before["metrics"].keys() - played["metrics"].keys() == set()
    for name, metric in before["metrics"].items():
        assert played["metrics"][name] == metric, name


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_whose_stream_is_lost_is_read_on_in_its_journal(before: Json, name: str) -> None:
    recording = load(name)
    lost = play_alone(recording, loses_after=max(1, len(recording.journal) // 2))
    expected = before["runs"][name]
    assert known(lost["outcome"], expected["outcome"]) == expected["outcome"]
    assert lost["own_events"] == expected["own_events"]
    assert [event for event in lost["events"] if "seq" in event] == [step.value for step in recording.journal]
    check_spans(lost["spans"], expected["spans"])


@pytest.mark.parametrize("name", NAMES)
def test_an_old_session_is_taken_over_by_what_its_host_told_of_it(before: Json, name: str) -> None:
    recording = load(name)
    seen = recording.handed_over_at
    played, expected = play_alone(recording, seen=seen), before["handed_over"][name]
    assert known(played["outcome"], expected["outcome"]) == expected["outcome"]
    assert played["own_events"] == expected["own_events"]
    assert [event for event in played["events"] if "seq" in event] == [
        step.value for step in recording.journal if step.seq > seen
    ]
    check_spans(played["spans"], expected["spans"])
