"""Runs whose CLI has another account: a copy of the CLI that it can reach, and directories that it owns."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import claude_agent_sdk
import pytest

from tests.support.runs import Lab, lab

ACCOUNT = "nobody"


def need_root() -> None:
    """Skip a test that needs root; in CI, fail it."""
    if os.geteuid() != 0:
        why = "needs root, to run the CLI as somebody else"
        assert not os.environ.get("CI"), why
        pytest.skip(why)


@contextmanager
def reachable_directory() -> Generator[Path]:
    """Make a directory of root that all accounts may enter; they may not enter those that pytest makes."""
    root = Path(tempfile.mkdtemp(prefix="sandspan_"))
    root.chmod(0o711)
    try:
        yield root
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def cli_binary() -> Iterator[Path]:
    """Copy the CLI as in the image: root owns it, all accounts can run it, none can read it."""
    need_root()
    with reachable_directory() as root:
        copy = root / "claude"
        shutil.copyfile(Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude", copy)
        copy.chmod(0o711)
        yield copy


@contextmanager
def account_lab(script: str) -> Generator[Lab]:
    """Make a lab whose home and working directory the account owns; root owns everything else."""
    need_root()
    with reachable_directory() as root, lab(root, script) as this:
        entry = pwd.getpwnam(ACCOUNT)
        for directory in (this.home, this.cwd):
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        yield this


def account_environment(this: Lab, cli: Path) -> dict[str, str]:
    """Return further variables of the runner: the account has no home, and root's files in /tmp could be in its way."""
    own = {"CLAUDE_CONFIG_DIR": str(this.home / ".claude"), "CLAUDE_CODE_TMPDIR": str(this.home)}
    return {"AGENT_USER": ACCOUNT, "AGENT_CLI_PATH": str(cli), **own}
