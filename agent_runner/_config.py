"""Read the runner's configuration from environment variables and options. Pure.

Every setting is one row of `SETTINGS`; an option overrides its variable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from .contract.callbacks import MESSAGE_MODES, CallbackDefinitions, MessageMode, read_callbacks
from .contract.parsing import count, count_above_zero, number_above_zero, on_off, one_of, pairs
from .contract.sanitize import CONTENTS, Content
from .contract.sdk_options import McpServer, SdkOptions, SystemPrompt, read_options
from .contract.tools import PERMISSION_MODES, tool_names

SETTING_SOURCES = ("user", "project", "local")

GatewayMode = Literal["auto", "on", "off"]
GATEWAY_MODES: tuple[str, ...] = get_args(GatewayMode)


class ConfigError(ValueError):
    """A setting has a bad value; the message names the setting and its valid values.

    ``rest`` is the configuration without the bad values, which the span of the failed run needs, if it is known.
    """

    def __init__(self, message: str, rest: Config | None = None) -> None:
        super().__init__(message)
        self.rest = rest


@dataclass(frozen=True)
class Config:
    """The configuration of one run; `SETTINGS` describes each field."""

    prompt: str | None = None
    model: str | None = None
    cwd: str | None = None
    allowed_tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = ()
    permission_mode: str = "default"
    max_turns: int | None = None
    max_budget_usd: float | None = None
    max_retries: int | None = None
    resume: str | None = None
    approval_timeout: float = 300.0
    background_timeout: float = 600.0
    heartbeat: float = 15.0
    journal: str | None = None
    system_prompt: SystemPrompt | None = None
    verbatim_prompts: bool = False
    setting_sources: tuple[str, ...] = ()
    mcp_config: str | None = None
    mcp_servers: Mapping[str, str | McpServer] = field(default_factory=dict[str, str | McpServer])
    require_mcp: bool = False
    user_id: str | None = None
    session_id: str | None = None
    tenant_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    content: Content = "preview"
    tool_content: Content = "none"
    sanitizer: str | None = None
    user: str | None = None
    gateway: GatewayMode = "auto"
    deep_trace: bool = False
    cli_path: str | None = None
    options: SdkOptions = field(default_factory=SdkOptions)
    """The document with options of the SDK. Of those in `SHARED`, the field here holds."""
    callbacks: CallbackDefinitions = field(default_factory=CallbackDefinitions)
    """The tools and hooks whose functions run on the host."""
    messages: MessageMode = "off"


SHARED = {each.name for each in fields(Config)} & set(SdkOptions.__struct_fields__) - {"session_id"}
"""Options of the SDK that have a setting of the same meaning; `session_id` has another one here."""
_LISTS = ("allowed_tools", "disallowed_tools", "setting_sources")


class RunnerSetting(NamedTuple):
    """A setting: the field of `Config`, the parser of its text, and its help."""

    field: str
    parse: Callable[[str], Any]
    help: str

    @property
    def variable(self) -> str:
        """Return the name of the environment variable."""
        return f"AGENT_{self.field.upper()}"

    @property
    def option(self) -> str:
        """Return the name of the command-line option."""
        return "--" + self.field.replace("_", "-")


def _sources(value: str) -> tuple[str, ...]:
    return tuple(one_of(*SETTING_SOURCES)(name) for name in tool_names(value))


def _mcp_config(value: str) -> str:
    if not value.lstrip().startswith("{"):
        return value  # a path, which is read later
    try:
        json.loads(value)
    except ValueError as error:
        raise ValueError(f"takes a path or a JSON object ({error})") from None
    return value


def _options_document(value: str) -> SdkOptions:
    if not value.lstrip().startswith("{"):
        # The text may be a document with credentials, so no message shows it as the name of a file.
        try:
            return read_options(Path(value).read_bytes())
        except OSError as error:
            raise ValueError(f"takes a JSON object or the path of one ({error.strerror})") from None
    return read_options(value)


SETTINGS = (
    RunnerSetting("prompt", str, "Prompt of the first turn. Default: the first `prompt` command."),
    RunnerSetting("model", str, "Model id or alias. Default: the CLI's."),
    RunnerSetting("cwd", str, "Working directory of the agent. Default: the runner's."),
    RunnerSetting("allowed_tools", tool_names, "Tools and rules that need no approval, separated by commas."),
    RunnerSetting("disallowed_tools", tool_names, "Tools and rules that are refused, separated by commas."),
    RunnerSetting("permission_mode", one_of(*PERMISSION_MODES), f"One of {', '.join(PERMISSION_MODES)}."),
    RunnerSetting("max_turns", count_above_zero, "Maximum number of model requests of a turn."),
    RunnerSetting("max_budget_usd", number_above_zero, "Maximum cost of the conversation in US dollars."),
    RunnerSetting("max_retries", count, "Maximum number of retries of a failed model request. Default: the CLI's, 10."),
    RunnerSetting("resume", str, "Claude's session id of the conversation to continue."),
    RunnerSetting(
        "approval_timeout", number_above_zero, "Seconds to wait for a person before a call is denied. Default: 300."
    ),
    RunnerSetting(
        "background_timeout",
        number_above_zero,
        "Seconds that the end of a run waits for commands and subagents in the background. Default: 600.",
    ),
    RunnerSetting(
        "heartbeat",
        number_above_zero,
        "Seconds without an event after which a `heartbeat` is sent, while work goes on. Default: 15.",
    ),
    RunnerSetting("journal", str, "File to which every event with a seq is appended. Must be empty or new."),
    RunnerSetting("system_prompt", str, "System prompt in place of Claude Code's own."),
    RunnerSetting(
        "verbatim_prompts", on_off, "on: `@/path` in a prompt reads no file, `/name` runs no command. Default: off."
    ),
    RunnerSetting("setting_sources", _sources, "Settings that the CLI reads: user, project, local. Default: none."),
    RunnerSetting("mcp_config", _mcp_config, "MCP servers: a JSON object as in .mcp.json, or a path to one."),
    RunnerSetting("mcp_servers", pairs, "In-process MCP servers: name=module:attribute, separated by commas."),
    RunnerSetting("require_mcp", on_off, "on: do not start if an MCP server cannot be used. Default: off."),
    RunnerSetting("user_id", str, "`user.id` on every span. Default: `user.id` of BAGGAGE."),
    RunnerSetting("session_id", str, "`session.id` on every span. Default: `session.id` of BAGGAGE."),
    RunnerSetting("tenant_id", str, "`tenant.id` on every span. Default: `tenant.id` of BAGGAGE."),
    RunnerSetting("attributes", pairs, "Further attributes on every span: name=value, separated by commas."),
    RunnerSetting(
        "content",
        one_of(*CONTENTS),
        "Prompts and answers in spans: none, preview (default), or full, with whole model requests.",
    ),
    RunnerSetting(
        "tool_content",
        one_of(*CONTENTS),
        "Tool arguments and MCP results in spans: none (default), preview, or full with 1,000 characters of files and"
        " output.",
    ),
    RunnerSetting("sanitizer", str, "Function from text to text that replaces the sanitizer of both: module:function."),
    RunnerSetting("user", str, "Account of the CLI and its tools; the runner must be root. Default: the runner's own."),
    RunnerSetting(
        "gateway",
        one_of(*GATEWAY_MODES),
        "on: the runner keeps the model's key, and the CLI asks the runner's gateway; auto (default): on if a variable"
        " holds the key.",
    ),
    RunnerSetting(
        "deep_trace",
        on_off,
        "on: spans that the processes of tools export are part of the trace, and model requests carry `traceparent`."
        " Default: off.",
    ),
    RunnerSetting("cli_path", str, "Path of the Claude Code binary. Default: the one in the SDK's package."),
    RunnerSetting(
        "options",
        _options_document,
        "Options of the Claude Agent SDK: a JSON object, or a path to one. Other settings override it.",
    ),
    RunnerSetting("callbacks", read_callbacks, "Tools and hooks whose functions run on the host, as a JSON document."),
    RunnerSetting(
        "messages",
        one_of(*MESSAGE_MODES),
        "on: Claude Code's messages are `message` events, too; partial: its partial messages as well. Default: off.",
    ),
)


def config_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of the CLI's files; the default is not that of a person's Claude Code."""
    return Path(environ.get("CLAUDE_CONFIG_DIR") or Path(environ.get("HOME", "/"), ".sandspan", "claude"))


