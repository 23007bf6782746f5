"""The options of the Claude Agent SDK that a runner takes, as one JSON document. Pure.

Names and forms are those of ``ClaudeAgentOptions``. `REFUSED` has the other fields, each with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from .tools import PERMISSION_MODES, PermissionMode

Effort = Literal["low", "medium", "high", "xhigh", "max"]
SettingSource = Literal["user", "project", "local"]

MAX_ARGUMENT = 120_000
"""Maximum length as JSON of an option that becomes one argument of the CLI; Linux takes 128 KiB."""

_AS_ARGUMENTS = ("system_prompt", "mcp_servers", "settings", "output_format")
_ARGUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_TYPES = re.compile(r"`((?:object|array|str|int|float|bool|null| \| )+)`")
_WORDS = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of all parts of the document: a name that the SDK does not have is an error."""


class AgentDefinition(_Part, frozen=True, kw_only=True):
    """A subagent: when to use it (``description``), its system prompt, and its tools and limits."""

    description: str
    prompt: str
    tools: list[str] | None = None
    disallowedTools: list[str] | None = None  # noqa: N815  # the SDK's names
    model: str | None = None
    skills: list[str] | None = None
    memory: SettingSource | None = None
    mcpServers: list[str | dict[str, Any]] | None = None  # noqa: N815
    initialPrompt: str | None = None  # noqa: N815
    maxTurns: int | None = None  # noqa: N815
    background: bool | None = None
    effort: Effort | int | None = None
    permissionMode: PermissionMode | None = None  # noqa: N815


class ClaudeCodeTools(_Part, frozen=True, kw_only=True, tag="preset"):
    """All tools of Claude Code."""

    preset: Literal["claude_code"]


class PresetPrompt(_Part, frozen=True, kw_only=True, tag="preset"):
    """Claude Code's own system prompt, with text after it."""

    preset: Literal["claude_code"]
    append: str | None = None
    exclude_dynamic_sections: bool | None = None
    snapshot: bool | None = None


class CustomPrompt(_Part, frozen=True, kw_only=True, tag="custom"):
    """A system prompt in place of Claude Code's own."""

    prompt: str
    snapshot: bool | None = None


class PromptFile(_Part, frozen=True, kw_only=True, tag="file"):
    """A file in the sandbox with the system prompt."""

    path: str


SystemPrompt = str | PresetPrompt | CustomPrompt | PromptFile


class McpServer(_Part, frozen=True, kw_only=True):
    """An external MCP server: a program in the sandbox (``stdio``), or an address (``http``, ``sse``)."""

    type: Literal["stdio", "http", "sse"] = "stdio"
    command: str | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    url: str | None = None
    headers: dict[str, str] | None = None

    def __post_init__(self) -> None:
        program, address = (self.command, self.args, self.env), (self.url, self.headers)
        own, other, needed = (program, address, "command") if self.type == "stdio" else (address, program, "url")
        if not own[0] or any(each is not None for each in other):
            raise ValueError(f"an MCP server of type {self.type} takes `{needed}`, and none of the other type's fields")


class LocalPlugin(_Part, frozen=True, kw_only=True, tag="local"):
    """A folder in the sandbox with a plugin of Claude Code."""

    path: str


