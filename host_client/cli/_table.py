"""Prints rows of text: aligned columns at a terminal, cells separated by tabs elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import typer

SHORTEST_LAST = 12
"""Minimum width of a last column that is cut to fit; a narrower one is dropped."""


def print_table(columns: Sequence[str], rows: Iterable[Iterable[str]], droppable: Sequence[str] = ()) -> None:
    """Print a heading and rows, with control characters made visible.

    With ``droppable``, columns of these names are dropped in this order until the rest fits the terminal's width. If
    the last column is among them, it is cut instead while it is wide enough. No other cell is ever cut.
    """
    from rich.cells import cell_len, set_cell_size  # rich is not needed for --help

    from ._render import visible

    lines = [columns, *(tuple(" ".join(visible(cell).split()) for cell in row) for row in rows)]
    if not sys.stdout.isatty():
        for line in lines:
            typer.echo("\t".join(line))
        return
    widths = [max(cell_len(line[n]) for line in lines) for n in range(len(columns))]
    shown = list(range(len(columns)))
    available = shutil.get_terminal_size().columns
    for name in droppable:
        if sum(widths[n] + 2 for n in shown) - 2 <= available:
            break
        column = columns.index(name)
        room = available - sum(widths[n] + 2 for n in shown if n != column)
        if name == columns[-1] and room >= SHORTEST_LAST:
            widths[column] = room
        else:
            shown.remove(column)
    for line in lines:
        typer.echo("  ".join(set_cell_size(line[n], widths[n]) for n in shown).rstrip())
