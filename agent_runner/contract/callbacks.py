"""Tools and hooks whose functions run on the host: their definitions, as one JSON document. Pure.

The runner offers them to the agent, asks the host by a `CallbackRequest`, and is answered by a `CallbackResponse`.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, get_args

import msgspec

from .sdk_options import SdkOptions, given_options

SERVER = "host"
"""Default name of the MCP server that offers a tool of the host: the agent calls it ``mcp__host__<name>``."""

MAX_INPUT = 8 * 1024 * 1024
"""Maximum bytes of JSON of an input that is sent to the host; with it, an event is short enough for any reader."""

MAX_DOCUMENT = 120_000
"""Maximum bytes of the document, as it is a variable of the runner's environment; Linux takes 128 KiB."""

HookEventName = Literal[
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "UserPromptSubmit",
    "Stop",
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "Notification",
    "PermissionRequest",
]
HOOK_EVENTS: tuple[HookEventName, ...] = get_args(HookEventName)

MessageMode = Literal["off", "on", "partial"]
"""Whether Claude Code's messages are `CliMessage` events: none of them, whole ones, or partial ones too."""
MESSAGE_MODES: tuple[MessageMode, ...] = get_args(MessageMode)

Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tool of the host. ``timeout`` is how long a call waits for the host's answer, in seconds.

    ``annotations`` are MCP's, such as ``readOnlyHint``: only calls of tools with it run side by side.
    """

    name: Name
    description: str
    input_schema: dict[str, Any]
    timeout: Seconds
    annotations: dict[str, Any] | None = None
    server: Name = SERVER


class HookDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A hook of the host. ``matcher`` and ``on_failure`` are those of the SDK's `HookMatcher`.

    ``matcher`` is a pattern of tool names, None for all. With ``on_failure="block"``, an error of the hook blocks what
    it was called for; else the hook then has no effect.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    event: HookEventName
    timeout: Seconds
    matcher: str | None = None
    on_failure: Literal["continue", "block"] | None = None


class CallbackDefinitions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All tools and hooks of the host in one run."""

    tools: tuple[ToolDefinition, ...] = ()
    hooks: tuple[HookDefinition, ...] = ()

    def __post_init__(self) -> None:
        tools = [f"mcp__{tool.server}__{tool.name}" for tool in self.tools]
        for kind, names in (("tool", tools), ("hook", [hook.id for hook in self.hooks])):
            if twice := next((name for name, number in Counter(names).items() if number > 1), None):
                raise ValueError(f"two {kind}s are named {twice!r}")

    @property
    def kinds(self) -> list[str]:
        """Return the arguments of `open_session` that these definitions come from, as the `start` event lists them."""
        return [name for name, given in (("host_tools", self.tools), ("hooks", self.hooks)) if given]


def given_to_runner(options: SdkOptions, definitions: CallbackDefinitions, messages: MessageMode) -> list[str]:
    """Return the names of what a runner was given, as its `start` event lists them: an older one ignores some."""
    return [*given_options(options), *definitions.kinds, *(["messages"] if messages != "off" else [])]


def read_callbacks(document: str | bytes) -> CallbackDefinitions:
    """Return the definitions in a JSON document; raise `ValueError` if it is not one."""
    try:
        return msgspec.json.decode(document, type=CallbackDefinitions)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a document of host tools and hooks: {error}") from None
