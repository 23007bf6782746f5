"""Generate the tables and schemas of the documents from the code.

``python -m tests.support.tables`` writes them; a test fails where a document differs.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from agent_runner._config import SETTINGS
from agent_runner.contract import sdk_options
from agent_runner.contract.protocol import (
    COMMAND_TYPES,
    ERROR_TYPES,
    EVENT_TYPES,
    EXIT_CODES,
    command_schema,
    event_schema,
)
from host_client.cli._agent_flags import FLAG_OF
from host_client.cli._start import run
from host_client.scripted_model._script import Reply, Script, ScriptedConversation, ScriptedFailure, ScriptedTool, Usage
from host_client.service._app import described_app
from host_client.service._events import OWN_TYPES
from host_client.service._models import CreateSession
from host_client.service._problems import PROBLEMS
from host_client.service.config import DEFAULT_SESSION_OPTIONS, NEVER
from host_client.telemetry.metrics.instruments import METRICS
from host_client.telemetry.setup._variables import SDK_VARIABLES
from host_client.telemetry.setup._variables import SETTINGS as TELEMETRY_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
MARKED = (
    "README.md",
    "docs/ARCHITECTURE.md",
    "docs/OPENTELEMETRY_INTEGRATION.md",
    "docs/RUNNER.md",
    "docs/SCRIPTED_MODEL.md",
    "docs/SDK_OPTIONS.md",
    "docs/SERVICE.md",
)


def environment() -> str:
    rows = [f"| `{s.variable}` | `{s.option}` | {_cell(s.help)} |" for s in SETTINGS]
    return "\n".join(["| variable | option | meaning |", "|---|---|---|", *rows])


def telemetry_environment() -> str:
    variables: dict[tuple[str, str], list[str]] = {}  # what traces and metrics have in common is one row
    for row in TELEMETRY_SETTINGS:
        named = variables.setdefault((row.default, row.help), [])
        named += [name for name in sorted(row.variables, key=_how_special) if name not in named]
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {_cell(default)} | {_cell(help_)} |"
        for (default, help_), names in variables.items()
    ]
    rows += [f"| `{name}` | | {_cell(help_)} |" for name, help_ in SDK_VARIABLES.items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _how_special(variable: str) -> bool:
    """Sort the variables of both signals first."""
    return variable.startswith(("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_METRICS_"))


def metrics() -> str:
    rows = [
        f"| `{m.name}` | {m.kind.replace('_', ' ')} | `{m.unit}` | {', '.join(f'`{label}`' for label in m.labels)} "
        f"| `{m.exposed}` | {_cell(m.what)} |"
        for m in METRICS
    ]
    return "\n".join(["| metric | kind | unit | labels | in Prometheus | |", "|---|---|---|---|---|---|", *rows])


def events() -> str:
    rows = [
        f"| `{name}` | {_fields(_data_of(kind))} | {_first(_data_of(kind))} |" for name, kind in EVENT_TYPES.items()
    ]
    return "\n".join(["| type | data | meaning |", "|---|---|---|", *rows])


def commands() -> str:
    rows = [f"| `{name}` | {_fields(kind)} | {_first(kind)} |" for name, kind in COMMAND_TYPES.items()]
    return "\n".join(["| type | fields | meaning |", "|---|---|---|", *rows])


def exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def error_types() -> str:
    return ", ".join(f"`{name}`" for name in ERROR_TYPES) + "."


def service_events() -> str:
    rows = [f"| `{name}` | {_fields(_data_of(kind))} | {_first(_data_of(kind))} |" for name, kind in OWN_TYPES.items()]
    return "\n".join(["| type | data | meaning |", "|---|---|---|", *rows])


def routes() -> str:
    paths: dict[str, dict[str, Any]] = described_app().openapi()["paths"]
    rows = [
        f"| {method.upper()} | `{path}` | {_cell(operation['description'].split('.')[0])}. |"
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return "\n".join(["| | path | |", "|---|---|---|", *rows])


def problems() -> str:
    rows = [f"| {of.status} | `/problems/{slug}` | {_cell(of.when)} |" for slug, of in PROBLEMS.items()]
    return "\n".join(["| status | type | when |", "|---|---|---|", *rows])


def script() -> str:
    kinds = (Script, ScriptedConversation, Reply, ScriptedTool, Usage, ScriptedFailure)
    rows = [
        f"| {kind.__name__.removeprefix('Scripted').lower()} | {_fields(kind)} | {_first(kind)} |" for kind in kinds
    ]
    return "\n".join(["| part | fields | meaning |", "|---|---|---|", *rows])


def options_of_the_sdk() -> str:
    flags = {name: name for name in inspect.signature(run).parameters if name != "sandbox"}  # the sandbox's kind
    flags |= FLAG_OF
    bodies = CreateSession.model_fields
    rows: list[str] = []
    for name, takes in sdk_options.FORMS.items():
        flag = f"`--{flags[name].replace('_', '-')}`" if name in flags else "in the file"
        allowed = "" if name in DEFAULT_SESSION_OPTIONS else ", if allowed"
        rest = "no" if name in NEVER else "a field" if name in bodies else f"in `options`{allowed}"
        rows.append(f"| `{name}` | {_cell(takes)} | {flag} | {rest} |")
    return "\n".join(["| option | takes | `host_client run` | REST |", "|---|---|---|---|", *rows])


def refused_options() -> str:
    rows = [f"| `{name}` | {_cell(why)} |" for name, why in sdk_options.REFUSED.items()]
    return "\n".join(["| option | why |", "|---|---|", *rows])


def options_schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(sdk_options.SdkOptions)}


def packages() -> str:
    rows: list[str] = []
    for file in sorted(each for root in ("agent_runner", "host_client") for each in (ROOT / root).rglob("__init__.py")):
        about = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
        rows.append(f"| `{file.parent.relative_to(ROOT)}/` | {_cell(about).replace('``', '`')} |")
    return "\n".join(["| package | |", "|---|---|", *rows])


def layers() -> str:
    """Return the order of imports that `make lint` checks, from the first package to the last."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    lines: list[str] = []
    for contract in (each for each in contracts if each["type"] == "layers"):
        ranks = [rank.replace("host_client.", "").replace(" | ", ", ") for rank in contract["layers"]]
        lines.append(f"- {contract.get('containers', ['host_client'])[0]}: {' → '.join(ranks)}")
    return "\n".join(lines)


