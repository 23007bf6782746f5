"""With the setting for it, a prompt's text reaches the model as it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract import protocol
from tests.support.runs import Lab

MakeLab = Callable[[str], Lab]

TWO = "conversations: {main: {replies: [{text: One.}, {text: Two.}]}}"


@pytest.mark.parametrize("setting", [{"AGENT_VERBATIM_PROMPTS": "on"}, {}], ids=["on", "off"])
def test_a_file_that_a_prompt_names_is_read_only_where_that_is_allowed(
    make_lab: MakeLab, tmp_path: Path, setting: dict[str, str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"the content of {name}")
    lab = make_lab(TWO)
    runner = lab.start("--prompt", f"summarize @{tmp_path}/one", env=setting)
    runner.until(protocol.Result)
    runner.send(protocol.Prompt(text=f"summarize @{tmp_path}/two"))
    done = runner.finish()
    assert done.exit_code == 0
    asked = str(lab.model.requests[1].body["messages"])
    for name in ("one", "two"):
        assert f"summarize @{tmp_path}/{name}" in asked
        assert (f"the content of {name}" in asked) is not bool(setting)


@pytest.mark.parametrize(("value", "requests"), [("on", 1), ("off", 0)])
def test_a_slash_command_is_text_for_the_model_or_a_command_of_the_cli(
    make_lab: MakeLab, value: str, requests: int
) -> None:
    lab = make_lab(TWO)
    done = lab.run("--prompt", "/cost", "--verbatim-prompts", value)
    assert done.exit_code == 0
    assert len(lab.model.requests) == requests