class ThinkingConfig(_Part, frozen=True, kw_only=True):
    """The kind of Claude's thinking before it answers; ``enabled`` takes a maximum number of tokens."""

    type: Literal["adaptive", "enabled", "disabled"]
    budget_tokens: Annotated[int, msgspec.Meta(gt=0)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    def __post_init__(self) -> None:
        if (self.budget_tokens is not None) != (self.type == "enabled"):
            raise ValueError("budget_tokens belongs to thinking of type enabled")


class TaskBudget(_Part, frozen=True, kw_only=True):
    """The number of tokens of a task, which the model is told."""

    total: Annotated[int, msgspec.Meta(gt=0)]


class SandboxNetwork(_Part, frozen=True, kw_only=True):
    """The network of commands in Claude Code's own sandbox."""

    allowedDomains: list[str] | None = None  # noqa: N815
    deniedDomains: list[str] | None = None  # noqa: N815
    allowManagedDomainsOnly: bool | None = None  # noqa: N815
    allowUnixSockets: list[str] | None = None  # noqa: N815
    allowAllUnixSockets: bool | None = None  # noqa: N815
    allowLocalBinding: bool | None = None  # noqa: N815
    allowMachLookup: list[str] | None = None  # noqa: N815
    httpProxyPort: int | None = None  # noqa: N815
    socksProxyPort: int | None = None  # noqa: N815


class SandboxSettings(_Part, frozen=True, kw_only=True):
    """Claude Code's own sandbox for Bash commands, inside the sandbox that the runner is in."""

    enabled: bool | None = None
    autoAllowBashIfSandboxed: bool | None = None  # noqa: N815
    excludedCommands: list[str] | None = None  # noqa: N815
    allowUnsandboxedCommands: bool | None = None  # noqa: N815
    network: SandboxNetwork | None = None
    ignoreViolations: dict[str, list[str]] | None = None  # noqa: N815
    enableWeakerNestedSandbox: bool | None = None  # noqa: N815


class OutputFormat(_Part, frozen=True, kw_only=True, tag="json_schema"):
    """The JSON Schema of the run's structured output."""

    schema: dict[str, Any]


class SdkOptions(_Part, frozen=True, kw_only=True):
    """Options of the Claude Agent SDK; a field that is None is not set, so that the SDK's or runner's default holds."""

    tools: list[str] | ClaudeCodeTools | None = None
    allowed_tools: list[str] | None = None
    system_prompt: SystemPrompt | None = None
    mcp_servers: dict[str, str | McpServer] | None = None
    """External servers, and where in-process ones are imported from (``module:attribute``)."""
    strict_mcp_config: bool | None = None
    permission_mode: PermissionMode | None = None
    resume: str | None = None
    session_id: str | None = None
    max_turns: Annotated[int, msgspec.Meta(gt=0)] | None = None
    max_budget_usd: Annotated[float, msgspec.Meta(gt=0)] | None = None
    disallowed_tools: list[str] | None = None
    model: str | None = None
    fallback_model: str | None = None
    betas: list[str] | None = None
    settings: str | None = None
    """JSON, or the path of a file in the sandbox."""
    add_dirs: list[str] | None = None
    env: dict[str, str] | None = None
    """Variables of the CLI and its tools."""
    extra_args: dict[str, str | None] | None = None
    """Arguments of the CLI without their dashes."""
    include_hook_events: bool | None = None
    verbatim_prompts: bool | None = None
    fork_session: bool | None = None
    resume_session_at: str | None = None
    resume_drops_turn: str | None = None
    agents: dict[str, AgentDefinition] | None = None
    setting_sources: list[SettingSource] | None = None
    skills: list[str] | Literal["all"] | None = None
    sandbox: SandboxSettings | None = None
    plugins: list[LocalPlugin] | None = None
    max_thinking_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    thinking: ThinkingConfig | None = None
    effort: Effort | None = None
    output_format: OutputFormat | None = None
    enable_file_checkpointing: bool | None = None
    task_budget: TaskBudget | None = None
    client_app: str | None = None


REFUSED: dict[str, str] = {
    "continue_conversation": "`resume` names the conversation; its past cost is known only then.",
    "permission_prompt_tool_name": "The runner answers permission requests, by approvals.",
    "cwd": "`open_session(cwd=…)` names a folder of the host; AGENT_CWD is for the runner alone.",
    "cli_path": "AGENT_CLI_PATH says which Claude Code the image has.",
    "max_buffer_size": "The runner sets it.",
    "debug_stderr": "The SDK no longer reads it.",
    "stderr": "Lines on stderr are `log` events; `ClaudeAgentOptions` is taken with it.",
    "can_use_tool": "Approvals are its remote form; `ClaudeAgentOptions` is taken with it.",
    "hooks": "`open_session(hooks=…)` takes them: their functions run on the host.",
    "user": "AGENT_USER names the account of the CLI in the image.",
    "include_partial_messages": "`text_delta` events are always there; see AGENT_MESSAGES for the CLI's own.",
    "forward_subagent_text": "Always on.",
    "session_store": "A store cannot be sent to a sandbox.",
    "session_store_flush": "There is no store in the sandbox.",
    "load_timeout_ms": "There is no store in the sandbox.",
}
"""The fields of ``ClaudeAgentOptions`` that the document cannot have, and why."""


_OTHER_ARGUMENTS = """
    add-dir allow-dangerously-skip-permissions allowedTools append-system-prompt continue dangerously-skip-permissions
    disallowedTools from-pr input-format json-schema mcp-config permission-prompt-tool plugin-dir print
    replay-user-messages session-mirror system-prompt-file thinking-display verbose
"""
OWN_ARGUMENTS = {
    *(name.replace("_", "-") for name in (*SdkOptions.__struct_fields__, *REFUSED)),
    *_OTHER_ARGUMENTS.split(),
}
"""Arguments of the CLI that ``extra_args`` cannot have: the runner or another option sets them."""

FORMS: dict[str, str] = {
    "tools": 'names, such as ["Read", "Bash"], or {"type": "preset", "preset": "claude_code"}',
    "allowed_tools": 'names and rules, such as ["Read", "Bash(git log:*)"]',
    "system_prompt": 'a text, or {"type": "preset", "preset": "claude_code", "append": "…"}',
    "mcp_servers": 'servers by name: {"command": "…"}, {"type": "http", "url": "https://…"} or "module:attribute"',
    "strict_mcp_config": "true or false",
    "permission_mode": f"one of {', '.join(PERMISSION_MODES)}",
    "resume": "the id of a conversation",
    "session_id": "a UUID",
    "max_turns": "a whole number above 0",
    "max_budget_usd": "a number above 0",
    "disallowed_tools": 'names and rules, such as ["WebFetch", "Bash(rm:*)"]',
    "model": "a model's id or alias",
    "fallback_model": "a model's id or alias",
    "betas": 'names, such as ["context-1m-2025-08-07"]',
    "settings": "JSON as text, or the path of a file in the sandbox",
    "add_dirs": "absolute paths of directories in the sandbox",
    "env": 'names and texts, such as {"LANG": "C.UTF-8"}',
    "extra_args": 'arguments of the CLI without dashes, such as {"debug": null}',
    "include_hook_events": "true or false",
    "verbatim_prompts": "true or false",
    "fork_session": "true or false",
    "resume_session_at": "the UUID of a message",
    "resume_drops_turn": "the UUID of a prompt",
    "agents": '{"name": {"description": "when to use it", "prompt": "its system prompt"}}',
    "setting_sources": f"some of {', '.join(get_args(SettingSource))}",
    "skills": 'names, or "all"',
    "sandbox": 'settings such as {"enabled": true}',
    "plugins": '[{"type": "local", "path": "…"}]',
    "max_thinking_tokens": "a whole number of 0 or more",
    "thinking": '{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 4000} or {"type": "disabled"}',
    "effort": f"one of {', '.join(get_args(Effort))}",
    "output_format": '{"type": "json_schema", "schema": {…}}',
    "enable_file_checkpointing": "true or false",
    "task_budget": '{"total": 100000}',
    "client_app": "a name, such as my-app/1.0",
}
"""The form of each option, for messages and documents."""


def given_options(options: SdkOptions) -> list[str]:
    """Return the names of the options that are set."""
    return [name for name in SdkOptions.__struct_fields__ if getattr(options, name) is not None]


def read_options(document: str | bytes) -> SdkOptions:
    """Return the options in a JSON document; raise `ValueError` that names the option and says what it takes."""
    try:
        return _checked(msgspec.json.decode(document, type=SdkOptions))
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def convert_options(given: Mapping[str, object]) -> SdkOptions:
    """Return options that are given as Python objects, dataclasses included; raise `ValueError` as `read_options`."""
    try:
        return _checked(msgspec.convert(_with_texts(given), SdkOptions, from_attributes=True))
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(error)) from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the options cannot be sent as JSON: {error}") from None


