"""What is looked at before anything is made: inputs that are missing, places that cannot be, no key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path

from agent_runner.contract.credentials import CREDENTIALS
from host_client.errors import ConfigurationError

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
# The last part of a name is no number: 1.2.3 is a mistyped address.
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*(?![0-9]+$){_LABEL}")


def check_prompt(prompt: str) -> None:
    """Raise `ConfigurationError` if nothing is asked."""
    if not prompt.strip():
        raise ConfigurationError("the prompt is empty: say what the agent is to do")


def check_files(upload: Path | None, download: Path | None, trace_out: Path | None) -> None:
    """Raise `ConfigurationError` for what cannot be read before a run, or written after it."""
    if upload is not None and not upload.exists():
        raise ConfigurationError(f"--upload {upload}: there is no such file or folder")
    if download is not None and download.exists() and not download.is_dir():
        raise ConfigurationError(f"--download {download}: takes a folder, and this is a file")
    if trace_out is not None:
        _check_trace_out(trace_out)


def _check_trace_out(path: Path) -> None:
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigurationError(f"--trace-out {path}: takes a file, and this is a directory")
    if not folder.is_dir():
        raise ConfigurationError(f"--trace-out {path}: there is no directory {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigurationError(f"--trace-out {path}: may not be written")


def check_destinations(allow_out: Iterable[str]) -> None:
    """Raise `ConfigurationError` for what is neither a host nor an address nor a block of them."""
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


def check_credential(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if there is nothing to show to the model's API: the CLI asks nothing without."""
    if any(environ.get(name) for name in CREDENTIALS):
        return
    message = (
        "no key for the model: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN,"
        " or try `host_client demo` or `host_client serve --demo`"
    )
    if url := environ.get("ANTHROPIC_BASE_URL"):
        message += f"; if {url} needs none, set ANTHROPIC_AUTH_TOKEN to any word, as the CLI wants one all the same"
    raise ConfigurationError(message)