_BAGGAGE_KEYS = {"user_id": "user.id", "session_id": "session.id", "tenant_id": "tenant.id"}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the options of ``agent_runner run``; none of them has a default."""
    # With abbreviations, a new option could change the meaning of an existing command line.
    parser = argparse.ArgumentParser(prog="agent_runner run", allow_abbrev=False, exit_on_error=False)
    for setting in SETTINGS:
        parser.add_argument(setting.option, help=f"{setting.help} ({setting.variable})".replace("%", "%%"))
    return parser


def load_config(environ: Mapping[str, str], argv: Sequence[str], baggage: Mapping[str, str]) -> Config:
    """Return one run's configuration; raise `ConfigError` for the first bad value.

    An empty variable counts as absent, as in the OpenTelemetry specification. From the baggage only the ids of user,
    session and tenant are used.
    """
    options, unreadable = _options(argv)
    faults = {"content": unreadable} if unreadable else {}  # one may be a misspelt --content
    values: dict[str, Any] = {name: baggage[key] for name, key in _BAGGAGE_KEYS.items() if baggage.get(key)}
    for setting in SETTINGS:
        given = options.get(setting.field)
        name, text = (setting.option, given) if given is not None else (setting.variable, environ.get(setting.variable))
        if text:
            try:
                values[setting.field] = setting.parse(text)
            except ValueError as error:
                shown = name if setting.field == "options" else f"{name}={text[:80]!r}"  # it may hold credentials
                faults.setdefault(setting.field, f"{shown}: {error}")
    if "content" in faults:
        values["content"] = "none"  # the setting that cannot be read may have kept the prompt out of the span
    config = Config(**_with_document(values))
    if faults:
        raise ConfigError(next(iter(faults.values())), config)
    return config


def _with_document(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of settings, of which those that are absent are taken from the document of SDK options."""
    document: SdkOptions | None = values.get("options")
    if document is None:
        return values
    given: dict[str, Any] = {name: getattr(document, name) for name in SHARED}
    for name in _LISTS:
        given[name] = tuple(given[name] or ())
    if document.skills is not None and document.setting_sources is None:
        given["setting_sources"] = ("user", "project")  # as in the SDK, to find skills
    return {**{name: value for name, value in given.items() if value is not None}, **values}


def _options(argv: Sequence[str]) -> tuple[dict[str, str | None], str | None]:
    """Return the options that can be read, and a message about what cannot be read, or None."""
    try:
        known, unknown = arguments().parse_known_args(argv)
    except argparse.ArgumentError as error:
        return {}, str(error)
    return vars(known), f"unknown option {unknown[0]}: see agent_runner run --help" if unknown else None


assert [setting.field for setting in SETTINGS] == [each.name for each in fields(Config)]
