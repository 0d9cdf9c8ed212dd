"""Tables on a terminal, or in a file that a command's output goes to."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDEST = 10_000


def show(table: Table) -> None:
    """Print a table as wide as it is: on a narrow terminal its lines go on below, and no digit is cut off."""
    width = Console(width=WIDEST).measure(table).maximum
    Console(width=max(Console().width, width)).print(table)
