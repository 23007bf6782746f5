"""Checks the types of the arguments of `run_agent`, `open_session` and `take_over` before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from host_client.telemetry import Root, Telemetry
from host_client.workspace import Workspace

from ._claude_options import are_claude_options
from ._forms import Form, checked, number, typed
from .attachments import are_attachable
from .options import APPROVAL_POLICIES, AgentOptions


def check_arguments(**given: object) -> None:
    """Raise `ConfigurationError` for the first argument of a wrong type; the message shows the right form."""
    for name, value in given.items():
        checked(name, value, ARGUMENT_FORMS[name])


def _instance_of(kind: Any) -> Callable[[Any], Any]:
    return _where(lambda value: isinstance(value, kind))


def _where(is_right: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def accepts(value: object) -> Any:
        if not is_right(value):
            raise ValueError
        return value

    return accepts


def _are_options(value: object) -> bool:
    return value is None or isinstance(value, AgentOptions) or are_claude_options(value)


def _is_approvals(value: object) -> bool:
    return callable(value) if not isinstance(value, str) else value in APPROVAL_POLICIES


def _is_sandbox(value: object) -> bool:
    """Return whether a value is None or an object with a sandbox's methods; the class of a sandbox is refused."""
    return value is None or (not isinstance(value, type) and all(hasattr(value, name) for name in ("create", "run")))


def _is_optional_function(value: object) -> bool:
    return value is None or callable(value)


_TEXT = Form(typed(str | None), "a text")
_FUNCTION = Form(_where(_is_optional_function), "a function")

ARGUMENT_FORMS: dict[str, Form] = {
    "prompt": _TEXT,
    "options": Form(_where(_are_options), 'AgentOptions, such as AgentOptions(user_id="ada"), or ClaudeAgentOptions'),
    "further_options": Form(typed(Mapping[str, Any] | None), 'fields of AgentOptions, such as {"user_id": "ada"}'),
    "attachments": Form(
        _where(are_attachable), 'a list of paths, bytes or Attachment(data=…, name=…), such as [Path("plan.pdf")]'
    ),
    "host_tools": Form(_instance_of(list | tuple), "a list of functions, such as [search_orders]"),
    "hooks": Form(
        _instance_of(Mapping | None),
        'matchers by event, such as {"PreToolUse": [HookMatcher(matcher="Bash", hooks=[check])]}',
    ),
    "sandbox": Form(_where(_is_sandbox), "a sandbox, such as LocalSandbox() or E2BSandbox(environ=os.environ)"),
    "approvals": Form(
        _where(_is_approvals),
        f"one of {', '.join(APPROVAL_POLICIES)}, or an async function of the request that decides it",
    ),
    "telemetry": Form(_instance_of(Telemetry | None), "what initialize_telemetry() returns"),
    "traceparent": _TEXT,
    "tracestate": Form(typed(str), "a text"),
    "upload": Form(_instance_of(Path | None), 'a path, such as Path("project")'),
    "cwd": Form(_instance_of(str | Path | Workspace | None), 'a folder of this machine, such as "."'),
    "environ": Form(typed(Mapping[str, str] | None), 'variables, such as os.environ or {"ANTHROPIC_API_KEY": "…"}'),
    "stop_timeout": Form(number(float, zero=True), "seconds, 0 or more"),
    "session_id": _TEXT,
    "seen_seq": Form(typed(int), "the number of an event, 0 for none"),
    "whereabouts": Form(_where(lambda value: hasattr(value, "run_id")), "what Session.whereabouts was"),
    "root": Form(_instance_of(Root | None), "what root_of() returns"),
    "outlet": Form(_where(lambda value: value is None or hasattr(value, "offer")), "an object with Outlet's methods"),
    "on_event": _FUNCTION,
    "on_result": _FUNCTION,
    "on_own_spans": _FUNCTION,
}
