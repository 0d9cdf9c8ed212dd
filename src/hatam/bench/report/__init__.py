"""The report: records to one table model, and that to terminal, Markdown, CSV, plots and a page."""

from .documents import fill_in, replace_between

__all__ = ["fill_in", "replace_between"]
