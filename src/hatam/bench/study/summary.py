"""What became of a cell: one file that says what was tried, what won, what it cost, and where the records lie."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .. import records
from .plans import STAGES
from .stages import Cell, Record, Setting, runs_of, score

if TYPE_CHECKING:
    from .coordinator import Coordinator


def path_of(folder: Path, cell: Cell) -> Path:
    """Where the file of a cell lies."""
    return folder / "cells" / cell.task.name / f"{cell.contender}-{cell.comparison}.json"


def write(study: Coordinator, cell: Cell) -> None:
    """Write the file of a cell whose stages are all over."""
    winner = study.settings(cell, "final")
    record = {
        "schema": records.SCHEMA,
        "task": cell.task.name,
        "contender": cell.contender,
        "comparison": cell.comparison,
        "steps": cell.steps,
        "winner": winner[0]._asdict() if winner else None,
        "stages": {stage: _stage(study, cell, stage) for stage in STAGES},
        "failed": [failure._asdict() for failure in study.failures if failure.stage.endswith(f"/{cell.name}")],
    }
    records.write(path_of(study.folder, cell), record)


def remembered(folder: Path, contenders: Collection[str]) -> dict[Path, Record]:
    """What the files of cells tell of the runs of every stage but the final one, by the paths of their records.

    Such records are many and serve to choose only: where they are gone, the means over the seeds of a setting do, and
    the choice is the same. Records of the final stage are the results, and nothing stands for them.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[Path, Record] = {}
    for path in sorted(folder.glob("cells/*/*.json")):
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            if cell["contender"] in contenders:
                for stage in cell["stages"].keys() - {"final"}:
                    for setting in cell["stages"][stage]["settings"]:
                        found |= {folder / name: _run(setting, i) for i, name in enumerate(setting["records"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); restore it, or remove it and run again") from error
    return found


def _run(setting: dict[str, Any], index: int) -> Record:
    """A run of a setting as the mean of all, in the form of ``Coordinator.result``."""
    status = "diverged" if index < setting["diverged"] else "ok"
    gradients = setting["gradients"] / len(setting["records"])
    return {"result": {"status": status, "validation": setting["validation"]}, "gradients": gradients}


def _stage(study: Coordinator, cell: Cell, stage: str) -> dict[str, Any]:
    """The settings of a stage with their validation scores, and what they cost in gradients of a batch."""
    settings = [_setting(study, cell, stage, setting) for setting in study.settings(cell, stage)]
    return {
        "gradients": sum(setting["gradients"] for setting in settings),
        "runs": sum(len(setting["records"]) for setting in settings),
        "diverged": sum(setting["diverged"] for setting in settings),
        "settings": settings,
    }


def _setting(study: Coordinator, cell: Cell, stage: str, setting: Setting) -> dict[str, Any]:
    runs = [(run, study.result(run)) for run in runs_of(cell, study.plan, stage, setting.options)]
    done = [(run, record) for run, record in runs if record is not None]
    scores = [score(record, cell.task) * (1 if cell.task.higher_is_better else -1) for _, record in done]
    return {
        **setting._asdict(),
        "validation": fmean(scores) if scores else None,
        "diverged": sum(record["result"]["status"] == "diverged" for _, record in done),
        "gradients": sum(record["gradients"] for _, record in done),
        "records": [run.path(study.root).relative_to(study.folder).as_posix() for run, _ in done],
    }
