"""Checks of a command's prompt, paths, hosts and keys, before anything is created."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from agent_runner.contract.credentials import CREDENTIALS
from host_client.client.attachments import read_prompt
from host_client.errors import ConfigurationError

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
# The last label must not be a number: 1.2.3 is a mistyped address.
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*(?![0-9]+$){_LABEL}")


def check_prompt(prompt: str) -> None:
    """Raise `ConfigurationError` if the prompt is empty."""
    if not prompt.strip():
        raise ConfigurationError("the prompt is empty: say what the agent should do")


def check_files(upload: Path | None, download: Path | None, trace_out: Path | None, patch: Path | None = None) -> None:
    """Raise `ConfigurationError` for a path that cannot be read before a run, or written after it."""
    if upload is not None and not upload.exists():
        raise ConfigurationError(f"--upload {upload}: there is no such file or folder")
    if download is not None and download.exists() and not download.is_dir():
        raise ConfigurationError(f"--download {download}: takes a folder, and this is a file")
    for option, path in (("--trace-out", trace_out), ("--patch", patch)):
        if path is not None:
            _check_output(option, path)


def _check_output(option: str, path: Path) -> None:
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigurationError(f"{option} {path}: takes a file, and this is a directory")
    if not folder.is_dir():
        raise ConfigurationError(f"{option} {path}: there is no directory {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigurationError(f"{option} {path}: you have no permission to write it")


def check_attachments(prompt: str, paths: Sequence[Path]) -> None:
    """Raise `ConfigurationError` for a file that a prompt cannot have as an attachment."""
    read_prompt(prompt, paths)


def check_destinations(allow_out: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a text that is neither a host name, nor an IP address, nor a CIDR block."""
    for each in allow_out:
        if _HOST.fullmatch(each) is None and not _is_network(each):
            raise ConfigurationError(
                f"--allow-out {each}: takes a host (example.com, *.example.com), an address or a CIDR block"
            )


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def check_e2b_key(environ: Mapping[str, str], alternative: str = "") -> None:
    """Raise `ConfigurationError` if there is no key for E2B."""
    if not environ.get("E2B_API_KEY"):
        raise ConfigurationError(f"no key for E2B: set E2B_API_KEY (e2b.dev/dashboard){alternative}")


def check_credential(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` without a credential for the model, as Claude's CLI sends no request without one."""
    if any(environ.get(name) for name in CREDENTIALS):
        return
    message = (
        "no key for the model: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN,"
        " or try `host_client demo` or `host_client serve --demo`"
    )
    if url := environ.get("ANTHROPIC_BASE_URL"):
        message += f"; if {url} needs none, set ANTHROPIC_AUTH_TOKEN to any word, as Claude's CLI requires one"
    raise ConfigurationError(message)
