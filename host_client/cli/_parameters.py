"""Definitions of the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_runner.contract.tools import PERMISSION_MODES

SandboxKind = Annotated[str, typer.Option(help="e2b, local, or auto: e2b if E2B_API_KEY is set.")]
Template = Annotated[str | None, typer.Option(help="Template in E2B. Default: sandspan.")]
Model = Annotated[str | None, typer.Option(help="Model id or alias.")]
AllowedTools = Annotated[str, typer.Option(help="Tools and rules that need no approval, separated by commas.")]
DisallowedTools = Annotated[str, typer.Option(help="Tools and rules that are refused, separated by commas.")]
PermissionMode = Annotated[str, typer.Option(help=f"One of {', '.join(PERMISSION_MODES)}.")]
VerbatimPrompts = Annotated[
    bool, typer.Option("--verbatim-prompts", help="Read no file for @/path and run no /command in the prompt.")
]
Options = Annotated[
    Path | None,
    typer.Option(help="JSON file with options of the Claude Agent SDK. Flags that are set override it."),
]
Attach = Annotated[
    list[Path] | None,
    typer.Option(help="Image, PDF or text for the prompt, at most 10 MiB in all; repeatable."),
]
Upload = Annotated[Path | None, typer.Option(help="File or folder to copy into the sandbox before the run.")]
Download = Annotated[Path | None, typer.Option(help="Folder to copy the working directory to after the run.")]
Cwd = Annotated[
    Path | None,
    typer.Option(help="Folder to work in: locally itself; in E2B a copy, and what .gitignore names stays here."),
]
CwdMib = Annotated[int, typer.Option(help="Maximum MiB of --cwd, and of its changes.")]
Apply = Annotated[bool, typer.Option("--apply", help="Put the changes on --cwd after a run in E2B that went well.")]
Patch = Annotated[Path | None, typer.Option(help="File for the changes of --cwd, as a patch.")]
Attribute = Annotated[list[str] | None, typer.Option(help="name=value to set on every span; repeatable.")]
MaxBudgetUsd = Annotated[float | None, typer.Option(help="Maximum cost in US dollars.")]
MaxTurns = Annotated[int | None, typer.Option(help="Maximum number of model requests of a turn.")]
MaxRetries = Annotated[int | None, typer.Option(help="Maximum retries of a failed model request. Default: 10.")]
Approvals = Annotated[str, typer.Option(help="ask, auto or deny.")]
ApprovalTimeout = Annotated[float, typer.Option(help="Seconds that a person has to answer.")]
BackgroundTimeout = Annotated[
    float, typer.Option(help="Seconds that the run's end waits for commands and subagents in the background.")
]
Content = Annotated[
    str,
    typer.Option(
        help="Prompts and answers in spans: none, preview (100 characters), or full, with whole model requests."
    ),
]
ToolContent = Annotated[
    str,
    typer.Option(
        help="Tool arguments, MCP results in spans: none, preview, or full, with 1,000 characters of files and output."
    ),
]
DeepTrace = Annotated[
    bool, typer.Option("--deep-trace", help="Add spans that the processes of tools export to the trace.")
]
JsonEvents = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")]
TraceOut = Annotated[Path | None, typer.Option(help="File for the trace, as OTLP JSON.")]

Timeout = Annotated[
    int | None, typer.Option(help="Seconds that the sandbox survives in E2B after the host disconnects. Default: 300.")
]
Keys = Annotated[
    str | None, typer.Option(help="Where the model's key is kept in E2B: gateway (default), e2b-secrets or env.")
]
KeysOfResume = Annotated[
    str | None,
    typer.Option(
        help="Where the model's key is kept: gateway, env, or e2b-secrets if the session began so. Default: as before."
    ),
]
SecretName = Annotated[
    str | None,
    typer.Option(help="Name of the E2B secret with the model's key, for --keys e2b-secrets. Default: anthropic."),
]
