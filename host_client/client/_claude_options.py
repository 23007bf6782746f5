"""Take the options of the Claude Agent SDK as they are: what can be sent goes to the sandbox, functions stay here."""

from __future__ import annotations

import copy
import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol, cast

from agent_runner.contract.protocol import Answer, Approval, ApprovalRequest, QuestionRequest
from agent_runner.contract.sdk_options import REFUSED, SdkOptions
from host_client.errors import ConfigurationError

from ._policy import Approver
from .hooks import HooksByEvent
from .options import AgentOptions

QUESTION_TOOL = "AskUserQuestion"

_TYPES = "claude_agent_sdk.types"
_DECIDER = "can_use_tool"
"""``decided_by`` of the replies."""

_NO_ANSWER = "The user did not answer the questions."

_logger = logging.getLogger(__name__)

_TAKEN_ELSEWHERE = frozenset(
    {"can_use_tool", "hooks", "stderr", "cwd", "include_partial_messages", "forward_subagent_text", "debug_stderr"}
    | {"mcp_servers", "env"}
    # they have no meaning here, and do no harm
    | {"max_buffer_size", "load_timeout_ms", "session_store_flush"}
)


@dataclass(frozen=True)
class ClaudeParts:
    """The parts of a ``ClaudeAgentOptions`` object from which a session is made."""

    options: AgentOptions
    approver: Approver | None
    hooks: HooksByEvent
    servers: Mapping[str, Any]
    """In-process MCP servers by name, as instances of ``mcp.server.Server``."""
    on_stderr: Callable[[str], None] | None
    cwd: str | None


class ClaudeOptions(Protocol):
    """The fields of the SDK's ``ClaudeAgentOptions`` that this module names; the SDK is not imported."""

    can_use_tool: Any
    hooks: Any
    mcp_servers: Any
    stderr: Any
    env: Any
    cwd: Any


def are_claude_options(value: object) -> bool:
    """Return whether a value is a ``ClaudeAgentOptions`` object."""
    kind = getattr(sys.modules.get(_TYPES), "ClaudeAgentOptions", None)
    return kind is not None and isinstance(value, kind)


def parts_of(given: ClaudeOptions, **more: Any) -> ClaudeParts:
    """Return the parts of a ``ClaudeAgentOptions`` object; ``more`` are further fields of `AgentOptions`.

    Raise `ConfigurationError` for an option that cannot be used in a sandbox.
    """
    changed = _changed(given)
    for name in changed.keys() - _TAKEN_ELSEWHERE - set(SdkOptions.__struct_fields__):
        raise ConfigurationError(f"{name} cannot be set here. {REFUSED.get(name, 'This version does not know it.')}")
    sent = {name: value for name, value in changed.items() if name not in _TAKEN_ELSEWHERE}
    external, servers = _servers(given.mcp_servers)
    fields: dict[str, Any] = {**_DEFAULTS, **sent, **external, "env": dict(given.env), **more}
    options = AgentOptions(**fields)
    return ClaudeParts(
        options=options,
        approver=CanUseToolApprover(given.can_use_tool) if given.can_use_tool is not None else None,
        hooks=given.hooks or {},
        servers=servers,
        on_stderr=given.stderr,
        cwd=str(given.cwd) if given.cwd is not None else None,
    )


_DEFAULTS: dict[str, Any] = {
    "system_prompt": "",
    "setting_sources": ("user", "project", "local"),
    "strict_mcp_config": False,
}
"""The SDK's defaults where those of `AgentOptions` are others."""


def _changed(given: Any) -> dict[str, Any]:
    """Return the fields that do not have their default value."""
    changed: dict[str, Any] = {}
    for each in dataclasses.fields(given):
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if (value := getattr(given, each.name)) != default:
            changed[each.name] = value
    return changed


