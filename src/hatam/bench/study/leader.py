"""The leader: fills the storage stage by stage, and brings the records home.

What it knows it knows from the records and the storage: ended at any time, it goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from ..contenders import space
from ..files import jsonable
from ..records import Record, Run, Store
from ..spaces import Choices, Range, Rate, Space, as_params
from ..tasks import Task
from .plans import BASE, Plan
from .stages import Cell, final, score, select, starts
from .storage import Storage, again, is_lost, jobs
from .worker import packed, unpacked

OPEN = 16
"""The most stages that are in the storage at a time: enough for many workers, few enough to look at often."""


class Leader:
    """Leads a study from its plan to its last record.

    Args:
        plan: with every name written out.
        store: the study's records.
        storage: of the study.
        tasks: by name.
    """

    def __init__(self, plan: Plan, store: Store, storage: Storage, tasks: Mapping[str, Task]) -> None:
        self.plan, self.store, self.storage = plan, store, storage
        storage.patiently(lambda: storage.note(open=[], finished=False))  # a part of it may have been finished before
        self.cells = [Cell(tasks[task], name) for name in plan.contenders or () for task in plan.tasks or ()]
        self.failures: dict[str, str] = {}
        self._done: dict[str, list[Record]] = {}  # stages that are over
        self._judged: set[str] = set()  # cells that are over
        self._there = store.read()
        self._stored = (
            {(r.key, r.comparison, r.stage) for r in self._there.itertuples()} if "stage" in self._there else set()
        )

    @property
    def judged(self) -> int:
        """How many cells are over."""
        return len(self._judged)

    def step(self) -> bool:
        """Look at what has come and fill the storage; True when the study is finished."""
        return self.storage.patiently(self._step)

    def _step(self) -> bool:
        waiting: list[str] = []
        for cell in self.cells:
            if cell.name not in self._judged:
                stages = self._advance(cell)
                waiting += stages
                if not stages:
                    self._judged.add(cell.name)
            if len(waiting) >= OPEN:
                break
        self.storage.note(open=list(dict.fromkeys(waiting)), finished=not waiting)
        return not waiting

    def _advance(self, cell: Cell) -> list[str]:
        """The stages of a cell that have runs in the storage; empty when it is judged."""
        base, adamw = cell._replace(contender=BASE), list[Record]()
        if cell != base and base in self.cells:
            found = self._stage(base, "search", self._search(base, []))
            if found is None:
                return [f"search/{base.name}"]
            adamw = found
        searched = self._stage(cell, "search", self._search(cell, adamw))
        if searched is None:
            return [f"search/{cell.name}"]
        selected = self._stage(cell, "select", select(cell, self.plan, searched))
        if selected is None:
            return [f"select/{cell.name}"]
        waiting, judged = list[str](), dict[str, Record]()
        for comparison in self.plan.comparisons:
            runs = final(cell, self.plan, comparison, selected)
            found = self._stage(cell, f"final-{comparison}", [run for run in runs if run.key not in judged])
            if found is None:
                waiting.append(f"final-{comparison}/{cell.name}")
                continue
            judged |= {record["key"]: record for record in found}
            # A run that the other comparison has too is done once, and recorded in both.
            self._store({**judged[run.key], "comparison": comparison} for run in runs if run.key in judged)
        return waiting

    def _search(self, cell: Cell, adamw: Sequence[Record]) -> list[Run]:
        """The runs of the search; their options are the sampler's to choose, but for those that it begins with."""
        budget, given = self.plan.budget_of(cell.task.name), starts(cell, self.plan, adamw)
        chosen: list[dict[str, Any]] = [{}] * (budget.trials_of(cell.contender) - len(given))
        seed, steps = budget.seeds("search")[0], cell.task.steps
        return [cell.run("search", "", options, seed, steps) for options in (*given, *chosen)]

    def _stage(self, cell: Cell, stage: str, runs: Sequence[Run]) -> list[Record] | None:
        """The records of a stage when it is over; else None, and all of its runs are in the storage."""
        key = f"{stage}/{cell.name}"
        if key in self._done:
            return self._done[key]
        study = self.storage.stage(key)
        found, changed = jobs(study), False
        for job, run in enumerate(runs):
            if job not in found:
                self._put(study, cell.task, job, run)
                changed = True
                continue
            if found[job].user_attrs["run"] != wanted(run):
                raise ValueError(
                    f"the storage has another run for {key}, job {job}: ranges, defaults or the plan have changed "
                    "since; remove the storage, or give another --storage"
                )
            if is_lost(found[job]):
                again(study, found[job])
                changed = True
        found = jobs(study) if changed else found
        if any(not found[job].state.is_finished() or is_lost(found[job]) for job in range(len(runs))):
            return None
        trials = [found[job] for job in range(len(runs))]
        failed = [trial for trial in trials if trial.state != TrialState.COMPLETE]
        for trial in failed:
            self.failures[f"{key}, run {trial.user_attrs['job']}"] = trial.user_attrs.get("error", "the worker died")
        records = [unpacked(trial.user_attrs["record"]) for trial in trials if trial not in failed]
        if stage in ("search", "select"):
            self._store({**each, "job": job} for job, each in enumerate(records))
        self._done[key] = records
        return records

    def _store(self, records: Iterable[Record]) -> None:
        """Write those that are not in the study's file."""
        new = {(each["key"], each["comparison"], each["stage"]): each for each in records}
        self.store.add(each for key, each in new.items() if key not in self._stored)
        self._stored |= new.keys()

    def _put(self, study: optuna.Study, task: Task, job: int, run: Run) -> None:
        """Put a run into the storage: to do, or done where there is a record of it."""
        chooses, record = run.stage == "search", self._recorded(job, run)
        params = as_params(space(run.contender, run.task), run.options) if chooses and run.options else {}
        if record is None:
            study.enqueue_trial(params, user_attrs={"job": job, "run": wanted(run)})
            return
        distributions: dict[str, BaseDistribution] = {}
        if chooses:
            ranges = space(run.contender, run.task)
            params, distributions = as_params(ranges, json.loads(record["options"])), as_distributions(ranges)
        study.add_trial(
            optuna.create_trial(
                value=score(record, task),
                params=params,
                distributions=distributions,
                user_attrs={"job": job, "run": wanted(run), "record": packed(record)},
            )
        )

    def _recorded(self, job: int, run: Run) -> Record | None:
        """The record of a run from the study's file, None where there is none."""
        if "job" not in self._there:
            return None
        if run.stage == "search":
            frame = self._there
            same = (frame["task"] == run.task) & (frame["contender"] == run.contender) & (frame["stage"] == "search")
            rows = frame[same & (frame["job"] == job)]
        else:
            rows = self._there[self._there["key"] == run.key]
        records: list[Any] = rows.tail(1).to_dict("records")
        return records[0] if records else None


def wanted(run: Run) -> dict[str, Any]:
    """A run as the storage has it: without options in the search, where the sampler chooses them."""
    return {**jsonable(asdict(run)), "options": None if run.stage == "search" else jsonable(run.options)}


def as_distributions(ranges: Mapping[str, Space]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of a space."""
    found: dict[str, BaseDistribution] = {}
    for name, each in ranges.items():
        if isinstance(each, Range):
            found[name] = FloatDistribution(each.low, each.high, log=each.log)
        elif isinstance(each, Rate):
            found[f"1-{name}"] = FloatDistribution(1 - each.high, 1 - each.low, log=True)
        elif isinstance(each, Choices):
            found[name] = CategoricalDistribution(each.values)
    return found
