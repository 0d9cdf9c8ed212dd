"""What is printed on a terminal, or in a file that a command's output goes to: names and numbers as they are."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

WIDEST = 10_000


def plain_console(**options: Any) -> Console:
    """A console that takes no part of a text for markup, and no part of a name for an emoji."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def show(table: Table) -> None:
    """Print a table as wide as it is: on a narrow terminal its lines go on below, and no digit is cut off."""
    width = plain_console(width=WIDEST).measure(table).maximum
    plain_console(width=max(Console().width, width)).print(table)
