"""Read what a resumed conversation has cost before, from the CLI's transcript."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from ._config import config_directory
from ._messages import Spent, model_usage


def past_cost(environ: Mapping[str, str], session_id: str, report: Callable[[str], None]) -> Spent:
    """Return the past cost and usage of a conversation that is resumed; report if they are not known."""
    spent = None
    try:
        spent = _read(environ, session_id)
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"the past cost of the conversation cannot be read: {error!r}")
    if spent is None:
        report("the conversation's past cost is not known: the first turn's cost_usd includes it")
    return spent or Spent(0.0, {})


def _read(environ: Mapping[str, str], session_id: str) -> Spent | None:
    """Return the sums that the CLI keeps in the conversation's transcript, in lines of type ``cost-state``.

    The CLI reports sums that include them, so a resumed run's cost is a difference.
    """
    if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", session_id):
        return None
    spent = None
    for transcript in config_directory(environ).glob(f"projects/*/{session_id}.jsonl"):
        for line in _regular_file(transcript).split(b"\n"):
            if b'"cost-state"' in line[:200]:
                state = json.loads(line)
                spent = Spent(float(state["totalCostUSD"]), model_usage(dict(state.get("modelUsage") or {})))
    if spent is not None and not 0 <= spent.cost < math.inf:
        raise ValueError(f"{spent.cost} is not a cost")
    return spent


def _regular_file(path: Path) -> bytes:
    """Return a regular file's content. The agent may have made the file, so links and pipes are refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return file.read()
