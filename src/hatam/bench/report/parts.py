"""What a page is made of: figures, tables and sections, each with the records that it rests on."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .load import Entry


@dataclass(frozen=True)
class Sources:
    """The records of a part.

    Attributes:
        folders: (folder, number of records) in order.
        command: how to make them.
    """

    folders: tuple[tuple[str, int], ...]
    command: str

    @property
    def count(self) -> int:
        return sum(n for _, n in self.folders)


@dataclass(frozen=True)
class Figure:
    """A figure in the page and as files.

    Attributes:
        name: of its files and the prefix of its ids: small letters, digits and hyphens.
        title: what it shows.
        caption: how to read it: n, and what bands and bars are.
        alt: its numbers, in words.
        svg: a file's SVG; png: a file's PNG; inline: the page's SVG.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes
    inline: str
    sources: Sources


@dataclass(frozen=True)
class Table:
    """A table in the page and as Markdown. The first cell of a row is its header."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    sources: Sources

    def markdown(self) -> str:
        """The table in Markdown, with whatever means something there or in HTML made plain."""
        lines = [f"### {_plain(self.title)}", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        return "\n".join([*lines, *map(_line, self.rows), "", _plain(self.caption), ""])


@dataclass
class Section:
    """A part of the page. Without figures and tables, ``missing`` says what would make them."""

    id: str
    title: str
    intro: str
    missing: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sources(entries: Iterable[Entry], command: str) -> Sources:
    """The folders of some records, with their numbers."""
    return Sources(tuple(sorted(Counter(entry.folder for entry in entries).items())), command)


def folder_name(group: str) -> str:
    """A folder of records in words: that of a study is the study's."""
    return group.removesuffix("records").rstrip("/")


def slug(*words: str) -> str:
    """A name for files and ids. Words that lose something in it get a digest, so that no two share one.

    Example:
        >>> slug("curves", "mnist1d-mlp"), slug("curves", "<b>")
        ('curves-mnist1d-mlp', 'curves-b-ab259e')
    """
    joined = "-".join(word for word in words if word)
    name = re.sub(r"[^a-z0-9]+", "-", joined.lower()).strip("-")[:60]
    return name if name == joined else f"{name}-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(cell: str) -> str:
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", html.escape(" ".join(cell.split()), quote=False))
