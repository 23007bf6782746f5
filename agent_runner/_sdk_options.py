"""Convert the configuration to options of the Claude Agent SDK."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from claude_agent_sdk import AgentDefinition, CanUseTool, ClaudeAgentOptions, HookMatcher
from claude_agent_sdk.types import HookCallback, HookEvent, PermissionMode, SettingSource

from ._config import SHARED, Config, ConfigError, config_directory
from ._span_settings import imported
from .contract.sdk_options import SdkOptions
from .contract.trace_context import TraceContext

MAX_MESSAGE = 128 * 1024 * 1024
"""Maximum bytes of a message of the CLI, above which the SDK ends the run; the SDK's default is 1 MiB."""

# Variables hidden from the agent: they hold ids of tenants and users, and headers with credentials.
_PRIVATE = re.compile(r"AGENT_|OTEL_|BAGGAGE$")

_SET_HERE = {*SHARED, "env", "include_hook_events", "strict_mcp_config"}
"""Options of the document that `agent_options` reads itself."""


def agent_options(
    config: Config,
    environ: Mapping[str, str],
    context: TraceContext,
    *,
    can_use_tool: CanUseTool,
    on_tool_end: HookCallback,
    on_stderr: Callable[[str], None],
    host_servers: Mapping[str, Any],
    host_hooks: Mapping[HookEvent, Sequence[HookMatcher]],
    partial_messages: bool,
    deep_environ: Mapping[str, str],
) -> ClaudeAgentOptions:
    """Return the SDK's options; raise `ConfigError` if the directory or an MCP server is not found.

    ``environ`` is the CLI's environment, to which the SDK adds the other variables of this process, and
    ``deep_environ`` are variables that override it. ``host_servers`` and ``host_hooks`` call the host. There is no
    PreToolUse hook of our own: it would take 2 ms per call, and the stream already has the time when a call begins.
    """
    if config.cwd is not None and not Path(config.cwd).is_dir():
        raise ConfigError(f"AGENT_CWD={config.cwd[:80]!r}: not a directory")
    _check_permission_mode(config, environ)
    own_hook = HookMatcher(hooks=[on_tool_end])
    hooks: dict[HookEvent, list[HookMatcher]] = {"PostToolUse": [own_hook], "PostToolUseFailure": [own_hook]}
    for event, matchers in host_hooks.items():
        hooks[event] = [*hooks.get(event, ()), *matchers]
    return ClaudeAgentOptions(
        **_further(config.options),
        model=config.model,
        cwd=config.cwd,
        allowed_tools=list(config.allowed_tools),
        disallowed_tools=list(config.disallowed_tools),
        permission_mode=cast("PermissionMode", config.permission_mode),
        max_turns=config.max_turns,
        max_budget_usd=config.max_budget_usd,
        resume=config.resume,
        system_prompt=_system_prompt(config),
        verbatim_prompts=config.verbatim_prompts,
        setting_sources=cast("list[SettingSource]", list(config.setting_sources)),
        mcp_servers=cast("Any", _mcp_servers(config, host_servers)),
        # The folder of a project is not trusted to start programs.
        strict_mcp_config=config.options.strict_mcp_config is not False,
        env={**_environment(config, environ, context), **deep_environ},
        cli_path=config.cli_path,
        user=config.user,
        can_use_tool=can_use_tool,
        hooks=hooks,
        include_partial_messages=partial_messages,
        include_hook_events=_has_hooks(config),
        forward_subagent_text=True,
        max_buffer_size=MAX_MESSAGE,
        stderr=on_stderr,
    )


def _further(options: SdkOptions) -> dict[str, Any]:
    """Return the options that have no setting of their own, in the SDK's types; those that are not set are missing."""
    given = {name: value for name, value in msgspec.to_builtins(options).items() if name not in _SET_HERE}
    if "agents" in given:
        given["agents"] = {name: AgentDefinition(**agent) for name, agent in given["agents"].items()}
    return given


def _system_prompt(config: Config) -> Any:
    if config.system_prompt is None:
        return {"type": "preset", "preset": "claude_code"}
    return msgspec.to_builtins(config.system_prompt)


def _has_hooks(config: Config) -> bool:
    """Return whether there may be hooks besides ours, whose time is measured."""
    options = config.options
    return bool(config.setting_sources or options.settings or options.plugins or options.include_hook_events)


def _check_permission_mode(config: Config, environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` for bypassPermissions as root outside a sandbox, for which the CLI ends at once."""
    is_root = os.getuid() == 0 and config.user is None
    is_sandbox = environ.get("IS_SANDBOX") == "1" or bool(environ.get("CLAUDE_CODE_BUBBLEWRAP"))
    if config.permission_mode == "bypassPermissions" and is_root and not is_sandbox:
        raise ConfigError(
            "permission mode bypassPermissions: Claude Code does not take it from root. Set IS_SANDBOX=1 if this"
            " machine is a sandbox that may be damaged, or run as another account"
        )


def _environment(config: Config, environ: Mapping[str, str], context: TraceContext) -> dict[str, str]:
    env = {
        **environ,
        "CLAUDE_CONFIG_DIR": str(config_directory(environ)),
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": environ.get("CLAUDE_CODE_DISABLE_AUTO_MEMORY", "1"),
        # The events show whether another turn follows: the CLI begins one when a background agent ends.
        "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
        "TRACEPARENT": context.traceparent,
        "TRACESTATE": context.tracestate,
    }
    if config.max_retries is not None:
        env["CLAUDE_CODE_MAX_RETRIES"] = str(config.max_retries)
    env.pop("CLAUDECODE", None)  # as the SDK does: the variable marks a CLI that runs inside another
    own_telemetry = environ.get("CLAUDE_CODE_ENABLE_TELEMETRY") not in (None, "", "0")
    for name in environ:
        if _PRIVATE.match(name) and not (own_telemetry and name.startswith("OTEL_")):
            env[name] = ""
    return env


def _mcp_servers(config: Config, host_servers: Mapping[str, Any]) -> dict[str, Any]:
    """Return all MCP servers by name; raise `ConfigError` if one has the name of another that calls the host."""
    servers: dict[str, Any] = _external_servers(config.mcp_config) if config.mcp_config else {}
    for name, server in config.mcp_servers.items():
        is_place = isinstance(server, str)
        servers[name] = imported(f"AGENT_MCP_SERVERS: {name}", server) if is_place else msgspec.to_builtins(server)
    if taken := servers.keys() & host_servers.keys():
        raise ConfigError(f"the MCP server {taken.pop()!r} has the name of the server with the host's tools: rename it")
    return {**servers, **host_servers}


def _external_servers(source: str) -> dict[str, Any]:
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text()
        given = json.loads(text)
        servers = given.get("mcpServers", given)
        return {str(name): dict(server) for name, server in servers.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"AGENT_MCP_CONFIG={source[:80]!r}: cannot be read as MCP servers: {error}") from None
