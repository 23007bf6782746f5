"""The options of a session, and the environment, metadata and span attributes that follow from them. Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args
from urllib.parse import quote

import msgspec

from agent_runner.contract.callbacks import MESSAGE_MODES, MessageMode
from agent_runner.contract.sanitize import CONTENTS, Content
from agent_runner.contract.sdk_options import Effort, SdkOptions, SettingSource, convert_options, read_options
from agent_runner.contract.spans import Value
from agent_runner.contract.tools import PERMISSION_MODES
from agent_runner.contract.trace_context import TraceContext
from host_client.environment import MODEL_VARIABLES
from host_client.errors import ConfigurationError
from host_client.sandbox import SandboxInfo
from host_client.telemetry import Who

from ._forms import Form, checked, number, one_of, typed
from ._output import output_form

PASSED_ON = ("OTEL_ENABLED", "OTEL_SDK_DISABLED", "IS_SANDBOX")
"""Variables of the host's environment that are passed to the runner, besides `MODEL_VARIABLES`."""

ApprovalPolicy = Literal["ask", "auto", "deny"]
APPROVAL_POLICIES: tuple[str, ...] = get_args(ApprovalPolicy)

MAX_DOCUMENT = 120_000
"""Maximum bytes of the document with options of the SDK: a variable of Linux has at most 128 KiB."""

Part = Mapping[str, Any]
"""A part of an option of the SDK: a dict as the SDK takes it, or an object with these attributes."""


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """The options of a session: the agent's model, permissions and limits, and its user; every field is optional.

    Options of the Claude Agent SDK have its names and forms (docs/SDK_OPTIONS.md lists all); a path is one in the
    sandbox. `options_from` reads them from a JSON document.

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
    system_prompt: str | Part | None = None
    verbatim_prompts: bool = False
    mcp_config: str | None = None
    mcp_servers: Mapping[str, str | Part] = field(default_factory=dict[str, str | Part])
    """MCP servers: programs and addresses as the SDK takes them, or ``module:attribute`` of one in the runner."""
    require_mcp: bool = False
    resume: str | None = None
    tools: Sequence[str] | Part | None = None
    strict_mcp_config: bool | None = None
    session_id: str | None = None
    """Claude's id of the conversation, which is not the id of the session in traces."""
    fallback_model: str | None = None
    betas: Sequence[str] | None = None
    settings: str | None = None
    add_dirs: Sequence[str] | None = None
    extra_args: Mapping[str, str | None] | None = None
    include_hook_events: bool | None = None
    fork_session: bool | None = None
    resume_session_at: str | None = None
    resume_drops_turn: str | None = None
    agents: Mapping[str, Part | Any] | None = None
    """Subagents by name: dicts, or the SDK's ``AgentDefinition``."""
    setting_sources: Sequence[SettingSource] | None = None
    skills: Sequence[str] | Literal["all"] | None = None
    sandbox: Part | None = None
    plugins: Sequence[Part] | None = None
    max_thinking_tokens: int | None = None
    thinking: Part | None = None
    effort: Effort | None = None
    output_format: Part | None = None
    output_type: Any = None
    """Type of the answer, in place of ``output_format``: a dataclass, a pydantic model, a type, or a JSON Schema."""
    enable_file_checkpointing: bool | None = None
    task_budget: Part | None = None
    client_app: str | None = None
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
    messages: MessageMode = "off"
    """``on`` for ``message`` events with Claude Code's own messages, ``partial`` with partial ones too."""
    deep_trace: bool = False
    """True to make spans that the processes of tools export part of the trace; see docs/RUNNER.md."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Additional variables of the runner's environment; they override all others."""

    def __post_init__(self) -> None:
        for name, form in OPTION_FORMS.items():
            object.__setattr__(self, name, checked(name, getattr(self, name), form))
        for name in ("tools", "betas", "add_dirs", "setting_sources", "skills", "plugins"):
            value: object = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(cast("list[object]", value)))
        _document_text(self.document)  # checks the options in it
        places = ((name, server) for name, server in self.mcp_servers.items() if isinstance(server, str))
        for name, value in (*self.attributes.items(), *places):
            if "," in f"{name}{value}" or "=" in name or not name:
                raise ConfigurationError(f"{name}: names and values cannot hold a comma, names no '='")

    @functools.cached_property
    def document(self) -> SdkOptions:
        """The options that a runner gets in a document, without those that a variable of their own can hold.

        Raise `ConfigurationError` for a bad one.
        """
        given = {name: value for name in _IN_DOCUMENT if (value := getattr(self, name)) is not None}
        if self.output_type is not None:
            if self.output_format is not None:
                raise ConfigurationError(
                    "output_type and output_format exclude each other: output_type makes the format"
                )
            given["output_format"] = {"type": "json_schema", "schema": output_form(self.output_type).schema}
        try:
            document = convert_options(given)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if isinstance(document.system_prompt, str) and document.system_prompt:  # an empty variable would be none
            document = msgspec.structs.replace(document, system_prompt=None)
        if _are_places(self.mcp_servers):
            document = msgspec.structs.replace(document, mcp_servers=None)
        return document


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
    "verbatim_prompts": _SWITCH,
    "mcp_config": Form(
        typed(str | None),
        """MCP servers as JSON, such as '{"calc": {"command": "my-server"}}', or the path of such a file""",
    ),
    "mcp_servers": Form(
        typed(Mapping[str, Any]),
        'servers by name, such as {"search": {"command": "my-server"}, "calc": "my_tools:server"}',
    ),
    "require_mcp": _SWITCH,
    "deep_trace": _SWITCH,
    "messages": Form(one_of(*MESSAGE_MODES), f"one of {', '.join(MESSAGE_MODES)}"),
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
"""The check of each field of `AgentOptions` that `SdkOptions` does not check, by name."""

