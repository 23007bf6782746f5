"""``host_client template build``: builds the sandbox's image with E2B and shows the build's log."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from host_client.errors import SandspanError
from host_client.signals import run_until_signal

from ._failures import as_typed
from ._help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from host_client.sandbox.e2b.template import LogLine

app = typer.Typer(cls=PlainGroup, no_args_is_help=True)

STYLES = {"error": "bold red", "warn": "yellow", "debug": "dim"}


@app.callback()
def template() -> None:
    """Build the template that E2B sandboxes start from."""


@app.command(cls=PlainCommand)
def build(
    name: Annotated[str | None, typer.Option(help="Name of the template. Default: sandspan.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for this build; repeatable.")] = None,
    cpu_count: Annotated[int | None, typer.Option(min=1, help="Number of CPUs of a sandbox. Default: 2.")] = None,
    memory_mb: Annotated[int | None, typer.Option(min=128, help="Memory of a sandbox, in MB. Default: 2048.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Repeat every step of an earlier build.")] = False,
) -> None:
    """Build the image of this version with E2B; needs E2B_API_KEY, but neither Node nor Docker."""
    from host_client.sandbox.e2b import DEFAULT_TEMPLATE  # the SDK is not needed for --help
    from host_client.sandbox.e2b.template import CPU_COUNT, MEMORY_MB, TemplateOptions, build_template

    try:
        options = TemplateOptions(
            name=name or DEFAULT_TEMPLATE,
            tags=tuple(tag or ()),
            cpu_count=cpu_count or CPU_COUNT,
            memory_mb=memory_mb or MEMORY_MB,
            use_cache=not no_cache,
        )
        with BuildProgress(options.name) as progress:
            built = run_until_signal(build_template(options, os.environ, progress.show))
    except SandspanError as error:
        _fail(as_typed(str(error)), 2 if error.error_type == "invalid_request" else 1)
    except KeyboardInterrupt:
        _fail("interrupted; E2B may still finish the build", 130)
    else:
        tags = f" {', '.join(built.tags)}" if built.tags else ""
        typer.echo(f"{built.name}{tags}: template {built.template_id}, build {built.build_id}")


def _fail(message: str, code: int) -> None:
    typer.echo(f"host_client template build: {message}", err=True)
    raise typer.Exit(code)


class BuildProgress:
    """Prints a build's log to stderr, at a terminal with a status line."""

    def __init__(self, name: str) -> None:
        from rich.console import Console  # not needed for --help

        self._console = Console(stderr=True, soft_wrap=True)
        self._status = self._console.status(f"building {name} …")
        self._began = time.monotonic()

    def __enter__(self) -> BuildProgress:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def show(self, line: LogLine) -> None:
        """Print a line of the log, with the seconds since the start."""
        from rich.text import Text  # rich is imported by now

        from ._render import visible

        elapsed = f"{time.monotonic() - self._began:6.1f} s "
        style = STYLES.get(line.level, "")
        self._console.print(Text.assemble((elapsed, "dim"), (visible(line.text), style)))
