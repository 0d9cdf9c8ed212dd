"""The coordinator: fills the queue stage by stage, and brings the records home.

What it knows it knows from the records and the queue: ended at any time, it goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from .. import records
from ..contenders import known, parse
from ..records import Run
from ..tasks import Task
from . import summary
from .packing import unpack
from .plans import COMPARISONS, SEARCH, STAGES, Plan
from .queue import Queue
from .sensitivity import explicit
from .stages import Cell, Job, Record, Setting, Spaces, jobs_of, score, settings_of
from .timing import read_or_measure, steps_in_time
from .worker import restore, stored

OPEN = 32
"""The most cells that have jobs in the queue at a time: enough for many workers, few enough to look at often."""


GROWING = ("contenders", "tasks", "budgets")
"""What may join a study that has begun."""


class Failure(NamedTuple):
    """A job that failed for good."""

    stage: str
    params: dict[str, Any]
    error: str


class Coordinator:
    """Leads a study from its plan to its last record.

    Args:
        plan: with every name written out.
        folder: of the study.
        queue: of the study.
        tasks: by name.
        spaces: where to tune.
        only: the plan's contenders to lead now, the others another time; None means all.
        comparisons: the plan's comparisons to lead now; None means all.
        at: the plan's tasks to lead now; None means all.

    Raises:
        ValueError: the folder holds a study with another plan, or a damaged file; or what to lead is not in the plan.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        queue: Queue,
        tasks: Mapping[str, Task],
        spaces: Spaces,
        only: Collection[str] | None = None,
        comparisons: Collection[str] | None = None,
        at: Collection[str] | None = None,
    ) -> None:
        self.plan, self.folder, self.queue, self.spaces = plan, folder, queue, spaces
        self.only = [known(name, plan.contenders or (), "contender of the plan") for name in only or ()] or None
        self.comparisons = [known(name, plan.comparisons, "comparison of the plan") for name in comparisons or ()]
        self.root = folder / "records"
        chosen = [known(name, plan.tasks or (), "task of the plan") for name in at or ()] or plan.tasks or ()
        self.tasks = {name: tasks[name] for name in chosen}
        self.failures: list[Failure] = []
        self._settings: dict[tuple[str, str], list[Setting]] = {}
        self._results: dict[Path, Record] = {}
        self._remembered = summary.remembered(folder, self.only or plan.contenders or ())
        self._over: dict[str, int] = {}  # cell: how many of its stages are over
        self._done: dict[tuple[str, str], float] = {}  # cell and stage: seconds of work that are done
        self._put: set[str] = set()
        self._collected: set[tuple[str, int]] = set()
        self._stale_checked = time.monotonic()
        _same_plan(plan, folder / "plan.json")
        self.queue.note("finished", False)

    def time(self) -> Iterator[str]:
        """The timing stage; names each task before it is measured, and then knows the cells."""
        self.timing = {}
        for name, task in self.tasks.items():
            yield name
            path = self.folder / "timing" / f"{name}.json"
            self.timing[name] = read_or_measure(task, self.plan.contenders or (), path)
        by_task = [list(self._cells(task)) for task in self.tasks.values()]
        by_task.sort(key=lambda cells: sum(map(self.seconds, cells)))  # what ends soon comes first
        self.cells = [cell for cells in by_task for cell in cells]

    def _cells(self, task: Task) -> Iterator[Cell]:
        """Who needs as long as SAM has the same steps in both comparisons, and is run once."""
        for contender in self.only or self.plan.contenders or ():
            steps = {"steps": task.steps, "time": steps_in_time(task, contender, self.timing[task.name])}
            wanted = [name for name in self.plan.comparisons if name == "steps" or steps["time"] != steps["steps"]]
            both = steps["time"] == steps["steps"]
            for comparison in wanted or ["steps"]:
                if both or comparison in (self.comparisons or (comparison,)):
                    yield Cell(task, contender, comparison, steps[comparison])

    def seconds(self, cell: Cell) -> float:
        """What all runs of a cell will take on one core."""
        return sum(self._seconds_of(cell, stage) for stage in STAGES)

    def _seconds_of(self, cell: Cell, stage: str) -> float:
        budget, alone = self.plan.budget_of(cell.task.name), cell.comparison == COMPARISONS[0]
        knobs = len(explicit(parse(cell.contender, cell.task.name)[1]))
        settings = {
            **{each: budget.trials if alone and i < budget.rounds else 0 for i, each in enumerate(SEARCH)},
            "select": budget.finalists,
            "final": 1,
            "sensitivity": 1 + knobs * len(self.plan.factors) if alone else 0,
        }
        settings[SEARCH[0]] += alone  # the defaults
        return settings[stage] * len(self.plan.seeds_of(stage, cell.task.name)) * self.seconds_a_run(cell, stage)

    def seconds_a_run(self, cell: Cell, stage: str) -> float:
        """Its steps at their measured time, the validations of its curve and, of a final one, all that it measures."""
        timing, task = self.timing[cell.task.name], cell.task
        step_s: float = timing["step_s"][cell.contender]
        steps = task.steps if stage in SEARCH else cell.steps
        end_s = float(timing["final_s"]) if stage == "final" else 0.0
        return steps * step_s + task.curve_points * float(timing["evaluation_s"]) + end_s

    def seconds_in_all(self) -> float:
        """What the whole study will take on one core."""
        return sum(self.seconds(cell) for cell in self.cells)

    def seconds_done(self) -> float:
        """How much of that is done."""
        return sum(self._seconds_done(cell, i, stage) for cell in self.cells for i, stage in enumerate(STAGES))

    def _seconds_done(self, cell: Cell, index: int, stage: str) -> float:
        over = index < self._over.get(cell.name, 0)
        return self._seconds_of(cell, stage) if over else self._done.get((cell.name, stage), 0.0)

    def step(self) -> bool:
        """Look at what has come and fill the queue; True when the study is finished."""
        stale = time.monotonic() - self._stale_checked > self.queue.waiting.heartbeat
        stages = []
        for cell in self.cells:
            stage = self._advance(cell)
            if stage is not None:
                stages.append(stage)
                if stale:
                    self.queue.retry_stale(stage)
            if len(stages) == OPEN:
                break
        if stale:
            self._stale_checked = time.monotonic()
        self.queue.note("open", stages)
        if not stages:
            self.queue.note("finished", True)
        return not stages

    def _advance(self, cell: Cell) -> str | None:
        """The stage of a cell that has jobs in the queue, None when all are over."""
        for index in range(self._over.get(cell.name, 0), len(STAGES)):
            if not self._stage_over(cell, STAGES[index]):
                return cell.key(STAGES[index])
            self._over[cell.name] = index + 1
            if STAGES[index] == STAGES[-1]:
                summary.write(self, cell)
        return None

    def _stage_over(self, cell: Cell, stage: str) -> bool:
        """Whether every job of a stage is done or has failed for good; if not, all of them are in the queue."""
        name = cell.key(stage)
        jobs = jobs_of(cell, self.plan, stage, self.settings(cell, stage))
        found = [[self.result(run) for run in job.runs] for job in jobs]
        if self._seconds_of(cell, stage):  # else it is another cell's
            self._done[cell.name, stage] = sum(r is not None for job in found for r in job) * self.seconds_a_run(
                cell, stage
            )
        if all(record is not None for job in found for record in job):
            return True
        if name not in self._put:
            self.queue.put(name, [self._as_put(cell, job) for job in jobs])
            self._put.add(name)
        states = self.queue.states(name)
        for index, state in enumerate(states):
            if state.state == "complete" and (name, index) not in self._collected:
                for text in state.packed:
                    restore(self.root, unpack(text))
                self._collected.add((name, index))
        if any(state.state in ("waiting", "running") for state in states):
            return False
        failed = [(job, state) for job, state in zip(jobs, states, strict=True) if state.state == "failed"]
        lost = [Failure(name, job.params, str(state.error)) for job, state in failed]
        self.failures += [failure for failure in lost if failure not in self.failures]
        return True

    def _as_put(self, cell: Cell, job: Job) -> tuple[Job, list[Record], float | None]:
        found = [record for record in (stored(self.root, run) for run in job.runs) if record is not None]
        done = len(found) == len(job.runs)
        return job, found, fmean(score(record, cell.task) for record in found) if done else None

    def settings(self, cell: Cell, stage: str) -> list[Setting]:
        """What a stage looks at, once the stages before it are over."""
        key = (cell.name, stage)
        if stage == "sensitivity" and not self.plan.budget_of(cell.task.name).seeds[stage]:
            return []
        if key not in self._settings:
            earlier = partial(self.settings, cell)
            self._settings[key] = settings_of(cell, self.plan, stage, self.spaces, self.result, earlier)
        return self._settings[key]

    def runs(self, cell: Cell, stage: str) -> list[Run]:
        """The runs of a stage, once the stages before it are over."""
        return [run for job in jobs_of(cell, self.plan, stage, self.settings(cell, stage)) for run in job.runs]

    def result(self, run: Run) -> Record | None:
        """What is needed of the record of a run, or what its cell's file tells of it; None where there is neither."""
        path = run.path(self.root)
        if path not in self._results:
            record = stored(self.root, run)
            if record is None:
                return self._remembered.get(path)
            self._results[path] = {
                "result": {key: record["result"][key] for key in ("status", "validation")},
                "gradients": record["gradients_per_step"] * record["curve"][-1]["step"],
            }
        return self._results[path]


def _same_plan(plan: Plan, path: Path) -> None:
    """A study keeps the plan with which it began, but for contenders and tasks, with budgets, that join it later."""
    new = plan.as_json()
    if not path.exists():
        records.write(path, new)
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in new if old[key] != records.jsonable(new[key])]
        changed = [key for key in differing if key not in GROWING or not _has(records.jsonable(new[key]), old[key])]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it and run again") from error
    if changed:
        key = changed[0]
        raise ValueError(
            f"the study in {path.parent} was begun with {key}={old[key]!r}, and now it is {new[key]!r}; "
            "give the new one another --name"
        )
    if differing:
        records.write(path, new)


def _has(new: Any, old: Any) -> bool:
    """Whether a list has all that another has; of a mapping, the names with their values."""
    return old.items() <= new.items() if isinstance(old, dict) else {*old} <= {*new}


def collect(queue: Queue, root: Path) -> int:
    """Write every record that the queue holds; returns how many it holds."""
    count = 0
    for stage in queue.stages():
        for state in queue.states(stage):
            for text in state.packed:
                restore(root, unpack(text))
                count += 1
    return count
