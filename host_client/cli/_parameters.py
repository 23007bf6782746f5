"""The options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_runner.contract.tools import PERMISSION_MODES

Model = Annotated[str | None, typer.Option(help="Model id or alias.")]
AllowedTools = Annotated[str, typer.Option(help="Tools and rules that need no approval, with commas.")]
DisallowedTools = Annotated[str, typer.Option(help="Tools and rules that are refused, with commas.")]
PermissionMode = Annotated[str, typer.Option(help=f"One of {', '.join(PERMISSION_MODES)}.")]
Upload = Annotated[Path | None, typer.Option(help="File or folder to copy into the sandbox first.")]
Download = Annotated[Path | None, typer.Option(help="Folder to copy the working directory to, after.")]
Attribute = Annotated[list[str] | None, typer.Option(help="name=value for every span; repeatable.")]
MaxBudgetUsd = Annotated[float | None, typer.Option(help="Most it may cost, in US dollars.")]
MaxTurns = Annotated[int | None, typer.Option(help="Most model requests that may follow tool calls.")]
MaxRetries = Annotated[int | None, typer.Option(help="Most times a failed model request is sent again. Default: 10.")]
Approvals = Annotated[str, typer.Option(help="ask, auto or deny.")]
ApprovalTimeout = Annotated[float, typer.Option(help="Seconds a person has to answer.")]
JsonEvents = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")]
TraceOut = Annotated[Path | None, typer.Option(help="File for the trace, as OTLP JSON.")]

Timeout = Annotated[int | None, typer.Option(help="Seconds it lives in E2B when its host is gone. Default: 300.")]
Keys = Annotated[
    str | None, typer.Option(help="Where the model's key is, in E2B: gateway (default), e2b-secrets, env.")
]
KeysAgain = Annotated[
    str | None,
    typer.Option(
        help="Where the model's key is: gateway, env; e2b-secrets if the session began so. Default: as it began."
    ),
]
SecretName = Annotated[
    str | None,
    typer.Option(help="The E2B secret with the model's key, for --keys e2b-secrets. Default: anthropic."),
]
