"""The command ``agent_runner doctor``: check the installation, without network access.

With ``--image ACCOUNT`` it also checks that the agent's account can neither change a file that root runs nor gain the
rights of another account.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pwd
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import msgspec

from ._privileges import bundled_cli
from .contract.directories import temporary_directory
from .contract.findings import Check, Finding, check_python, examine

PACKAGES = {
    "msgspec": "msgspec",
    "claude-agent-sdk": "claude_agent_sdk",
    "opentelemetry-sdk": "opentelemetry.sdk.trace",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
"""Distributions that a run needs, each with a module to import."""

STATE = Path("/var/lib/sandspan")
"""Directory of the journals in the image, which only root may enter."""

_MAKE_STATE = f"install -d -o root -m 0700 {STATE}"
_MOVE = "Install into a directory that only root can write to, such as /opt: every account can write to this one"

CLI_TIMEOUT = 60.0
"""Timeout in seconds of ``claude --version``, whose first start reads 250 MB from a cold disk."""


def doctor(argv: Sequence[str]) -> int:
    """Run the checks and print their findings; return 1 if a check failed, else 0."""
    about = (
        "Check that everything a run needs is installed, without network access. With --image also check that the "
        "agent's account can neither change a file that root runs nor gain the rights of another account."
    )
    parser = argparse.ArgumentParser(prog="agent_runner doctor", description=about)
    parser.add_argument("--image", metavar="ACCOUNT", help="also check the image, for an agent that runs as ACCOUNT")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON array")
    options = parser.parse_args(argv)
    account: str | None = options.image
    checks = [*run_checks(account), *(image_checks(account) if account is not None else ())]
    findings = [examine(check) for check in checks]
    if options.json:
        sys.stdout.write(f"{msgspec.json.encode(findings).decode()}\n")
    else:
        sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return int(any(finding.ok is False for finding in findings))


def run_checks(account: str | None) -> Iterator[Check]:
    """Yield the checks of every installation."""
    yield check_python
    for distribution, module in PACKAGES.items():
        yield partial(check_package, distribution, module)
    yield partial(check_cli, account)
    yield partial(check_state, STATE if account is not None else None)


def image_checks(account: str) -> Iterator[Check]:
    """Yield the checks of an image whose agent runs as ``account``."""
    yield partial(check_account, account)
    yield check_files
    yield check_cli_mode
    yield check_state_mode
    yield check_lent_rights


def check_package(distribution: str, module: str) -> Finding:
    """Check that a package can be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Finding(distribution, False, str(error), "pip install 'sandspan[runner]'")
    return Finding(distribution, True, metadata.version(distribution))


