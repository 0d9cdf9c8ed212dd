"""The page: one HTML file that needs nothing else, and its figures and tables as files beside it."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .load import Found, find
from .sections import build, summary
from .tables import save

HERE = Path(__file__).parent


def write(root: Path, out: Path) -> Found:
    """Render the records below a folder into ``out/index.html``, ``out/figures`` and ``out/tables``.

    The same records give the same bytes. Files of an earlier report in ``out`` stay unless they are written anew.

    Args:
        root: the folder of the records; what is not a record of a run is counted and left out.
        out: the folder of the report.

    Returns:
        what was found, damaged records included; the page names those too.

    Raises:
        ValueError: ``root`` is not a folder.
    """
    found = find(root)
    name = root.name if root.is_absolute() else root.as_posix()
    sections = build(found, name)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for section in sections:
        for figure in section.figures:
            save(figure, out / "figures")
        for table in section.tables:
            (out / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # matplotlib has escaped the text in it
    page = environment.get_template("page.html.j2").render(
        root=name,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        sections=sections,
        summary=summary(found),
        damaged=found.damaged,
    )
    (out / "index.html").write_text(page, encoding="utf-8")
    return found
