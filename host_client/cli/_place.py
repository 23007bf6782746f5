"""Where a run takes place: the sandbox that the options and the environment ask for, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from host_client.errors import ConfigurationError
from host_client.extras import is_installed, missing, needs
from host_client.sandbox import LocalSandbox, Sandbox

from ._checks import check_credential, check_destinations

if TYPE_CHECKING:
    from host_client.sandbox.e2b.keys import KeyMode

KINDS = ("auto", "e2b", "local")
PAUSE = "pause"
_LOGIN = Path("home/.claude/.credentials.json")
"""Where somebody may have logged in, in a directory that is kept."""
LOCAL_WARNING = "local sandbox: the agent runs on this machine as you, isolated from nothing"


class Place(NamedTuple):
    """A sandbox, and the remarks a person should read before the run."""

    sandbox: Sandbox
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the options say of the sandbox; None is not said."""

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
    """The id of a paused sandbox."""
    outlives_host: bool = False
    """Another process may take the session over."""


def place_of(wish: Wish, environ: Mapping[str, str]) -> Place:
    """Return where to run; raise `ConfigurationError` for options that do not fit together, then for a missing key."""
    if wish.kind not in KINDS:
        raise ConfigurationError(f"--sandbox takes one of {', '.join(KINDS)}")
    if wish.kind == "e2b" or (wish.kind == "auto" and environ.get("E2B_API_KEY")):
        chosen = " (E2B_API_KEY is set; --sandbox local runs it here)" if wish.kind == "auto" else ""
        return _e2b(wish, environ, chosen)
    return _local(wish, environ)


def require_local_runner(feature: str, alternative: str = "") -> None:
    """Raise `ConfigurationError` if agents cannot run on this machine because the Claude Agent SDK is missing."""
    if not is_installed("claude_agent_sdk"):
        raise ConfigurationError(missing("claude-agent-sdk", "local", feature) + alternative)


def _local(wish: Wish, environ: Mapping[str, str]) -> Place:
    given = {
        "--keep pause": wish.keep == PAUSE,
        "--template": wish.template,
        "--timeout": wish.timeout,
        "--allow-out": wish.allow_out,
        "--metadata": wish.metadata,
        "--env": wish.envs,
        "--keys": wish.keys,
        "--secret-name": wish.secret_name,
    }
    for option, value in given.items():
        if value not in (None, False, (), {}):
            raise ConfigurationError(f"{option} is for a sandbox in E2B: set E2B_API_KEY, or give --sandbox e2b")
    require_local_runner("the local sandbox", ", or set E2B_API_KEY")
    if wish.cwd is not None and wish.upload is not None:
        raise ConfigurationError("--upload and --cwd exclude each other: --cwd uses a directory in place")
    keep = Path(wish.keep) if wish.keep is not None else None
    sandbox = LocalSandbox(work=wish.cwd, keep=keep)
    if keep is None or not (keep / _LOGIN).is_file():
        check_credential(environ)
    return Place(sandbox, (LOCAL_WARNING,))


def _e2b(wish: Wish, environ: Mapping[str, str], chosen: str) -> Place:
    if wish.cwd is not None:
        raise ConfigurationError("--cwd is for the local sandbox: --upload copies a folder into one in E2B")
    if wish.keep not in (None, PAUSE):
        raise ConfigurationError("--keep takes `pause` for a sandbox in E2B; a directory is for the local one")
    with needs("client", "the sandbox in E2B"):
        from host_client.sandbox.e2b import DEFAULT_TEMPLATE, DEFAULT_TIMEOUT, E2BOptions, E2BSandbox  # takes 0.3 s
        from host_client.sandbox.e2b.keys import ENV_WARNING, KEY_MODES

    keys = "gateway" if wish.keys is None else wish.keys
    if keys not in KEY_MODES:
        raise ConfigurationError(f"--keys takes one of {', '.join(KEY_MODES)}")
    if wish.secret_name is not None and keys != "e2b-secrets":
        raise ConfigurationError("--secret-name goes with --keys e2b-secrets: other modes take the key from here")
    if wish.secret_name == "":
        raise ConfigurationError("--secret-name takes the name of a secret in E2B")
    check_destinations(wish.allow_out)
    options = E2BOptions(
        template=wish.template or DEFAULT_TEMPLATE,
        timeout=DEFAULT_TIMEOUT if wish.timeout is None else wish.timeout,
        allow_out=wish.allow_out,
        metadata=wish.metadata,
        envs=wish.envs,
        keys=cast("KeyMode", keys),
        secret_name=wish.secret_name or "anthropic",
        pause=wish.keep == PAUSE,
        outlives_host=wish.outlives_host,
    )
    if not environ.get("E2B_API_KEY"):
        raise ConfigurationError("no key for E2B: set E2B_API_KEY (e2b.dev/dashboard), or give --sandbox local")
    if keys != "e2b-secrets":
        check_credential({**wish.envs, **environ} if keys == "env" else environ)
    remark = f"E2B sandbox, template {options.template}{chosen}"
    sandbox = E2BSandbox(options, environ=environ, resume=wish.resume)
    return Place(sandbox, (remark, ENV_WARNING) if keys == "env" else (remark,))
