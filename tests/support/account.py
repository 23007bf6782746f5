"""A run whose CLI is another account's: a reachable copy of the CLI, and directories that the account owns."""

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
    """Skip what only root can do; in CI that is a failure."""
    if os.geteuid() != 0:
        why = "needs root, to run the CLI as somebody else"
        assert not os.environ.get("CI"), why
        pytest.skip(why)


@contextmanager
def reachable_directory() -> Generator[Path]:
    """A directory of root's that everybody may enter, which those that pytest makes are not."""
    root = Path(tempfile.mkdtemp(prefix="sandspan_"))
    root.chmod(0o711)
    try:
        yield root
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def cli_binary() -> Iterator[Path]:
    """The CLI as it is in the image: root's, and for everybody to run but not to read."""
    need_root()
    with reachable_directory() as root:
        copy = root / "claude"
        shutil.copyfile(Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude", copy)
        copy.chmod(0o711)
        yield copy


@contextmanager
def account_lab(script: str) -> Generator[Lab]:
    """A lab whose home and working directory are the account's; everything else in it is root's."""
    need_root()
    with reachable_directory() as root, lab(root, script) as this:
        entry = pwd.getpwnam(ACCOUNT)
        for directory in (this.home, this.cwd):
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        yield this


def account_environment(this: Lab, cli: Path) -> dict[str, str]:
    """What the runner needs besides: the account has no home of its own."""
    return {"AGENT_USER": ACCOUNT, "AGENT_CLI_PATH": str(cli), "CLAUDE_CONFIG_DIR": str(this.home / ".claude")}
