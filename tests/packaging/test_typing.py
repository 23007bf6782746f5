"""A user's program passes ``pyright --strict`` against the installed wheel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Installed
from .environments import REPOSITORY


@pytest.mark.timeout(300)  # pyright reads all that the programs import
def test_the_readmes_example_and_two_programs_pass_pyright_strict(installed: Installed, tmp_path: Path) -> None:
    environment = installed("service")
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "readme.py").write_text(example)
    for name in ("batch.py", "embedded_fastapi.py"):
        shutil.copy(REPOSITORY / "examples" / name, tmp_path)
    config = {
        "typeCheckingMode": "strict",
        "venvPath": str(environment.folder.parent),
        "venv": environment.folder.name,
        "include": ["readme.py", "batch.py", "embedded_fastapi.py"],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    report = json.loads(done.stdout)
    assert report["generalDiagnostics"] == []
    assert report["summary"]["filesAnalyzed"] == 3


def test_both_packages_say_that_they_are_typed() -> None:
    assert (REPOSITORY / "agent_runner" / "py.typed").is_file()
    assert (REPOSITORY / "host_client" / "py.typed").is_file()