def _servers(given: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options for servers that run in the sandbox, and the in-process ones."""
    if isinstance(given, str | PurePath):
        return {"mcp_config": str(given)}, {}
    servers = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else None
    if servers is None or not all(isinstance(each, Mapping) for each in servers.values()):
        raise ConfigurationError("mcp_servers takes servers by name, as dicts of the SDK's form")
    named = cast("Mapping[str, Mapping[str, Any]]", servers)
    if broken := [name for name, each in named.items() if each.get("type") == "sdk" and "instance" not in each]:
        raise ConfigurationError(f"mcp_servers: {broken[0]!r} lacks its instance; create_sdk_mcp_server() makes one")
    in_process = {name: each["instance"] for name, each in named.items() if each.get("type") == "sdk"}
    external = {name: each for name, each in named.items() if name not in in_process}
    return {"mcp_servers": external} if external else {}, in_process


# -- can_use_tool -------------------------------------------------------------------------------------


class CanUseToolApprover:
    """Decides approval requests, and answers questions, by the SDK's callback ``can_use_tool``."""

    def __init__(self, can_use_tool: Any) -> None:
        self._can_use_tool = can_use_tool

    async def __call__(self, request: ApprovalRequest) -> Approval:
        """Return the decision on a tool call; an error of the callback denies it, with its text for the model."""
        data, types = request.data, _types()
        context = types.ToolPermissionContext(
            suggestions=[types.PermissionUpdate.from_dict(each) for each in data.suggestions],
            tool_use_id=data.tool_use_id,
            agent_id=data.agent_id,
            blocked_path=data.blocked_path,
            decision_reason=data.decision_reason,
            title=data.title,
            display_name=data.display_name,
            description=data.description,
        )
        decision = await self._decision(data.tool_name, data.input, context)
        if isinstance(decision, types.PermissionResultDeny):
            return Approval(
                approval_id=data.approval_id,
                decision="deny",
                message=decision.message or None,
                interrupt=decision.interrupt,
                decided_by=_DECIDER,
            )
        edited = decision.updated_input
        return Approval(
            approval_id=data.approval_id,
            decision="allow",
            updated_input=edited if edited not in (None, data.input) else None,
            updated_permissions=_updates_in(decision),
            decided_by=_DECIDER,
        )

    async def answer(self, request: QuestionRequest) -> Answer:
        """Return the answers, which the callback adds to the input of AskUserQuestion, or its refusal to answer."""
        data, types = request.data, _types()
        context = types.ToolPermissionContext(tool_use_id=data.tool_use_id)
        decision = await self._decision(QUESTION_TOOL, {"questions": data.questions}, context)
        if isinstance(decision, types.PermissionResultDeny):
            return Answer(
                question_id=data.question_id,
                answers={},
                refusal=decision.message or _NO_ANSWER,
                interrupt=decision.interrupt,
                decided_by=_DECIDER,
            )
        updated: dict[str, Any] = decision.updated_input or {}
        answers = cast("dict[str, Any]", updated.get("answers") or {})
        refusal = None if answers else _NO_ANSWER
        return Answer(question_id=data.question_id, answers=answers, refusal=refusal, decided_by=_DECIDER)

    async def _decision(self, name: str, given: dict[str, Any], context: Any) -> Any:
        try:
            # A copy, as a callback may edit its input in place.
            return _checked(await self._can_use_tool(name, copy.deepcopy(given), context))
        except Exception as error:
            _logger.warning("can_use_tool failed, so %s is denied", name, exc_info=True)
            return _types().PermissionResultDeny(message=str(error) or repr(error))


def _checked(decision: Any) -> Any:
    types = _types()
    if not isinstance(decision, types.PermissionResultAllow | types.PermissionResultDeny):
        raise TypeError(f"can_use_tool returned {decision!r:.80}, no PermissionResultAllow or PermissionResultDeny")
    return decision


def _types() -> Any:
    """Return the SDK's module of types; whoever gives an object of it has imported it."""
    return sys.modules[_TYPES]


def _updates_in(decision: Any) -> list[dict[str, Any]] | None:
    """Return a decision's changes of permissions, none if one cannot be sent, as in the SDK."""
    try:
        return [each.to_dict() for each in decision.updated_permissions or ()] or None
    except ValueError as error:
        _logger.warning("the call is allowed, but its updated_permissions cannot be sent: %s", error)
        return None
