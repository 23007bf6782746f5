"""`query` and `ClaudeSDKClient` for an agent in a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, Message

from host_client.client.options import ApprovalPolicy
from host_client.client.session import Approver, Session
from host_client.sandbox import Sandbox
from host_client.telemetry import Telemetry

from ._transport import SandboxTransport


async def query(
    *,
    prompt: str | AsyncIterable[dict[str, Any]],
    options: ClaudeAgentOptions | None = None,
    sandbox: Sandbox | None = None,
    approvals: ApprovalPolicy | Approver = "deny",
    telemetry: Telemetry | None = None,
    traceparent: str | None = None,
    environ: Mapping[str, str] | None = None,
    further_options: Mapping[str, Any] | None = None,
    on_session: Callable[[Session], None] | None = None,
) -> AsyncIterator[Message]:
    """Run prompts as the SDK's `query` does, in a sandbox; see `ClaudeSDKClient` for the further arguments.

    ``on_session`` is called with the session, whose `last_changes` are known when the messages have ended.
    """
    options = options or ClaudeAgentOptions()
    transport = SandboxTransport(
        options,
        on_session,
        sandbox=sandbox,
        approvals=approvals,
        telemetry=telemetry,
        traceparent=traceparent,
        environ=environ,
        further_options=further_options,
    )
    async for message in claude_agent_sdk.query(prompt=prompt, options=options, transport=transport):
        yield message


class ClaudeSDKClient(claude_agent_sdk.ClaudeSDKClient):
    """The SDK's client for an agent in a sandbox.

    ``sandbox``, ``telemetry``, ``traceparent`` and ``environ`` are those of `open_session`. ``approvals`` decides where
    the options have no ``can_use_tool``: ``deny``, as Claude Code does without one, ``auto``, or a function.
    ``further_options`` are fields of `AgentOptions` that the SDK does not have, such as ``user_id``.
    """

    def __init__(
        self,
        options: ClaudeAgentOptions | None = None,
        *,
        sandbox: Sandbox | None = None,
        approvals: ApprovalPolicy | Approver = "deny",
        telemetry: Telemetry | None = None,
        traceparent: str | None = None,
        environ: Mapping[str, str] | None = None,
        further_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = options or ClaudeAgentOptions()
        self._sandbox_transport = SandboxTransport(
            options,
            sandbox=sandbox,
            approvals=approvals,
            telemetry=telemetry,
            traceparent=traceparent,
            environ=environ,
            further_options=further_options,
        )
        super().__init__(options, self._sandbox_transport)

    @property
    def session(self) -> Session:
        """Return the session, which has the trace, the cost and further methods; there is one after `connect`."""
        return self._sandbox_transport.session