_VARIABLES = frozenset(OPTION_FORMS) - {"mcp_servers"}
_IN_DOCUMENT = tuple(
    name
    for name in SdkOptions.__struct_fields__
    if name not in _VARIABLES and name in AgentOptions.__dataclass_fields__
)
"""Options that a runner gets in a document; the others have an ``AGENT_*`` variable each, which older runners know."""


def options_from(document: str | bytes, **more: Any) -> AgentOptions:
    """Return the options in a JSON document, under the SDK's names, and ``more`` fields of `AgentOptions`.

    Raise `ConfigurationError` that names the option and says what it takes.
    """
    try:
        given = msgspec.to_builtins(read_options(document))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return AgentOptions(**{**given, **more})


def _are_places(servers: Mapping[str, object]) -> bool:
    """Return whether all servers run in the runner, so that a variable can name them."""
    return all(isinstance(each, str) for each in servers.values())


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
    options: AgentOptions,
    session_id: str,
    environ: Mapping[str, str],
    context: TraceContext,
    info: SandboxInfo,
    callbacks: str | None = None,
) -> dict[str, str]:
    """Return the environment variables of a runner whose spans are children of ``context``.

    ``callbacks`` is the document with the host's tools and hooks.
    """
    env = _configured(options, session_id, environ)
    env.update(TRACEPARENT=context.traceparent, BAGGAGE=_baggage(options, session_id))
    if context.tracestate:
        env["TRACESTATE"] = context.tracestate
    if info.conversation is not None:
        env["AGENT_RESUME"] = info.conversation
    if callbacks is not None:
        env["AGENT_CALLBACKS"] = callbacks
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
        "SYSTEM_PROMPT": options.system_prompt if isinstance(options.system_prompt, str) else None,
        "VERBATIM_PROMPTS": "on" if options.verbatim_prompts else None,
        "MCP_CONFIG": options.mcp_config,
        "MCP_SERVERS": _joined(options.mcp_servers) if _are_places(options.mcp_servers) else None,
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
        "MESSAGES": options.messages if options.messages != "off" else None,
        "OPTIONS": _document_text(options.document),
    }
    env.update({f"AGENT_{name}": str(value) for name, value in settings.items() if value not in (None, "")})
    return {**env, **options.env}


def _document_text(document: SdkOptions) -> str | None:
    if document == SdkOptions():
        return None
    try:
        text = msgspec.json.encode(document).decode()
    except (TypeError, ValueError, RecursionError) as error:  # such as an object in a schema, or half a surrogate pair
        raise ConfigurationError(f"the options of the SDK cannot be sent as JSON: {error}") from None
    if len(text.encode()) > MAX_DOCUMENT:
        raise ConfigurationError(
            f"the options of the SDK have {len(text.encode()):,} bytes as JSON, at most {MAX_DOCUMENT:,} can be sent:"
            " put long texts into files, such as .claude/agents in the working directory"
        )
    return text


def _baggage(options: AgentOptions, session_id: str) -> str:
    """Return the W3C baggage of a session: its user, its tenant and its id."""
    entries = {"user.id": options.user_id, "tenant.id": options.tenant_id, "session.id": session_id}
    return ",".join(f"{name}={quote(value, safe='')}" for name, value in entries.items() if value)


def _joined(pairs: Mapping[str, object]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs.items())
