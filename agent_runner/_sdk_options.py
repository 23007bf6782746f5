"""Convert the configuration to options of the Claude Agent SDK."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from claude_agent_sdk import CanUseTool, ClaudeAgentOptions, HookMatcher
from claude_agent_sdk.types import HookCallback, PermissionMode, SettingSource

from ._config import Config, ConfigError, config_directory
from ._messages import ModelUsage, model_usage
from ._span_settings import imported
from .contract.trace_context import TraceContext

MAX_MESSAGE = 128 * 1024 * 1024
"""Maximum bytes of a message of the CLI, above which the SDK ends the run; the SDK's default is 1 MiB."""

# Variables hidden from the agent: they hold ids of tenants and users, and headers with credentials.
_PRIVATE = re.compile(r"AGENT_|OTEL_|BAGGAGE$")

# The text in place of an MCP result that is too long for the model.
_SAVED = re.compile(r"Error: result \([^\n]*exceeds maximum allowed tokens\. Output has been saved to ([^\n]+)\.\n")


def agent_options(
    config: Config,
    environ: Mapping[str, str],
    context: TraceContext,
    *,
    can_use_tool: CanUseTool,
    on_tool_end: HookCallback,
    on_stderr: Callable[[str], None],
    partial_messages: bool,
    deep_environ: Mapping[str, str],
) -> ClaudeAgentOptions:
    """Return the SDK's options; raise `ConfigError` if the directory or an MCP server is not found.

    ``environ`` is the CLI's environment, to which the SDK adds the other variables of this process, and
    ``deep_environ`` are variables that override it. There is no PreToolUse hook: it would take 2 ms per call, and the
    stream already has the time when a call begins.
    """
    if config.cwd is not None and not Path(config.cwd).is_dir():
        raise ConfigError(f"AGENT_CWD={config.cwd[:80]!r}: not a directory")
    _check_permission_mode(config, environ)
    hook = HookMatcher(hooks=[on_tool_end])
    return ClaudeAgentOptions(
        model=config.model,
        cwd=config.cwd,
        allowed_tools=list(config.allowed_tools),
        disallowed_tools=list(config.disallowed_tools),
        permission_mode=cast("PermissionMode", config.permission_mode),
        max_turns=config.max_turns,
        max_budget_usd=config.max_budget_usd,
        resume=config.resume,
        system_prompt=config.system_prompt or {"type": "preset", "preset": "claude_code"},
        verbatim_prompts=config.verbatim_prompts,
        setting_sources=cast("list[SettingSource]", list(config.setting_sources)),
        mcp_servers=cast("Any", _mcp_servers(config)),
        strict_mcp_config=True,
        env={**_environment(config, environ, context), **deep_environ},
        cli_path=config.cli_path,
        user=config.user,
        can_use_tool=can_use_tool,
        hooks={"PostToolUse": [hook], "PostToolUseFailure": [hook]},
        include_partial_messages=partial_messages,
        # Only settings can add hooks to ours, and their time is measured.
        include_hook_events=bool(config.setting_sources),
        forward_subagent_text=True,
        max_buffer_size=MAX_MESSAGE,
        stderr=on_stderr,
    )


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


def _mcp_servers(config: Config) -> dict[str, Any]:
    servers: dict[str, Any] = _external_servers(config.mcp_config) if config.mcp_config else {}
    for name, place in config.mcp_servers.items():
        servers[name] = imported(f"AGENT_MCP_SERVERS: {name}", place)
    return servers


def _external_servers(source: str) -> dict[str, Any]:
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text()
        given = json.loads(text)
        servers = given.get("mcpServers", given)
        return {str(name): dict(server) for name, server in servers.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"AGENT_MCP_CONFIG={source[:80]!r}: cannot be read as MCP servers: {error}") from None


class Spent(NamedTuple):
    """The cost in US dollars and the usage by model of a conversation before it is resumed."""

    cost: float
    usage: ModelUsage


def resumed_cost(environ: Mapping[str, str], session_id: str) -> Spent | None:
    """Return the past cost and usage of a conversation that is resumed, or None if they are not known.

    The CLI reports sums that include them, so a resumed run's cost is a difference. The CLI keeps the sums in the
    conversation's transcript, in lines of type ``cost-state``.
    """
    if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", session_id):
        return None
    spent = None
    for transcript in config_directory(environ).glob(f"projects/*/{session_id}.jsonl"):
        for line in _regular_file(transcript).split(b"\n"):
            if b'"cost-state"' in line[:200]:
                state = json.loads(line)
                spent = Spent(float(state["totalCostUSD"]), model_usage(dict(state.get("modelUsage") or {})))
    if spent is not None and not 0 <= spent.cost < math.inf:
        raise ValueError(f"{spent.cost} is not a cost")
    return spent


def saved_size(output: object, directory: Path) -> int:
    """Return the size in bytes of a long MCP result that the CLI has saved in its ``directory``; 0 for other output."""
    found = _SAVED.match(output) if isinstance(output, str) else None
    if found is None or not Path(found[1]).is_relative_to(directory) or ".." in Path(found[1]).parts:
        return 0
    try:
        return os.lstat(found[1]).st_size
    except OSError:
        return 0


def _regular_file(path: Path) -> bytes:
    """Return a regular file's content. The agent may have made the file, so links and pipes are refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return file.read()
