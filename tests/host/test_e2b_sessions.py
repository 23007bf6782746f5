"""Sessions in E2B: the real SDK against a stand-in, the real runner and CLI in its sandboxes."""

from __future__ import annotations

import pytest

from host_client import AgentOptions, run_agent
from tests.host.test_session import ONE_TOOL, WHOLE_TRACE
from tests.support.hosts import e2b_lab, views
from tests.support.runs import tree

pytestmark = pytest.mark.anyio


async def test_one_prompt_is_one_trace_from_the_session_to_the_tool_in_e2b() -> None:
    with e2b_lab(ONE_TOOL) as lab:
        options = AgentOptions(user_id="ada", tenant_id="acme")
        result = await run_agent("go", options, sandbox=lab.sandbox(), approvals="auto", environ=lab.environ)
        made = lab.e2b.sandboxes[0]
    assert (result.text, result.is_error, result.exit_code) == ("Done.", False, 0)
    spans = views(result.spans)
    assert tree(spans) == WHOLE_TRACE
    assert {span.trace_id for span in spans} == {result.trace_id}
    assert made.state == "gone"
