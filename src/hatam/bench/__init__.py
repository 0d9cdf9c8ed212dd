"""The study: tasks, contenders, runs, records and tables.

It needs the extra ``hatam[bench]``; the library never imports it. :func:`compare` is for a training of one's own,
:class:`Task` for a task that every contender and the command ``hatam`` can train.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .own import compare
    from .tasks import Data, Shift, Split, Task
    from .trainers import evaluating

__all__ = ["Data", "Shift", "Split", "Task", "compare", "evaluating"]


def __getattr__(name: str) -> object:
    """Imports what is asked for when it is asked for: the command must start without the extra, to say that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = {"compare": "own", "evaluating": "trainers"}.get(name, "tasks")
    module = importlib.import_module(f".{where}", __name__)
    return getattr(module, name)
