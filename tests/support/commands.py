"""Commands of ``host_client`` within the test's own process, for those that start nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

from host_client.cli.app import app
from tests.support.runs import clean_environment


def invoked(home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command with the variables that a process of it gets; an exception that it does not report is raised."""
    return invoked_with(clean_environment(home, **environ), *args)


def invoked_with(environ: Mapping[str, str], *args: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command with no other variables than these; an exception that it does not report is raised."""
    with patch.dict(os.environ, environ, clear=True):
        done = CliRunner().invoke(app, args, catch_exceptions=False)
    return subprocess.CompletedProcess(args, done.exit_code, done.stdout_bytes, done.stderr_bytes)
