"""The public names in the documentation of f6f5305, and the parameters of each."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import msgspec

NAMES: dict[str, tuple[str, ...]] = {
    "agent_runner": ("__version__",),
    "agent_runner.contract.protocol": (
        *("Answer", "AnyCommand", "AnyEvent", "Approval", "ApprovalRequest", "ApprovalRequestData"),
        *("ApprovalResolved", "ApprovalResolvedData", "COMMAND_TYPES", "Command", "Decision", "ERROR_TYPES"),
        *("EVENT_TYPES", "EXIT_CODES", "End", "EndData", "EndReason", "Error", "ErrorData", "ErrorType", "Event"),
        *("EventData", "Finish", "Interrupt", "Log", "LogData", "MAX_LINE_BYTES", "PROTOCOL_VERSION", "Prompt"),
        *("ProtocolError", "QuestionRequest", "QuestionRequestData", "QuestionResolved", "QuestionResolvedData"),
        *("Result", "ResultData", "Start", "StartData", "Stop", "Telemetry", "TelemetryData", "Text", "TextData"),
        *("TextDelta", "TextDeltaData", "Thinking", "ThinkingData", "ToolResult", "ToolResultData", "ToolUse"),
        *("ToolUseData", "TurnStart", "TurnStartData", "UnknownEvent", "command_schema", "decode_command"),
        *("decode_event", "encode", "event_of", "event_schema", "input_digest"),
    ),
    "host_client": (
        *("AgentOptions", "AgentResult", "LocalSandbox", "Sandbox", "SandspanError", "Session", "Telemetry"),
        *("Whereabouts", "events", "open_session", "run_agent", "take_over"),
    ),
    "host_client.errors": (
        *("AgentError", "ConfigurationError", "FileMissingError", "FileRefusedError", "FileTooLargeError"),
        *("NotAskedError", "NotWaitingError", "RunnerDiedError", "SandboxError", "SandboxGoneError"),
        *("SandboxStartError", "SandspanError", "SessionClosedError", "StreamLostError"),
    ),
    "host_client.sandbox": ("Exit", "LocalSandbox", "Process", "Sandbox", "SandboxInfo"),
    "host_client.sandbox.e2b": ("DEFAULT_TEMPLATE", "DEFAULT_TIMEOUT", "E2BOptions", "E2BSandbox", "Layout"),
    "host_client.scripted_model": (
        *("Script", "ScriptError", "ScriptedModel", "UnexpectedRequestError", "load_script", "parse_script"),
    ),
    "host_client.telemetry": (
        *("OnOwnSpans", "Orphans", "Root", "SamplingConfig", "SessionTrace", "Telemetry", "TelemetryConfig", "Who"),
        *("caller_of", "endpoints", "initialize_telemetry", "root_of", "telemetry_of"),
    ),
    "host_client.telemetry.endpoints": ("Endpoint", "exact", "langfuse", "otlp", "signoz"),
}
"""Names that can be imported from each module."""

USED: dict[str, tuple[str, ...]] = {
    "host_client": (
        *("AgentOptions", "AgentResult", "AgentResult.raise_for_error", "LocalSandbox", "Whereabouts"),
        *("Session.answer", "Session.approve", "Session.close", "Session.deny", "Session.download", "Session.finish"),
        *("Session.interrupt", "Session.read_file", "Session.send", "Session.stop"),
        *("Telemetry.counts", "Telemetry.flush", "Telemetry.shutdown", "open_session", "run_agent", "take_over"),
    ),
    "host_client.sandbox": (
        *("Exit", "SandboxInfo", "Process.close_input", "Process.kill", "Process.output", "Process.terminate"),
        *("Process.wait", "Process.write", "Sandbox.adopt", "Sandbox.close", "Sandbox.create", "Sandbox.download"),
        *("Sandbox.leave", "Sandbox.read_file", "Sandbox.run", "Sandbox.upload"),
    ),
    "host_client.sandbox.e2b": ("E2BOptions", "E2BSandbox", "Layout"),
    "host_client.scripted_model": ("ScriptedModel", "load_script", "parse_script"),
    "host_client.telemetry": (
        *("Root", "SamplingConfig", "TelemetryConfig", "Who", "caller_of", "initialize_telemetry", "root_of"),
        *("telemetry_of",),
    ),
    "host_client.telemetry.endpoints": ("Endpoint", "exact", "langfuse", "otlp", "signoz"),
}
"""Callables that programs use, beside the events and commands of the contract."""

UNDOCUMENTED = ("outlet",)
"""Parameters that only the service passes."""

BASES: dict[str, tuple[str, ...]] = {
    "SandspanError": ("Exception",),
    "ConfigurationError": ("SandspanError", "ValueError"),
    "SandboxError": ("SandspanError",),
    "SandboxStartError": ("SandboxError",),
    "SandboxGoneError": ("SandboxError",),
    "StreamLostError": ("SandboxError",),
    "RunnerDiedError": ("SandboxError",),
    "FileRefusedError": ("SandboxError",),
    "FileMissingError": ("FileRefusedError",),
    "FileTooLargeError": ("FileRefusedError",),
    "SessionClosedError": ("SandspanError",),
    "NotWaitingError": ("SandspanError",),
    "NotAskedError": ("SandspanError", "ValueError"),
    "AgentError": ("SandspanError",),
}
"""Base classes of each error."""

Parameters = dict[str, list[Any]]
"""Parameters by name: whether each is positional, keyword or both, and whether it is optional."""


def taken() -> dict[str, Parameters]:
    """Return the parameters of each public function, class and method by its dotted name."""
    used = {f"{module}.{name}": found(module, name) for module, names in USED.items() for name in names}
    contract = importlib.import_module("host_client").events
    structs = {name: getattr(contract, name) for name in NAMES["agent_runner.contract.protocol"]}
    used |= {f"events.{name}": each for name, each in structs.items() if _is_struct(each)}
    return {name: _parameters(value) for name, value in sorted(used.items())}


def found(module: str, dotted: str) -> Any:
    """Return a member of a module; the module may also be an attribute of its package."""
    package, _, last = module.rpartition(".")
    try:
        value: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        value = getattr(importlib.import_module(package), last)
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _is_struct(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, msgspec.Struct)


def _parameters(value: Any) -> Parameters:
    return {
        name: [parameter.kind.name, parameter.default is not inspect.Parameter.empty]
        for name, parameter in inspect.signature(value).parameters.items()
        if name not in ("self", *UNDOCUMENTED)
    }
