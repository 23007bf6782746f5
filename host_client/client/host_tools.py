"""Tools whose functions run on the host: the agent calls them, and no credential of theirs enters the sandbox."""

from __future__ import annotations

import contextvars
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast, overload

from agent_runner.contract.callbacks import SERVER, Seconds, ToolDefinition
from host_client.errors import ConfigurationError

from ._forms import Form, checked, typed
from ._output import object_form
from ._tool_arguments import ArgumentsForm, form_of_function, form_of_types

TOOL_SECONDS = 60.0
"""Seconds that a call may take by default."""

SECONDS = Form(typed(Seconds), "seconds above 0, at most 86,400")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SdkTool(Protocol):
    """A tool made by the Claude Agent SDK's ``@tool``; its ``handler`` takes the arguments in a dict."""

    name: str
    description: str
    input_schema: Any
    handler: Any


AnyTool = Callable[..., Any] | SdkTool
"""A tool as `open_session` takes it: a function, a `HostTool`, or one of the SDK."""

Call = Callable[[], Any]
"""A call of a function with its arguments; it returns a value or an awaitable."""


@dataclass(frozen=True, eq=False)
class HostTool:
    """A tool whose function runs on the host; it can still be called as the function. See `host_tool`."""

    name: str
    description: str
    input_schema: dict[str, Any]
    function: Callable[..., Any]
    prepare: Callable[[Mapping[str, Any]], Call] = field(repr=False)
    """Return the call with the agent's arguments; raise an error that the model can read if they do not fit."""
    timeout: float = TOOL_SECONDS
    idempotent: bool = False
    annotations: dict[str, Any] | None = None
    """Annotations of MCP, such as ``{"readOnlyHint": True}``."""
    server: str = SERVER
    """Name of the MCP server that offers the tool: the agent calls it ``mcp__<server>__<name>``."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"the host tool {self.name!r} needs another name: 1 to 64 letters, digits, '_' and '-' (name=…)"
            )
        if not self.description.strip():
            raise ConfigurationError(f"the host tool {self.name} needs a docstring or description=… for the model")
        checked(f"the timeout of the host tool {self.name}", self.timeout, SECONDS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def definition(self) -> ToolDefinition:
        """Return the part of the tool that the runner gets."""
        return ToolDefinition(
            name=self.name,
            description=self.description,
            input_schema=self.input_schema,
            timeout=self.timeout,
            annotations=self.annotations,
            server=self.server,
        )


@dataclass(frozen=True, kw_only=True)
class HostCall:
    """A call that the agent has made; `current_call` returns the one that a function runs for."""

    session_id: str
    name: str
    """Name of the tool, or the event of the hook."""
    tool_use_id: str | None
    idempotency_key: str
    """The same if the call is made again after the host was restarted; pass it on to a service that takes one."""
    deadline: float
    """When the agent stops waiting, in seconds since the epoch."""


_CURRENT = contextvars.ContextVar[HostCall]("host_call")


def current_call() -> HostCall:
    """Return the call that this function runs for, also in its thread; raise `LookupError` outside of one."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise LookupError("current_call() was called outside of a host tool or hook") from None


def begin_call(call: HostCall) -> None:
    """Make a call the current one of this task."""
    _CURRENT.set(call)


@overload
def host_tool(function: Callable[..., Any], /) -> HostTool: ...


@overload
def host_tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TOOL_SECONDS,
    idempotent: bool = False,
    read_only: bool = False,
) -> Callable[[Callable[..., Any]], HostTool]: ...


def host_tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TOOL_SECONDS,
    idempotent: bool = False,
    read_only: bool = False,
) -> HostTool | Callable[[Callable[..., Any]], HostTool]:
    """Make a tool for the agent of a function, sync or async; a decorator, with or without arguments.

    The model gets the function's name and docstring, and the types of its parameters as a JSON Schema, with the
    descriptions in ``Annotated[…, "text"]``. It gets what the function returns: a text, an image as bytes, a list with
    images, MCP's ``{"content": […]}``, or any other value as JSON. It also gets the text of an exception, as the error
    of its call; the traceback goes to the host's log.

    A call ends ``timeout`` seconds after it was made. A sync function runs in a thread: it goes on then, and the
    process does not end before it.
    An ``idempotent`` tool is called again if the host was killed meanwhile, any other one fails (`current_call`).
    ``read_only`` tells Claude Code that the tool changes nothing, so that calls of it may run side by side.
    Arguments come from the sandbox: check them as if they came from the internet. Raise `ConfigurationError`.
    """

    def tool_of(function: Callable[..., Any]) -> HostTool:
        own = name or getattr(function, "__name__", type(function).__name__)
        about = (inspect.getdoc(function) or "") if description is None else description
        try:
            form = form_of_function(function)
        except ValueError as error:
            raise ConfigurationError(f"{own} cannot be a host tool: {error}") from None

        def prepare(arguments: Mapping[str, Any]) -> Call:
            return partial(function, **form.read(arguments))

        hints = {"readOnlyHint": True} if read_only else None
        return HostTool(own, about, form.schema, function, prepare, timeout, idempotent, hints)

    return tool_of if function is None else tool_of(function)


def as_host_tool(given: object) -> HostTool:
    """Return the tool of a function, a `HostTool`, or a tool of the SDK's ``@tool``; raise `ConfigurationError`."""
    if isinstance(given, HostTool):
        return given
    if all(hasattr(given, name) for name in ("name", "description", "input_schema", "handler")):
        return _of_sdk(given)
    if callable(given) and not isinstance(given, type):
        return host_tool(given)
    raise ConfigurationError(f"host_tools takes functions, such as [search_orders], not {given!r:.100}")


def _of_sdk(tool: Any) -> HostTool:
    """Return the tool of an ``SdkMcpTool``, whose function takes all arguments in a dict, as they were sent."""
    try:
        form = _form_of_sdk(tool.input_schema)
    except ValueError as error:
        raise ConfigurationError(f"{tool.name} cannot be a host tool: {error}") from None

    def prepare(arguments: Mapping[str, Any]) -> Call:
        form.read(arguments)
        return partial(tool.handler, dict(arguments))

    hints = getattr(tool, "annotations", None)
    return HostTool(
        name=tool.name,
        description=tool.description,
        input_schema=form.schema,
        function=tool.handler,
        prepare=prepare,
        annotations=hints.model_dump(by_alias=True, exclude_none=True) if hints is not None else None,
    )


def _form_of_sdk(schema: Any) -> ArgumentsForm:
    """Return the form of arguments that the SDK's ``@tool`` takes: a JSON Schema, types by name, or a TypedDict."""
    if isinstance(schema, Mapping):
        given = cast("Mapping[str, Any]", schema)
        if isinstance(given.get("type"), str):  # arguments are checked against it in the sandbox alone
            return ArgumentsForm({"properties": {}, **given}, dict)
        return form_of_types(given)
    form = object_form(schema)
    return ArgumentsForm(form.schema, form.read)
