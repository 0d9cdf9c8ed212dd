"""What is printed on a terminal, or in a file that a command's output goes to: names and numbers as they are."""

from __future__ import annotations

import unicodedata
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

WIDEST = 10_000


def plain_console(**options: Any) -> Console:
    """A console that takes no part of a text for markup, and no part of a name for an emoji."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def plain(name: str) -> str:
    """A name to show: control and formatting characters, such as one that turns the writing direction, become �."""
    return "".join("�" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char for char in name)


def as_table(shown: pd.DataFrame) -> Table:
    """A frame of text as a table without borders, narrow enough for 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(shown.columns):
        table.add_column(str(column), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in shown.itertuples(index=False):
        table.add_row(*map(str, row))
    return table


def show(table: Table, title: str = "") -> None:
    """Print a table as wide as it is: on a narrow terminal its lines go on below, and no digit is cut off."""
    if title:
        plain_console().print(title, soft_wrap=True)
    width = plain_console(width=WIDEST).measure(table).maximum
    plain_console(width=max(Console().width, width)).print(table)