def check_cli(account: str | None) -> Finding:
    """Check that the CLI in the SDK's package starts as its account."""
    mend = "Install claude-agent-sdk again, for this platform"
    try:
        path = bundled_cli()
    except metadata.PackageNotFoundError:
        return Finding("Claude CLI", False, "not there: claude-agent-sdk is not installed")
    if not path.is_file():
        return Finding("Claude CLI", False, f"there is no file {path}", mend)
    try:
        entry = pwd.getpwnam(account) if account is not None else None
    except KeyError:
        return Finding("Claude CLI", None, f"not started: there is no account {account} to start it as")
    if entry is not None and os.geteuid() not in (0, entry.pw_uid):
        return Finding("Claude CLI", None, f"not started: only root can start it as {account}")
    with temporary_directory("sandspan-home-") as home:
        if entry is not None:
            os.chown(home, entry.pw_uid, entry.pw_gid)
        try:
            done = subprocess.run(
                [path, "--version"],
                user=entry.pw_uid if entry is not None else None,
                group=entry.pw_gid if entry is not None else None,
                extra_groups=[] if entry is not None else None,
                env={"HOME": str(home), "PATH": os.defpath},
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CLI_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("Claude CLI", False, str(error), mend)
    output = (done.stdout or done.stderr).strip()[:200]
    return Finding("Claude CLI", done.returncode == 0, output or f"exit code {done.returncode}", mend)


def check_state(folder: Path | None) -> Finding:
    """Check that a journal can be written to ``folder``, or to the temporary directory if it is None."""
    where = folder or Path(tempfile.gettempdir())
    mend = "Make it writable, or set TMPDIR" if folder is None else f"As root: {_MAKE_STATE}"
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        return Finding("Journals", False, f"{where}: {error.strerror}", mend)
    return Finding("Journals", True, f"{where} is writable")


def check_account(account: str) -> Finding:
    """Check that the agent's account exists, is not root, and owns its home."""
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return Finding("Account", False, f"there is no account {account}", f"useradd --create-home {account}")
    owned = Path(entry.pw_dir).is_dir() and Path(entry.pw_dir).stat().st_uid == entry.pw_uid
    detail = f"{account}, uid {entry.pw_uid}, {'owns' if owned else 'does not own'} {entry.pw_dir}"
    return Finding("Account", owned and entry.pw_uid != 0, detail, "It needs a uid above 0 and a home that it owns")


def check_files() -> Finding:
    """Check that only root can change the interpreter, its libraries and the runner, which root runs."""
    roots = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    roots |= {Path(sys.prefix), Path(sys.executable).resolve(), Path(__file__).resolve().parent}
    count, open_to_others, shared = 0, list[Path](), False
    for path, status in _statuses(set(_all_files(roots))):
        count += 1
        if _can_be_changed(status):
            open_to_others.append(path)
            shared = shared or bool(status.st_mode & stat.S_ISVTX)
    if open_to_others:
        detail = f"accounts other than root can change {len(open_to_others)} of them, such as {min(open_to_others)}"
        mend = "Make root their owner, and remove write permission for others"
        return Finding("Files", False, detail, _MOVE if shared else mend)
    return Finding("Files", True, f"only root can change them ({count} files)")


def _all_files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        # An account that can write to a parent directory can replace what is in it.
        yield from root.parents
        yield root
        if root.is_dir():
            yield from root.rglob("*")


def _statuses(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            yield path, path.lstat()


def _can_be_changed(status: os.stat_result) -> bool:
    if stat.S_ISLNK(status.st_mode):
        return status.st_uid != 0  # the mode of a symbolic link has no effect
    return status.st_uid != 0 or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def check_cli_mode() -> Finding:
    """Check that the CLI's binary is not readable: the kernel then denies access to its memory and environment."""
    try:
        path = bundled_cli()
    except metadata.PackageNotFoundError:
        return Finding("CLI mode", None, "not checked: claude-agent-sdk is not installed")
    return _check_mode("CLI mode", path, 0o711, f"chown root, chmod 0711 {path}")


def check_state_mode() -> Finding:
    """Check that only root can read journals."""
    return _check_mode("State mode", STATE, 0o700, _MAKE_STATE)


def _check_mode(name: str, path: Path, needed: int, mend: str) -> Finding:
    try:
        status = path.stat()
    except FileNotFoundError:
        return Finding(name, None, f"not checked: there is no {path}")
    mode = stat.S_IMODE(status.st_mode)
    is_right = mode == needed and status.st_uid == 0
    return Finding(name, is_right, f"mode {mode:04o}, owner {status.st_uid}", mend)


def check_lent_rights() -> Finding:
    """Check that no program, such as sudo or su, runs with the rights of another account."""
    folders = [Path(name) for name in ("/bin", "/sbin", "/usr", "/opt")]
    paths = (path for folder in folders for path in folder.rglob("*"))
    # Resolved, as /bin may be a link into /usr.
    lent = sorted({str(path.resolve()) for path, status in _statuses(paths) if _lends_rights(status)})
    if lent:
        mend = "chmod ug-s them, and dpkg-statoverride sudo and su to 0700"
        return Finding("Rights", False, f"{len(lent)} programs run with others' rights, such as {lent[0]}", mend)
    return Finding("Rights", True, "no program runs with another account's rights")


def _lends_rights(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_ISUID | stat.S_ISGID))
