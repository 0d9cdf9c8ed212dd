"""The report: records to tables, figures and one page. It reads records and never trains."""

from .brief import brief
from .page import write
from .plot import draw
from .sections import in_markdown
from .tables import BASELINE, COLUMNS, Record, Row, by_task, fill_in, markdown, replace_between, rows

__all__ = [
    "BASELINE", "COLUMNS", "Record", "Row", "brief", "by_task", "draw", "fill_in", "in_markdown", "markdown",
    "replace_between", "rows", "write",
]  # fmt: skip