def _with_texts(given: Mapping[str, object]) -> dict[str, object]:
    """Return options whose directories are texts; the SDK takes `Path` too."""
    directories = given.get("add_dirs")
    if not isinstance(directories, list | tuple):
        return dict(given)
    each_one = cast("Sequence[object]", directories)
    return {**given, "add_dirs": [str(each) if isinstance(each, PurePath) else each for each in each_one]}


def _checked(options: SdkOptions) -> SdkOptions:
    for name in options.extra_args or ():
        if not _ARGUMENT.fullmatch(name):
            raise ValueError(f"extra_args: {name[:80]!r}: takes the names of arguments without dashes and values")
        if name in OWN_ARGUMENTS:
            raise ValueError(f"extra_args: --{name} is set by the runner or by another option")
    for name in _AS_ARGUMENTS:
        length = len(json.dumps(msgspec.to_builtins(getattr(options, name))))
        if length > MAX_ARGUMENT:
            raise ValueError(
                f"{name}: has {length:,} characters as JSON; at most {MAX_ARGUMENT:,} fit on Claude Code's command line"
            )
    return options


def _in_words(error: msgspec.ValidationError) -> str:
    """Return msgspec's message in the words of JSON, after the wrong value's path and before the right form."""
    text = _TYPES.sub(
        lambda types: " or ".join(_WORDS.get(each, each) for each in types[1].split(" | ") if each != "null"),
        str(error),
    )
    found = _PATH.search(text)
    path, text = (found[1], text[: found.start()]) if found else ("", text)
    option = re.split(r"[.\[]", path)[0]
    if not path and (unknown := _UNKNOWN.search(text)):
        return (
            f"{unknown[1]} cannot be set here. {REFUSED[unknown[1]]}"
            if unknown[1] in REFUSED
            else f"the SDK has no option {unknown[1]!r}"
        )
    return f"{path}: {text}. {option} takes {FORMS[option]}" if option in FORMS else text
