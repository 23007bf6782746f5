"""The bodies of requests that change or ask a running agent: the control commands of the contract, with a `type`."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

import msgspec
from pydantic import Field, RootModel

from agent_runner.contract.protocol import AnyControl
from agent_runner.contract.tools import PermissionMode

from ._models import Name, Rule, StrictModel


class ModelBody(StrictModel):
    """Use another model from the next model request on; without `model` the default one."""

    type: Literal["set_model"]
    model: Name | None = None


class PermissionModeBody(StrictModel):
    """Change the permission mode. `bypassPermissions` is refused in a session that did not begin with it."""

    type: Literal["set_permission_mode"]
    mode: PermissionMode


class TaskBody(StrictModel):
    """Stop a command or subagent that runs, by the `task_id` of its `task` or `subagent_start` event."""

    type: Literal["stop_task"]
    task_id: Name


class RewindBody(StrictModel):
    """Restore the files that the agent's tools changed to their state before a prompt, by its `turn_start` event.

    The session needs the option `enable_file_checkpointing`.
    """

    type: Literal["rewind_files"]
    user_message_id: Name


class ReconnectBody(StrictModel):
    """Connect again to an MCP server that has failed."""

    type: Literal["reconnect_mcp_server"]
    server_name: Rule


class ToggleBody(StrictModel):
    """Disconnect an MCP server and remove its tools, or connect to it again."""

    type: Literal["toggle_mcp_server"]
    server_name: Rule
    enabled: bool


class QuestionBody(StrictModel):
    """Ask for the MCP servers, or for the use of the model's context; the `command_result` event has the answer."""

    type: Literal["get_mcp_status", "get_context_usage"]


_Body = ModelBody | PermissionModeBody | TaskBody | RewindBody | ReconnectBody | ToggleBody | QuestionBody


class ControlBody(RootModel[Annotated[_Body, Field(discriminator="type")]]):
    """A command to the running agent."""


class CommandView(StrictModel):
    """A queued command; the `command_result` event with this id has its outcome."""

    command_id: str


def command_of(body: ControlBody, by: str) -> AnyControl:
    """Return the command of a request, with a new id, and the name of the caller."""
    fields = {**body.root.model_dump(), "command_id": uuid.uuid4().hex, "requested_by": by}
    return msgspec.convert(fields, AnyControl)
