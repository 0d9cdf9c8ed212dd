"""The report: records to tables, figures and one page. It reads records and never trains."""

from .brief import brief
from .compared import comparisons
from .documents import fill_in, replace_between
from .load import entry, find
from .page import write
from .sections import in_markdown
from .tables import cells, columns, draw, markdown

__all__ = [
    "brief", "cells", "columns", "comparisons", "draw", "entry", "fill_in", "find", "in_markdown", "markdown",
    "replace_between", "write",
]  # fmt: skip
