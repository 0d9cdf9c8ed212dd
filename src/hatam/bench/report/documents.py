"""Puts rendered text into a document, between two markers."""

from __future__ import annotations

from pathlib import Path


def replace_between(text: str, marker: str, new: str) -> str:
    """Put ``new`` between ``<!-- marker:start -->`` and ``<!-- marker:end -->``.

    Raises:
        ValueError: the markers are not both there.
    """
    start, end = f"<!-- {marker}:start -->", f"<!-- {marker}:end -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"the lines {start} and {end} are not both there; add them where the table shall go")
    return f"{before}{start}\n{new}\n{end}{after}"


def fill_in(page: Path, marker: str, new: str) -> None:
    """:func:`replace_between` in a file."""
    page.write_text(replace_between(page.read_text(encoding="utf-8"), marker, new), encoding="utf-8")
