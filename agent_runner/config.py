"""The runner's configuration: environment and options to one frozen value. Pure.

Every setting is one row of `SETTINGS`; the option wins over the variable. The table in docs/RUNNER.md
is checked against it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_args

from .sanitize import Content

PERMISSION_MODES = ("default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto")
SETTING_SOURCES = ("user", "project", "local")
CONTENTS: tuple[str, ...] = get_args(Content)


class ConfigError(ValueError):
    """A bad value; the message names the setting and says what it takes."""


@dataclass(frozen=True)
class Config:
    """What one run is to do."""

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
    journal: str | None = None
    system_prompt: str | None = None
    setting_sources: tuple[str, ...] = ()
    mcp_config: str | None = None
    mcp_servers: Mapping[str, str] = field(default_factory=dict[str, str])
    user_id: str | None = None
    session_id: str | None = None
    tenant_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    content: Content = "preview"
    tool_content: Content = "none"
    sanitizer: str | None = None
    user: str | None = None
    gateway: bool = False
    cli_path: str | None = None


class Setting(NamedTuple):
    """One row: the field, how its text is read, and what it means."""

    field: str
    parse: Callable[[str], Any]
    help: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"AGENT_{self.field.upper()}"

    @property
    def option(self) -> str:
        """The command-line option."""
        return "--" + self.field.replace("_", "-")


def _text(value: str) -> str:
    return value


def tool_names(value: str) -> tuple[str, ...]:
    """Split a list of tools and rules at commas that stand outside parentheses: a rule is ``Bash(git log:*)``."""
    names, depth, current = list[str](), 0, ""
    for character in value:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            names.append(current.strip())
            current = ""
        else:
            current += character
    names.append(current.strip())
    return tuple(name for name in names if name)


def _pairs(value: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in value.split(","):
        name, separator, text = pair.partition("=")
        if not separator or not name.strip():
            raise ValueError("takes name=value pairs, separated by commas")
        pairs[name.strip()] = text.strip()
    return pairs


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"takes one of {', '.join(allowed)}")
        return value

    return parse


def _switch(value: str) -> bool:
    return _one_of("on", "off")(value) == "on"


def _sources(value: str) -> tuple[str, ...]:
    return tuple(_one_of(*SETTING_SOURCES)(name) for name in tool_names(value))


def _count(value: str) -> int:
    return _number(value, int, "a whole number above 0")


def _retries(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("takes a whole number of 0 or more")
    return int(value)


def _amount(value: str) -> float:
    return _number(value, float, "a number above 0")


def _number(value: str, kind: Callable[[str], Any], what: str) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ValueError(f"takes {what}")
    return number


def _mcp_config(value: str) -> str:
    if not value.lstrip().startswith("{"):
        return value  # a path, which the CLI reads
    try:
        json.loads(value)
    except ValueError as error:
        raise ValueError(f"takes a path or a JSON object ({error})") from None
    return value


SETTINGS = (
    Setting("prompt", _text, "The first turn's prompt. Without one the first `prompt` command begins."),
    Setting("model", _text, "Model id or alias. Default: the CLI's own."),
    Setting("cwd", _text, "The agent's working directory. Default: the runner's own."),
    Setting("allowed_tools", tool_names, "Tools and rules that need no approval, separated by commas."),
    Setting("disallowed_tools", tool_names, "Tools and rules that are refused, separated by commas."),
    Setting("permission_mode", _one_of(*PERMISSION_MODES), f"One of {', '.join(PERMISSION_MODES)}."),
    Setting("max_turns", _count, "Most model requests of a turn that may follow tool calls."),
    Setting("max_budget_usd", _amount, "Most the conversation may cost, in US dollars."),
    Setting("max_retries", _retries, "Most times a failed model request is sent again. Default: the CLI's own, 10."),
    Setting("resume", _text, "Claude's session id of the conversation to go on with."),
    Setting("approval_timeout", _amount, "Seconds a person has to answer; then the call is denied. Default: 300."),
    Setting("journal", _text, "File that every event with a seq is appended to. Must not hold events yet."),
    Setting("system_prompt", _text, "Replaces Claude Code's own system prompt."),
    Setting("setting_sources", _sources, "Settings files the CLI reads: user, project, local. Default: none."),
    Setting("mcp_config", _mcp_config, "MCP servers: a JSON object as in .mcp.json, or a path to one."),
    Setting("mcp_servers", _pairs, "In-process MCP servers: name=module:attribute, separated by commas."),
    Setting("user_id", _text, "`user.id` on every span. Default: `user.id` of BAGGAGE."),
    Setting("session_id", _text, "`session.id` on every span. Default: `session.id` of BAGGAGE."),
    Setting("tenant_id", _text, "`tenant.id` on every span. Default: `tenant.id` of BAGGAGE."),
    Setting("attributes", _pairs, "Further attributes on every span: name=value, separated by commas."),
    Setting("content", _one_of(*CONTENTS), "Prompts and answers in spans: none, preview (default) or full."),
    Setting("tool_content", _one_of(*CONTENTS), "Tool arguments and MCP results in spans. Default: none."),
    Setting("sanitizer", _text, "Takes our sanitizer's place for them: module:function, from text to text."),
    Setting("user", _text, "Account the CLI and its tools run as; the runner must be root. Default: the runner's own."),
    Setting("gateway", _switch, "on: the runner keeps the model's key and serves the CLI on loopback. Default: off."),
    Setting("cli_path", _text, "The Claude Code binary. Default: the one in the SDK's package."),
)

_BAGGAGE_KEYS = {"user_id": "user.id", "session_id": "session.id", "tenant_id": "tenant.id"}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of ``agent_runner run``; each option's default is absence."""
    # Prefixes would make a later option change the meaning of an earlier command line.
    parser = argparse.ArgumentParser(prog="agent_runner run", allow_abbrev=False, exit_on_error=False)
    for setting in SETTINGS:
        parser.add_argument(setting.option, help=f"{setting.help} ({setting.variable})".replace("%", "%%"))
    return parser


def load_config(environ: Mapping[str, str], argv: Sequence[str], baggage: Mapping[str, str]) -> Config:
    """Read one run's configuration; raise `ConfigError` for the first bad value.

    An empty variable counts as absent, as in the OpenTelemetry specification. Of the baggage only the
    ids of user, session and tenant are taken.
    """
    options = _options(argv)
    values: dict[str, Any] = {name: baggage[key] for name, key in _BAGGAGE_KEYS.items() if baggage.get(key)}
    for setting in SETTINGS:
        given = options.get(setting.field)
        name, text = (setting.option, given) if given is not None else (setting.variable, environ.get(setting.variable))
        if text:
            values[setting.field] = _parsed(setting, name, text)
    return Config(**values)


def _options(argv: Sequence[str]) -> dict[str, str | None]:
    try:
        known, unknown = arguments().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}: see agent_runner run --help")
    return vars(known)


def _parsed(setting: Setting, name: str, text: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text[:80]!r}: {error}") from None


assert [setting.field for setting in SETTINGS] == [each.name for each in fields(Config)]
