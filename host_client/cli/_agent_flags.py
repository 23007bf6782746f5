"""The flags of `run` and `resume` that describe the agent, and the options of a session that they stand for."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import typer

from agent_runner.contract.sanitize import Content
from agent_runner.contract.sdk_options import FORMS, Effort, SettingSource
from agent_runner.contract.tools import tool_names
from host_client.client.options import AgentOptions, Part, options_from
from host_client.errors import ConfigurationError

from . import _parameters as o
from ._pairs import pairs

FLAG_OF = {
    "system_prompt": "append_system_prompt",
    "mcp_servers": "mcp_config",
    "output_format": "output_schema",
    "output_type": "output_schema",
    "add_dirs": "add_dir",
    "plugins": "plugin",
}
"""The flags that have another name than their option of the SDK."""

_OPTION = re.compile(rf"(?:^|(?<=\. ))({'|'.join((*FORMS, 'output_type'))})(?=\[|: | takes )")
"""The name of an option where messages have it: at their beginning, and before what it takes."""


@dataclass(kw_only=True)
class AgentFlags:
    """One field for each flag; `with_agent_flags` makes them parameters of a command."""

    model: o.Model = None
    fallback_model: Annotated[str | None, typer.Option(help="Model that is asked where the first is overloaded.")] = (
        None
    )
    effort: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(Effort))}.")] = None
    allowed_tools: o.AllowedTools = ""
    disallowed_tools: o.DisallowedTools = ""
    permission_mode: o.PermissionMode = "default"
    append_system_prompt: Annotated[str | None, typer.Option(help="Text that follows Claude Code's system prompt.")] = (
        None
    )
    agents: Annotated[
        str | None, typer.Option(help="Subagents by name, with description and prompt: JSON or a file with it.")
    ] = None
    mcp_config: Annotated[str | None, typer.Option(help="MCP servers, as in .mcp.json: JSON or a file with it.")] = None
    output_schema: Annotated[
        str | None, typer.Option(help="JSON Schema of the agent's answer: JSON or a file with it.")
    ] = None
    setting_sources: Annotated[
        str | None,
        typer.Option(help=f"Settings that it reads, separated by commas: {', '.join(get_args(SettingSource))}."),
    ] = None
    add_dir: Annotated[
        list[str] | None, typer.Option(help="Further directory in the sandbox that it may use; repeatable.")
    ] = None
    plugin: Annotated[list[str] | None, typer.Option(help="Folder of a plugin in the sandbox; repeatable.")] = None
    options: o.Options = None
    attribute: o.Attribute = None
    content: o.Content = "preview"
    tool_content: o.ToolContent = "none"
    deep_trace: o.DeepTrace = False
    max_budget_usd: o.MaxBudgetUsd = None
    max_turns: o.MaxTurns = None
    max_retries: o.MaxRetries = None
    verbatim_prompts: o.VerbatimPrompts = False
    approval_timeout: o.ApprovalTimeout = 300.0
    background_timeout: o.BackgroundTimeout = 600.0

    def agent_options(self, **more: Any) -> AgentOptions:
        """Return the options in the file of ``--options``, and over them the flags that are not at their defaults.

        ``more`` are further fields of `AgentOptions`. Raise `ConfigurationError`.
        """
        try:
            flags = self._without_file(**more)
        except ConfigurationError as error:
            raise ConfigurationError(_as_typed(str(error))) from None
        if self.options is None:
            return flags
        document = _read("--options", self.options)
        try:
            base = options_from(document)
        except ConfigurationError as error:
            raise ConfigurationError(f"--options {self.options}: {error}") from None
        defaults = AgentOptions()
        values = {field.name: getattr(flags, field.name) for field in fields(AgentOptions)}
        given = {name: value for name, value in values.items() if value != getattr(defaults, name)}
        if "output_type" in given:
            given["output_format"] = None
        if self.append_system_prompt is not None and base.system_prompt is not None:
            given["system_prompt"] = self._appended_to(base.system_prompt)
        return replace(base, **given)

    def _appended_to(self, prompt: str | Part) -> dict[str, Any]:
        """Return the system prompt of a file with the text of ``--append-system-prompt`` after it."""
        if isinstance(prompt, str) or prompt["type"] != "preset":
            raise ConfigurationError(
                f"--append-system-prompt follows Claude Code's own system prompt, but --options {self.options} has"
                " another one: add the text there"
            )
        texts = (prompt.get("append"), self.append_system_prompt)
        return {**prompt, "append": "\n\n".join(text for text in texts if text)}

    def _without_file(self, **more: Any) -> AgentOptions:
        return AgentOptions(
            **more,
            model=self.model,
            fallback_model=self.fallback_model,
            effort=cast("Effort | None", self.effort),
            allowed_tools=tool_names(self.allowed_tools),
            disallowed_tools=tool_names(self.disallowed_tools),
            permission_mode=self.permission_mode,
            system_prompt=_appended(self.append_system_prompt),
            agents=_json("--agents", self.agents),
            mcp_servers=_servers(self.mcp_config),
            output_type=_json("--output-schema", self.output_schema),
            setting_sources=_sources(self.setting_sources),
            add_dirs=tuple(self.add_dir) if self.add_dir else None,
            plugins=tuple({"type": "local", "path": path} for path in self.plugin) if self.plugin else None,
            attributes=_attributes(self.attribute),
            content=cast("Content", self.content),
            tool_content=cast("Content", self.tool_content),
            deep_trace=self.deep_trace,
            max_budget_usd=self.max_budget_usd,
            max_turns=self.max_turns,
            max_retries=self.max_retries,
            verbatim_prompts=self.verbatim_prompts,
            approval_timeout=self.approval_timeout,
            background_timeout=self.background_timeout,
        )


def with_agent_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameter ``flags`` is replaced by one parameter for each field of `AgentFlags`."""
    hints = get_type_hints(AgentFlags, include_extras=True)
    names = [field.name for field in fields(AgentFlags)]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "flags":
            parameters += [
                parameter.replace(name=field.name, annotation=hints[field.name], default=field.default)
                for field in fields(AgentFlags)
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def called(**given: Any) -> None:
        flags = AgentFlags(**{name: given.pop(name) for name in names})
        command(**given, flags=flags)

    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _as_typed(message: str) -> str:
    """Return a message with the flag in place of each option's name."""
    return _OPTION.sub(lambda found: f"--{FLAG_OF.get(found[1], found[1]).replace('_', '-')}", message)


def _sources(text: str | None) -> tuple[SettingSource, ...] | None:
    return cast("tuple[SettingSource, ...]", tool_names(text)) if text is not None else None


def _appended(text: str | None) -> dict[str, str] | None:
    return {"type": "preset", "preset": "claude_code", "append": text} if text is not None else None


def _servers(text: str | None) -> Any:
    given = _json("--mcp-config", text) or {}
    return given.get("mcpServers", given)


def _json(option: str, text: str | None) -> dict[str, Any] | None:
    """Return a JSON object that is given as text or as a path; None if it is not given."""
    if text is None:
        return None
    source = text if text.lstrip().startswith("{") else _read(option, Path(text))
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{option}: takes a JSON object or a file with one ({error})") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{option}: takes a JSON object or a file with one, not {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _read(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option} {file}: {error.strerror}") from None


def _attributes(texts: list[str] | None) -> dict[str, str]:
    for text in texts or ():
        if "," in text:
            raise ConfigurationError(f"--attribute {text!r}: takes name=value, without a comma")
    return pairs("--attribute", texts)
