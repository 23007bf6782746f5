"""What a host asks of a run, and the environment that tells the runner so. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from agent_runner.config import CONTENTS, PERMISSION_MODES
from agent_runner.sanitize import Content

from .errors import ConfigurationError
from .forms import Form, checked, number, one_of, typed

MODEL_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_MAX_RETRIES",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "API_TIMEOUT_MS",
)
PASSED_ON = ("OTEL_ENABLED", "OTEL_SDK_DISABLED", "IS_SANDBOX")
"""Of the host's own environment only these and the model's go into a sandbox."""

CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
"""Those of them that the model's API takes for a key."""

ApprovalPolicy = Literal["ask", "auto", "deny"]
APPROVAL_POLICIES: tuple[str, ...] = get_args(ApprovalPolicy)


def state_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return where this user's state belongs, as the XDG base directory specification has it; None for nobody's."""
    base, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "sandspan" / name
    return Path(home) / ".local" / "state" / "sandspan" / name if Path(home).is_absolute() else None


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """What an agent may do and on whose behalf; every field is optional.

    ``attributes`` go on every span; ``max_budget_usd`` is in US dollars, ``approval_timeout`` in seconds.
    ``max_retries`` is how often a model request that failed is sent again; the CLI's own default is 10.
    """

    model: str | None = None
    allowed_tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = ()
    permission_mode: str = "default"
    max_turns: int | None = None
    max_budget_usd: float | None = None
    max_retries: int | None = None
    system_prompt: str | None = None
    mcp_config: str | None = None
    mcp_servers: Mapping[str, str] = field(default_factory=dict[str, str])
    resume: str | None = None
    user_id: str | None = None
    tenant_id: str | None = None
    user_tier: str | None = None
    """Decides, with the sampling configuration, which share of this user's traces is kept."""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    approval_timeout: float = 300.0
    content: Content = "preview"
    tool_content: Content = "none"
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further variables of the runner's environment; they win over all others."""

    def __post_init__(self) -> None:
        for name, form in OPTION_FORMS.items():
            object.__setattr__(self, name, checked(name, getattr(self, name), form))
        for name, value in (*self.attributes.items(), *self.mcp_servers.items()):
            if "," in f"{name}{value}" or "=" in name or not name:
                raise ConfigurationError(f"{name}={value}: names and values cannot hold a comma, names no '='")


_TEXT = Form(typed(str | None), "a text")
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
    "mcp_config": Form(
        typed(str | None),
        """MCP servers as JSON, such as '{"calc": {"command": "my-server"}}', or the path of such a file""",
    ),
    "mcp_servers": Form(
        typed(Mapping[str, str]),
        'names of in-process servers and where each is imported from, such as {"calc": "my_tools:server"}'
        " (other servers go into mcp_config, as JSON)",
    ),
    "resume": _TEXT,
    "user_id": _TEXT,
    "tenant_id": _TEXT,
    "user_tier": _TEXT,
    "attributes": Form(typed(Mapping[str, str]), 'names and texts, such as {"org": "acme"}'),
    "approval_timeout": Form(number(float), "a number above 0"),
    "content": _CONTENT,
    "tool_content": _CONTENT,
    "env": Form(typed(Mapping[str, str]), 'names and texts of variables, such as {"LANG": "C.UTF-8"}'),
}
"""Every field of `AgentOptions`."""


def runner_environment(options: AgentOptions, session_id: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a runner: the model's from ``environ``, and every option as ``AGENT_*``."""
    env = {name: environ[name] for name in MODEL_VARIABLES if environ.get(name)}
    env.update({name: environ[name] for name in PASSED_ON if environ.get(name)})
    if options.max_retries is not None:  # the CLI's own variable, which runners of every version hand on
        env["CLAUDE_CODE_MAX_RETRIES"] = str(options.max_retries)
    settings: dict[str, object | None] = {
        "MODEL": options.model,
        "ALLOWED_TOOLS": ",".join(options.allowed_tools),
        "DISALLOWED_TOOLS": ",".join(options.disallowed_tools),
        "PERMISSION_MODE": options.permission_mode,
        "MAX_TURNS": options.max_turns,
        "MAX_BUDGET_USD": options.max_budget_usd,
        "SYSTEM_PROMPT": options.system_prompt,
        "MCP_CONFIG": options.mcp_config,
        "MCP_SERVERS": _joined(options.mcp_servers),
        "RESUME": options.resume,
        "APPROVAL_TIMEOUT": options.approval_timeout,
        "SESSION_ID": session_id,
        "USER_ID": options.user_id,
        "TENANT_ID": options.tenant_id,
        "ATTRIBUTES": _joined(options.attributes),
        "CONTENT": options.content,
        "TOOL_CONTENT": options.tool_content,
    }
    env.update({f"AGENT_{name}": str(value) for name, value in settings.items() if value not in (None, "")})
    return {**env, **options.env}


def baggage(options: AgentOptions, session_id: str) -> str:
    """Return the W3C baggage that goes with a run: who it is for."""
    entries = {"user.id": options.user_id, "tenant.id": options.tenant_id, "session.id": session_id}
    return ",".join(f"{name}={quote(value, safe='')}" for name, value in entries.items() if value)


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs.items())
