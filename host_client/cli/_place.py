"""Chooses the sandbox of a run from the options and the environment, and the remarks to print about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from host_client.errors import ConfigurationError
from host_client.extras import is_installed, missing, needs
from host_client.sandbox import LocalSandbox, Sandbox

from ._checks import check_credential, check_destinations, check_e2b_key

if TYPE_CHECKING:
    from host_client.sandbox.e2b.keys import KeyMode

KINDS = ("auto", "e2b", "local")
PAUSE = "pause"
_LOGIN = Path("home/.claude/.credentials.json")
"""File in a kept directory that holds a credential if Claude's CLI was logged in there."""
LOCAL_WARNING = "local sandbox: the agent runs on this machine as you, without isolation"


class Place(NamedTuple):
    """A sandbox, and remarks that a person should read before the run."""

    sandbox: Sandbox
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SandboxChoice:
    """The options that concern the sandbox; None for an option that was not given."""

    kind: str = "auto"
    cwd: Path | None = None
    upload: Path | None = None
    keep: str | None = None
    template: str | None = None
    timeout: int | None = None
    allow_out: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    envs: Mapping[str, str] = field(default_factory=dict[str, str])
    keys: str | None = None
    secret_name: str | None = None
    resume: str | None = None
    """Id of a paused sandbox to resume."""
    outlives_host: bool = False
    """True if another process may take the session over."""


def place_of(choice: SandboxChoice, environ: Mapping[str, str]) -> Place:
    """Return the sandbox for a run; raise `ConfigurationError` for conflicting options, then for a missing key."""
    if choice.kind not in KINDS:
        raise ConfigurationError(f"--sandbox takes one of {', '.join(KINDS)}")
    if choice.cwd is not None and choice.upload is not None:
        raise ConfigurationError("--upload and --cwd exclude each other: --cwd takes its folder along by itself")
    if choice.kind == "e2b" or (choice.kind == "auto" and environ.get("E2B_API_KEY")):
        why = " (E2B_API_KEY is set; --sandbox local runs it here)" if choice.kind == "auto" else ""
        return _e2b(choice, environ, why)
    return _local(choice, environ)


def require_local_runner(feature: str, alternative: str = "") -> None:
    """Raise `ConfigurationError` if agents cannot run on this machine because the Claude Agent SDK is missing."""
    if not is_installed("claude_agent_sdk"):
        raise ConfigurationError(missing("claude-agent-sdk", "local", feature) + alternative)


def _local(choice: SandboxChoice, environ: Mapping[str, str]) -> Place:
    given = {
        "--keep pause": choice.keep == PAUSE,
        "--template": choice.template,
        "--timeout": choice.timeout,
        "--allow-out": choice.allow_out,
        "--metadata": choice.metadata,
        "--env": choice.envs,
        "--keys": choice.keys,
        "--secret-name": choice.secret_name,
    }
    for option, value in given.items():
        if value not in (None, False, (), {}):
            raise ConfigurationError(f"{option} is for a sandbox in E2B: set E2B_API_KEY, or give --sandbox e2b")
    require_local_runner("the local sandbox", ", or set E2B_API_KEY")
    keep = Path(choice.keep) if choice.keep is not None else None
    sandbox = LocalSandbox(keep=keep)
    if keep is None or not (keep / _LOGIN).is_file():
        check_credential(environ)
    if choice.cwd is None:
        return Place(sandbox, (LOCAL_WARNING,))
    return Place(sandbox, (LOCAL_WARNING, f"the agent works in {choice.cwd.resolve()} itself, not in a copy"))


def _e2b(choice: SandboxChoice, environ: Mapping[str, str], why: str) -> Place:
    if choice.keep not in (None, PAUSE):
        raise ConfigurationError("--keep takes `pause` for a sandbox in E2B; a directory is for the local one")
    with needs("client", "the sandbox in E2B"):
        from host_client.sandbox.e2b import DEFAULT_TEMPLATE, DEFAULT_TIMEOUT, E2BOptions, E2BSandbox  # takes 0.3 s
        from host_client.sandbox.e2b.keys import ENV_WARNING, KEY_MODES

    keys = "gateway" if choice.keys is None else choice.keys
    if keys not in KEY_MODES:
        raise ConfigurationError(f"--keys takes one of {', '.join(KEY_MODES)}")
    if choice.secret_name is not None and keys != "e2b-secrets":
        raise ConfigurationError("--secret-name requires --keys e2b-secrets: other modes use the key of this host")
    if choice.secret_name == "":
        raise ConfigurationError("--secret-name takes the name of a secret in E2B")
    check_destinations(choice.allow_out)
    options = E2BOptions(
        template=choice.template or DEFAULT_TEMPLATE,
        timeout=DEFAULT_TIMEOUT if choice.timeout is None else choice.timeout,
        allow_out=choice.allow_out,
        metadata=choice.metadata,
        envs=choice.envs,
        keys=cast("KeyMode", keys),
        secret_name=choice.secret_name or "anthropic",
        pause=choice.keep == PAUSE,
        outlives_host=choice.outlives_host,
    )
    check_e2b_key(environ, ", or give --sandbox local")
    if keys != "e2b-secrets":
        check_credential({**choice.envs, **environ} if keys == "env" else environ)
    remark = f"E2B sandbox, template {options.template}{why}"
    sandbox = E2BSandbox(options, environ=environ, resume=choice.resume)
    return Place(sandbox, (remark, ENV_WARNING) if keys == "env" else (remark,))
