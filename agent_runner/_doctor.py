"""``agent_runner doctor``: is everything here that a run needs, one line a check. Asks no network.

With ``--image ACCOUNT`` it also checks what only an image can promise: that the account the agent runs as can
change nothing that root runs, and can become nobody else.
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
from .contract.findings import Check, Finding, check_python, examine

PACKAGES = {
    "msgspec": "msgspec",
    "claude-agent-sdk": "claude_agent_sdk",
    "opentelemetry-sdk": "opentelemetry.sdk.trace",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
"""Distribution → a module of it that a run imports."""

STATE = Path("/var/lib/sandspan")
"""Journals lie here in the image; nobody but root may look."""

_MAKE_STATE = f"install -d -o root -m 0700 {STATE}"
_MOVE = "Install into a directory that only root writes to, such as /opt: this one is everybody's"

CLI_TIMEOUT = 60.0
"""Seconds for ``claude --version``: the first start reads 250 MB from a cold disk."""


def doctor(argv: Sequence[str]) -> int:
    """Print a line for each check; return 0 if none failed, else 1."""
    about = (
        "Check that everything is here that a run needs, one line a check. Asks no network. With --image it also "
        "checks what only an image can promise: that the account the agent runs as can change nothing that root "
        "runs, and can become nobody else."
    )
    parser = argparse.ArgumentParser(prog="agent_runner doctor", description=about)
    parser.add_argument("--image", metavar="ACCOUNT", help="also check the image; the agent runs as ACCOUNT")
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object a finding")
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
    """Yield what every runner needs, wherever it runs."""
    yield check_python
    for distribution, module in PACKAGES.items():
        yield partial(check_package, distribution, module)
    yield partial(check_cli, account)
    yield partial(check_state, STATE if account is not None else None)


def image_checks(account: str) -> Iterator[Check]:
    """Yield what an image promises about the account of its agent."""
    yield partial(check_account, account)
    yield check_files
    yield check_cli_mode
    yield check_state_mode
    yield check_lent_rights


def check_package(distribution: str, module: str) -> Finding:
    """A package the run imports is there and can be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Finding(distribution, False, str(error), "pip install 'sandspan[runner]'")
    return Finding(distribution, True, metadata.version(distribution))


def check_cli(account: str | None) -> Finding:
    """The CLI of the SDK's wheel starts, as the account that it will run as."""
    mend = "Install claude-agent-sdk again, for this platform"
    try:
        path = bundled_cli()
    except metadata.PackageNotFoundError:
        return Finding("Claude CLI", False, "comes with claude-agent-sdk, which is not installed")
    if not path.is_file():
        return Finding("Claude CLI", False, f"not at {path}", mend)
    try:
        entry = pwd.getpwnam(account) if account is not None else None
    except KeyError:
        return Finding("Claude CLI", None, f"not started: there is no account {account} to start it as")
    if entry is not None and os.geteuid() not in (0, entry.pw_uid):
        return Finding("Claude CLI", None, f"not started: only root can start it as {account}")
    with tempfile.TemporaryDirectory() as home:
        if entry is not None:
            os.chown(home, entry.pw_uid, entry.pw_gid)
        try:
            done = subprocess.run(
                [path, "--version"],
                user=entry.pw_uid if entry is not None else None,
                group=entry.pw_gid if entry is not None else None,
                extra_groups=[] if entry is not None else None,
                env={"HOME": home, "PATH": os.defpath},
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CLI_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("Claude CLI", False, str(error), mend)
    said = (done.stdout or done.stderr).strip()[:200]
    return Finding("Claude CLI", done.returncode == 0, said or f"exit code {done.returncode}", mend)


def check_state(folder: Path | None) -> Finding:
    """A journal can be written: in the image's state directory, else in the temporary one."""
    where = folder or Path(tempfile.gettempdir())
    mend = "Make it writable, or set TMPDIR" if folder is None else f"As root: {_MAKE_STATE}"
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        return Finding("Journals", False, f"{where}: {error.strerror}", mend)
    return Finding("Journals", True, f"{where} is writable")


def check_account(account: str) -> Finding:
    """The agent has an account of its own, without root's id and with a home."""
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return Finding("Account", False, f"there is no {account}", f"useradd --create-home {account}")
    owned = Path(entry.pw_dir).is_dir() and Path(entry.pw_dir).stat().st_uid == entry.pw_uid
    detail = f"{account}, uid {entry.pw_uid}, {'owner of' if owned else 'not owner of'} {entry.pw_dir}"
    return Finding("Account", owned and entry.pw_uid != 0, detail, "It needs a uid above 0 and a home of its own")


def check_files() -> Finding:
    """Nobody but root can change a file that root runs: interpreter, libraries, runner."""
    roots = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    roots |= {Path(sys.prefix), Path(sys.executable).resolve(), Path(__file__).resolve().parent}
    count, open_to_others, shared = 0, list[Path](), False
    for path, status in _statuses(set(_all_files(roots))):
        count += 1
        if _can_be_changed(status):
            open_to_others.append(path)
            shared = shared or bool(status.st_mode & stat.S_ISVTX)
    if open_to_others:
        detail = f"{len(open_to_others)} can be changed by others than root, such as {min(open_to_others)}"
        mend = "They need root as owner, and no write permission for others"
        return Finding("Files", False, detail, _MOVE if shared else mend)
    return Finding("Files", True, f"{count} of them, and only root can change them")


def _all_files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        # Who may write a directory above can put another in the place of the one below.
        yield from root.parents
        yield root
        if root.is_dir():
            yield from root.rglob("*")


def _statuses(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            yield path, path.lstat()


def _can_be_changed(status: os.stat_result) -> bool:
    if stat.S_ISLNK(status.st_mode):
        return status.st_uid != 0  # a link's own mode means nothing
    return status.st_uid != 0 or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def check_cli_mode() -> Finding:
    """The CLI can be run and not read: the kernel then guards its memory and its environment."""
    try:
        status = bundled_cli().stat()
    except (metadata.PackageNotFoundError, FileNotFoundError):
        return Finding("CLI mode", None, "not looked at: the CLI is not installed")
    mode = stat.S_IMODE(status.st_mode)
    detail = f"mode {mode:04o}, owner {status.st_uid}"
    return Finding("CLI mode", mode == 0o711 and status.st_uid == 0, detail, f"chown root, chmod 0711 {bundled_cli()}")


def check_state_mode() -> Finding:
    """Only root can look at journals."""
    try:
        status = STATE.stat()
    except FileNotFoundError:
        return Finding("State mode", None, f"not looked at: there is no {STATE}")
    mode = stat.S_IMODE(status.st_mode)
    detail = f"mode {mode:04o}, owner {status.st_uid}"
    return Finding("State mode", mode == 0o700 and status.st_uid == 0, detail, _MAKE_STATE)


def check_lent_rights() -> Finding:
    """No program runs with another account's rights: neither sudo nor su nor any other."""
    folders = [Path(name) for name in ("/bin", "/sbin", "/usr", "/opt")]
    paths = (path for folder in folders for path in folder.rglob("*"))
    # /bin may be a link into /usr.
    lent = sorted({str(path.resolve()) for path, status in _statuses(paths) if _lends_rights(status)})
    if lent:
        mend = "chmod ug-s them, and dpkg-statoverride sudo and su to 0700"
        return Finding("Rights", False, f"{len(lent)} programs lend theirs, such as {lent[0]}", mend)
    return Finding("Rights", True, "no program lends its owner's")


def _lends_rights(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_ISUID | stat.S_ISGID))
