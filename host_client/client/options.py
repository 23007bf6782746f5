"""The options of a session, and the environment, metadata and span attributes that follow from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import quote

from agent_runner.contract.sanitize import CONTENTS, Content
from agent_runner.contract.spans import Value
from agent_runner.contract.tools import PERMISSION_MODES
from agent_runner.contract.trace_context import TraceContext
from host_client.environment import MODEL_VARIABLES
from host_client.errors import ConfigurationError
from host_client.sandbox import SandboxInfo
from host_client.telemetry import Who

from ._forms import Form, checked, number, one_of, typed

PASSED_ON = ("OTEL_ENABLED", "OTEL_SDK_DISABLED", "IS_SANDBOX")
"""Variables of the host's environment that are passed to the runner, besides `MODEL_VARIABLES`."""

ApprovalPolicy = Literal["ask", "auto", "deny"]
APPROVAL_POLICIES: tuple[str, ...] = get_args(ApprovalPolicy)


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """The options of a session: the agent's model, permissions and limits, and its user; every field is optional.

    ``attributes`` are set on every span; ``max_budget_usd`` is in US dollars, ``approval_timeout`` in seconds.
    ``max_retries`` is the maximum number of times that a failed model request is sent again; the CLI's default is 10.
    With ``verbatim_prompts`` the text of a prompt reads no file (``@/path``) and runs no slash command (``/name``), as
    texts of third parties need. With ``require_mcp`` a run ends before its first turn if an MCP server cannot be used.
    """

    model: str | None = None
    allowed_tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = ()
    permission_mode: str = "default"
    max_turns: int | None = None
    max_budget_usd: float | None = None
    max_retries: int | None = None
    system_prompt: str | None = None
    verbatim_prompts: bool = False
    mcp_config: str | None = None
    mcp_servers: Mapping[str, str] = field(default_factory=dict[str, str])
    require_mcp: bool = False
    resume: str | None = None
    user_id: str | None = None
    tenant_id: str | None = None
    user_tier: str | None = None
    """Customer class of the user; the sampling configuration can keep a different share of traces for each."""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    approval_timeout: float = 300.0
    background_timeout: float = 600.0
    """Seconds that the end of a run waits for commands and subagents in the background."""
    content: Content = "preview"
    tool_content: Content = "none"
    deep_trace: bool = False
    """True to make spans that the processes of tools export part of the trace; see docs/RUNNER.md."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Additional variables of the runner's environment; they override all others."""

    def __post_init__(self) -> None:
        for name, form in OPTION_FORMS.items():
            object.__setattr__(self, name, checked(name, getattr(self, name), form))
        for name, value in (*self.attributes.items(), *self.mcp_servers.items()):
            if "," in f"{name}{value}" or "=" in name or not name:
                raise ConfigurationError(f"{name}={value}: names and values cannot hold a comma, names no '='")


_TEXT = Form(typed(str | None), "a text")
_SWITCH = Form(typed(bool), "True or False")
_TOOLS = Form(typed(tuple[str, ...]), 'names of tools and rules, such as ("Read", "Bash(git log:*)")')
_CONTENT = Form(one_of(*CONTENTS), f"one of {', '.join(CONTENTS)}")

OPTION_FORMS: dict[str, Form] = {
    "model": _TEXT,
    "allowed_tools": _TOOLS,
    "disallowed_tools": _TOOLS,
    "permission_mode": Form(one_of(*PERMISSION_MODES), f"one of {', '.join(PERMISSION_MODES)}"),
    "max_turns": Form(number(int | None), "a whole number above 0"),
    "max_budget_usd": Form(number(float | None), "a number above 0"),
    "max_retries": Form(number(int | None, zero=True), "a whole number of 0 or more"),
    "system_prompt": _TEXT,
    "verbatim_prompts": _SWITCH,
    "mcp_config": Form(
        typed(str | None),
        """MCP servers as JSON, such as '{"calc": {"command": "my-server"}}', or the path of such a file""",
    ),
    "mcp_servers": Form(
        typed(Mapping[str, str]),
        'names of in-process servers and where each is imported from, such as {"calc": "my_tools:server"}'
        " (other servers go into mcp_config, as JSON)",
    ),
    "require_mcp": _SWITCH,
    "deep_trace": _SWITCH,
    "resume": _TEXT,
    "user_id": _TEXT,
    "tenant_id": _TEXT,
    "user_tier": _TEXT,
    "attributes": Form(typed(Mapping[str, str]), 'names and texts, such as {"org": "acme"}'),
    "approval_timeout": Form(number(float), "a number above 0"),
    "background_timeout": Form(number(float), "a number above 0"),
    "content": _CONTENT,
    "tool_content": _CONTENT,
    "env": Form(typed(Mapping[str, str]), 'names and texts of variables, such as {"LANG": "C.UTF-8"}'),
}
"""The check of each field of `AgentOptions`, by name."""


