"""Tables on the console, for all commands."""

import os
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNLIMITED = 1 << 16
"""Columns off a terminal."""


def console(**settings: Any) -> Console:
    """A console for tables: as wide as its terminal; in a pipe or a file as wide as they are, unless the environment
    variable COLUMNS has a width."""
    made = Console(**settings)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNLIMITED
    return made


def fits(console: Console, table: Table) -> bool:
    """Whether no cell of a table must be wrapped."""
    wide = console.options.update(max_width=UNLIMITED)
    return Measurement.get(console, wide, table).maximum <= console.width


def show(console: Console, *tables: Table) -> None:
    """Prints tables, each below its title, which is a line of its own and may be longer than the table is wide."""
    for table in tables:
        if table.title is not None:
            console.print(Text(str(table.title), style="italic"), soft_wrap=True)
            table.title = None
        console.print(table)
