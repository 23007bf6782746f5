"""Every dashboard file, as text."""

from __future__ import annotations

import json
from typing import Any

from . import langfuse
from .alerts import alerts_file
from .grafana import grafana_file
from .panels import DASHBOARDS
from .signoz import signoz_file


def contents() -> dict[str, str]:
    """Return the text of each file by its path below ``dashboards/``."""
    made = {f"grafana/{page.slug}.json": _json(grafana_file(page)) for page in DASHBOARDS}
    made |= {f"signoz/{page.slug}.json": _json(signoz_file(page)) for page in DASHBOARDS}
    made |= {f"langfuse/{page.slug}.json": _json(langfuse.langfuse_file(page)) for page in langfuse.DASHBOARDS}
    return made | {"prometheus/alerts.yml": alerts_file()}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