def common_attributes(options: AgentOptions, session_id: str) -> dict[str, Value]:
    """Return the attributes that every span of a session has."""
    ids = {
        "session.id": session_id,
        "user.id": options.user_id,
        "tenant.id": options.tenant_id,
        "user.tier": options.user_tier,
    }
    return {**options.attributes, **{name: value for name, value in ids.items() if value}}


def who_of(options: AgentOptions, session_id: str) -> Who:
    """Return the user and tenant of a session in the form that telemetry takes."""
    return Who(
        session_id=session_id,
        user_id=options.user_id,
        tenant_id=options.tenant_id,
        tier=options.user_tier,
        model=options.model,
        tools=tuple(rule.partition("(")[0] for rule in options.allowed_tools),
        attributes=dict(options.attributes),
    )


def sandbox_metadata(
    options: AgentOptions, session_id: str, context: TraceContext, prompt: str | None
) -> dict[str, str]:
    """Return the metadata of a session's sandbox: its user and tenant, and what is needed to find and resume it."""
    metadata = {
        "sandspan": "1",
        "session.id": session_id,
        "user.id": options.user_id,
        "tenant.id": options.tenant_id,
        "trace_id": context.trace_id,
        "traceparent": context.traceparent,
        "prompt": prompt,
    }
    return {name: value for name, value in metadata.items() if value}


def runner_environment(
    options: AgentOptions, session_id: str, environ: Mapping[str, str], context: TraceContext, info: SandboxInfo
) -> dict[str, str]:
    """Return the environment variables of a runner whose spans are children of ``context``."""
    env = _configured(options, session_id, environ)
    env.update(TRACEPARENT=context.traceparent, BAGGAGE=_baggage(options, session_id))
    if context.tracestate:
        env["TRACESTATE"] = context.tracestate
    if info.conversation is not None:
        env["AGENT_RESUME"] = info.conversation
    env.update(AGENT_CWD=info.work, AGENT_JOURNAL=info.journal)
    return env


def _configured(options: AgentOptions, session_id: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are passed on from ``environ``, and every option as an ``AGENT_*`` variable."""
    env = {name: environ[name] for name in MODEL_VARIABLES if environ.get(name)}
    env.update({name: environ[name] for name in PASSED_ON if environ.get(name)})
    if options.max_retries is not None:  # a variable of the CLI, which runners of every version pass on
        env["CLAUDE_CODE_MAX_RETRIES"] = str(options.max_retries)
    settings: dict[str, object | None] = {
        "MODEL": options.model,
        "ALLOWED_TOOLS": ",".join(options.allowed_tools),
        "DISALLOWED_TOOLS": ",".join(options.disallowed_tools),
        "PERMISSION_MODE": options.permission_mode,
        "MAX_TURNS": options.max_turns,
        "MAX_BUDGET_USD": options.max_budget_usd,
        "SYSTEM_PROMPT": options.system_prompt,
        "VERBATIM_PROMPTS": "on" if options.verbatim_prompts else None,
        "MCP_CONFIG": options.mcp_config,
        "MCP_SERVERS": _joined(options.mcp_servers),
        "REQUIRE_MCP": "on" if options.require_mcp else None,
        "RESUME": options.resume,
        "APPROVAL_TIMEOUT": options.approval_timeout,
        "BACKGROUND_TIMEOUT": options.background_timeout,
        "SESSION_ID": session_id,
        "USER_ID": options.user_id,
        "TENANT_ID": options.tenant_id,
        "ATTRIBUTES": _joined(options.attributes),
        "CONTENT": options.content,
        "TOOL_CONTENT": options.tool_content,
        "DEEP_TRACE": "on" if options.deep_trace else None,
    }
    env.update({f"AGENT_{name}": str(value) for name, value in settings.items() if value not in (None, "")})
    return {**env, **options.env}


def _baggage(options: AgentOptions, session_id: str) -> str:
    """Return the W3C baggage of a session: its user, its tenant and its id."""
    entries = {"user.id": options.user_id, "tenant.id": options.tenant_id, "session.id": session_id}
    return ",".join(f"{name}={quote(value, safe='')}" for name, value in entries.items() if value)


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs.items())
