"""The runner's configuration: environment and options to one frozen value. Pure.

Every setting is one row of `SETTINGS`; the option wins over the variable. The table in docs/RUNNER.md
is checked against it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from .contract.parsing import count, count_above_zero, number_above_zero, on_off, one_of, pairs
from .contract.sanitize import CONTENTS, Content
from .contract.tools import PERMISSION_MODES, tool_names

SETTING_SOURCES = ("user", "project", "local")


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


class RunnerSetting(NamedTuple):
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


def _sources(value: str) -> tuple[str, ...]:
    return tuple(one_of(*SETTING_SOURCES)(name) for name in tool_names(value))


def _mcp_config(value: str) -> str:
    if not value.lstrip().startswith("{"):
        return value  # a path, which the CLI reads
    try:
        json.loads(value)
    except ValueError as error:
        raise ValueError(f"takes a path or a JSON object ({error})") from None
    return value


SETTINGS = (
    RunnerSetting("prompt", str, "The first turn's prompt. Without one the first `prompt` command begins."),
    RunnerSetting("model", str, "Model id or alias. Default: the CLI's own."),
    RunnerSetting("cwd", str, "The agent's working directory. Default: the runner's own."),
    RunnerSetting("allowed_tools", tool_names, "Tools and rules that need no approval, separated by commas."),
    RunnerSetting("disallowed_tools", tool_names, "Tools and rules that are refused, separated by commas."),
    RunnerSetting("permission_mode", one_of(*PERMISSION_MODES), f"One of {', '.join(PERMISSION_MODES)}."),
    RunnerSetting("max_turns", count_above_zero, "Most model requests of a turn that may follow tool calls."),
    RunnerSetting("max_budget_usd", number_above_zero, "Most the conversation may cost, in US dollars."),
    RunnerSetting("max_retries", count, "Most times a failed model request is sent again. Default: the CLI's own, 10."),
    RunnerSetting("resume", str, "Claude's session id of the conversation to go on with."),
    RunnerSetting(
        "approval_timeout", number_above_zero, "Seconds a person has to answer; then the call is denied. Default: 300."
    ),
    RunnerSetting("journal", str, "File that every event with a seq is appended to. Must not hold events yet."),
    RunnerSetting("system_prompt", str, "Replaces Claude Code's own system prompt."),
    RunnerSetting("setting_sources", _sources, "Settings files the CLI reads: user, project, local. Default: none."),
    RunnerSetting("mcp_config", _mcp_config, "MCP servers: a JSON object as in .mcp.json, or a path to one."),
    RunnerSetting("mcp_servers", pairs, "In-process MCP servers: name=module:attribute, separated by commas."),
    RunnerSetting("user_id", str, "`user.id` on every span. Default: `user.id` of BAGGAGE."),
    RunnerSetting("session_id", str, "`session.id` on every span. Default: `session.id` of BAGGAGE."),
    RunnerSetting("tenant_id", str, "`tenant.id` on every span. Default: `tenant.id` of BAGGAGE."),
    RunnerSetting("attributes", pairs, "Further attributes on every span: name=value, separated by commas."),
    RunnerSetting("content", one_of(*CONTENTS), "Prompts and answers in spans: none, preview (default) or full."),
    RunnerSetting("tool_content", one_of(*CONTENTS), "Tool arguments and MCP results in spans. Default: none."),
    RunnerSetting("sanitizer", str, "Takes our sanitizer's place for them: module:function, from text to text."),
    RunnerSetting(
        "user", str, "Account the CLI and its tools run as; the runner must be root. Default: the runner's own."
    ),
    RunnerSetting(
        "gateway", on_off, "on: the runner keeps the model's key and serves the CLI on loopback. Default: off."
    ),
    RunnerSetting("cli_path", str, "The Claude Code binary. Default: the one in the SDK's package."),
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


def _parsed(setting: RunnerSetting, name: str, text: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text[:80]!r}: {error}") from None


assert [setting.field for setting in SETTINGS] == [each.name for each in fields(Config)]
