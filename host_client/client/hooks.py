"""Hooks whose functions run on the host, in the form of the Claude Agent SDK."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from agent_runner.contract.callbacks import HOOK_EVENTS, HookDefinition, HookEventName
from host_client.errors import ConfigurationError

from ._forms import checked
from .host_tools import SECONDS

HOOK_SECONDS = 60.0
"""Seconds that a hook may take by default, as in the SDK."""

HookCallback = Callable[[dict[str, Any], str | None, dict[str, Any]], Any]
"""A function of the hook's input, the id of the tool call and a context; its output is a dict of the SDK's form."""


@dataclass(frozen=True)
class HookMatcher:
    """Functions that the agent's CLI calls at an event, with the fields of the SDK's class, which is taken as well.

    ``matcher`` is a pattern of tool names such as ``"Write|Edit"``, None for all. A function, sync or async, is called
    with the input, the id of the tool call and ``{"signal": None}``; its output is a dict such as
    ``{"hookSpecificOutput": {…}}``, or None. ``timeout`` is in seconds. In a local sandbox a ``PreToolUse`` hook that
    does nothing added 1 ms to a call of 25 ms (benchmarks/README.md); with E2B the way over the network comes on top.

    By default a function that raises has no effect, so its hook is no security boundary; the session has an ``error``
    event then. With ``on_failure="block"`` it blocks what it was called for. A ``PreToolUse`` hook that does not
    return in time always denies its call.
    """

    matcher: str | None = None
    hooks: Sequence[HookCallback] = ()
    timeout: float | None = None
    on_failure: Literal["continue", "block"] | None = None


HooksByEvent = Mapping[HookEventName, Sequence[HookMatcher | Any]]
"""Hooks as `open_session` takes them; the SDK's matchers are taken too."""


class HostHook(NamedTuple):
    """One function of a hook, and its definition for the runner."""

    definition: HookDefinition
    function: HookCallback


def host_hooks(given: HooksByEvent) -> list[HostHook]:
    """Return the functions of matchers by event, with an id for each; raise `ConfigurationError`."""
    hooks: list[HostHook] = []
    names = Counter[str]()
    for event, matchers in given.items():
        if event not in HOOK_EVENTS:
            raise ConfigurationError(f"hooks: there is no event {event!r}; there are: {', '.join(HOOK_EVENTS)}")
        for matcher in _list_of(event, matchers):
            for function in _list_of(event, getattr(matcher, "hooks", None)):
                if not callable(function):
                    raise ConfigurationError(_right_form(event))
                name = getattr(function, "__name__", type(function).__name__)[:80]
                names[name] += 1
                # Names stay the same for a host that takes the session over, also if it has one hook more.
                key = name if names[name] == 1 else f"{name}#{names[name]}"
                hooks.append(HostHook(_definition(key, event, matcher), function))
    return hooks


def _definition(key: str, event: HookEventName, matcher: Any) -> HookDefinition:
    timeout = getattr(matcher, "timeout", None)
    return HookDefinition(
        id=key,
        event=event,
        timeout=HOOK_SECONDS if timeout is None else checked(f"the timeout of a {event} hook", timeout, SECONDS),
        matcher=matcher.matcher,
        on_failure=getattr(matcher, "on_failure", None),
    )


def _list_of(event: str, value: object) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return cast("Sequence[Any]", value)
    raise ConfigurationError(_right_form(event))


def _right_form(event: str) -> str:
    return f'hooks takes matchers by event, such as {{"{event}": [HookMatcher(matcher="Bash", hooks=[check])]}}'