TABLES = {
    "packages": packages,
    "layers": layers,
    "environment": environment,
    "telemetry-environment": telemetry_environment,
    "metrics": metrics,
    "events": events,
    "commands": commands,
    "exit-codes": exit_codes,
    "error-types": error_types,
    "script": script,
    "sdk-options": options_of_the_sdk,
    "refused-options": refused_options,
    "service-events": service_events,
    "routes": routes,
    "problems": problems,
}
SCHEMAS = {
    "docs/events.schema.json": event_schema,
    "docs/commands.schema.json": command_schema,
    "docs/options.schema.json": options_schema,
}


def _data_of(kind: type[Any]) -> type[Any]:
    return get_type_hints(kind)["data"]


def _fields(kind: type[Any]) -> str:
    names = [
        f"`{field.encode_name}`" if field.required else f"`{field.encode_name}`?"
        for field in msgspec.structs.fields(kind)
    ]
    return ", ".join(names) or "none"


def _first(kind: type[Any]) -> str:
    return _cell(" ".join((kind.__doc__ or "").strip().split("\n\n")[0].split()).replace("``", "`"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def filled(document: str) -> str:
    """Return a document with every ``<!-- table: name -->`` block generated again."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->", fill, document, flags=re.DOTALL)


def schema_text(name: str) -> str:
    """Return a schema file's text."""
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all tables and schemas."""
    for name in MARKED:
        path = ROOT / name
        path.write_text(filled(path.read_text()))
    for name in SCHEMAS:
        (ROOT / name).write_text(schema_text(name))


if __name__ == "__main__":
    main()
