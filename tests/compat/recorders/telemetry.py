"""Records the spool and the ledger of two hosts whose destinations are down: one ended, and one was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.compat.adapter import Ledger
from tests.compat.costs import COSTS_BY, costs, event_of
from tests.compat.files import COSTS, DELIVERED, LEDGER, SPOOL, write_gzip, write_json
from tests.compat.spools import delivered_of
from tests.support.hosts import host_lab
from tests.support.metrics import result

SCRIPT = """
model: claude-sonnet-4-5
conversations:
  tool:
    when: Use the tool
    replies:
      - thinking: Hm.
        tools: [{name: Bash, input: {command: echo made > made}}]
        usage: {input_tokens: 1200, output_tokens: 34, cache_read_input_tokens: 900, cache_creation_input_tokens: 7}
      - {text: "Done: ü 😀", usage: {input_tokens: 300, output_tokens: 20}}
  refused:
    when: Be refused
    replies:
      - {fail: [{status: 400, message: too odd, times: 9}], text: Never.}
  sleep:
    when: Sleep
    replies:
      - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(60)'"}}]
        usage: {input_tokens: 5000, output_tokens: 50}
      - text: Never.
"""


def record() -> None:
    """Write the files of spool and ledger, and beside them what is delivered of the one and summed of the other."""
    with tempfile.TemporaryDirectory(prefix="compat-") as name, host_lab(SCRIPT) as lab:
        folder = Path(name)
        _note_earlier_days(folder / "ledger")
        for how, code in (("closes", 0), ("dies", -signal.SIGKILL)):
            command = [sys.executable, "-m", "tests.compat.recorders.spooling", how, str(folder)]
            own = {"PATH": os.environ["PATH"], "HOME": name, "TMPDIR": name, "http_proxy": "http://127.0.0.1:9"}
            env = {**own, "NO_PROXY": "127.0.0.1", **lab.environ}
            done = subprocess.run(command, env=env, cwd=Path(__file__).parents[3], check=False)
            assert done.returncode == code, done.returncode
        spool = {path.name: path for path in sorted((folder / "spool").iterdir())}
        assert len([name for name in spool if name.endswith(".db")]) == 2, list(spool)
        for path in spool.values():
            if path.suffix != ".lock":
                write_gzip(f"{SPOOL}/{path.name}.gz", path.read_bytes())
        for path in sorted(folder.glob("ledger*")):
            write_gzip(f"{LEDGER}/{path.name}.gz", path.read_bytes())
        copy = Path(shutil.copytree(folder / "spool", folder / "copy"))
        write_json(DELIVERED, delivered_of(copy))
        write_json(COSTS, {by: costs(folder / "ledger", by) for by in COSTS_BY})


def _note_earlier_days(path: Path) -> None:
    """Note turns of two days, of several models, some of nobody, and one without a result."""
    moments = iter([datetime(2026, 11, day, 12, tzinfo=UTC).timestamp() for day in (23, 23, 24, 24, 24, 24)])
    ledger = Ledger(path, clock=lambda: next(moments))
    used = {
        "claude-opus-4-5": {"costUSD": 0.3, "inputTokens": 7, "outputTokens": 5},
        "claude-haiku-4-5": {"costUSD": 0.1, "cacheReadInputTokens": 9, "cacheCreationInputTokens": 3},
    }
    about = [
        (result(0.4, turn_model_usage=used), "s-1", "ada", "acme", "pro"),
        (result(0.000000001, turn=2), "s-1", "ada", "acme", "pro"),
        (result(1.25, usage={"input_tokens": 3, "output_tokens": 4}), "s-2", "bob", "bolt", None),
        (result(0.5, is_error=True, error_type="budget_exceeded"), "s-3", None, None, None),
    ]
    for number, (data, session_id, user, tenant, tier) in enumerate(about):
        ledger.note(event_of(data, number), session_id, user, tenant, tier)
    assert ledger.close()
