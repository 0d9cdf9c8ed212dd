"""Records from a folder of all kinds of JSON: the runs, what is damaged, and how many files are something else."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import archive
from ..records import SCHEMA


class Metric(NamedTuple):
    """What a score is called, and which direction is better."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Entry:
    """One run, as its record tells it. A number that the record lacks is NaN.

    Attributes:
        group: the folder of its comparison, relative to the records; "" where they lie at the top.
        folder: its own folder, relative to the records.
        curve: (step, validation) in the order of the steps.
        shifts: score by shift and severity.
        sharpness: by measure, ``lambda_max`` always among them.
        step_s: median seconds of a step; a study's are measured once, all contenders in turns.
        timed: whether they were, which a study does to give everyone the same time.
        stage: of a study, where it belongs to one.
        source: of code of the user's own that decided the outcome, a digest; "" for the harness's tasks.
        started: when, as text that sorts.
        metric: of its scores, None where the record does not tell.
    """

    group: str
    folder: str
    task: str
    label: str
    contender: str
    options: dict[str, Any]
    seed: int
    steps: int
    purpose: str
    diverged: bool
    validation: float
    test: float
    curve: tuple[tuple[int, float], ...]
    shifts: dict[str, dict[float, float]]
    sharpness: dict[str, float]
    step_s: float
    gradients_per_step: float
    timed: bool = False
    stage: str = ""
    source: str = ""
    started: str = ""
    metric: Metric | None = None


Key = tuple[str, str, str]  # group, task, contender


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        entries: the runs, in the order of their paths.
        damaged: (path, what is wrong) of each record that cannot be used.
        others: how many JSON files are no records of runs.
    """

    entries: list[Entry] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0


def number(value: Any) -> float:
    """A number of a record, NaN where it has none. ``records.write`` puts infinity and NaN into words.

    Example:
        >>> number("inf"), number(2), number(None)
        (inf, 2.0, nan)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return float(value) if value in ("inf", "-inf") else math.nan


def text(value: Any) -> str:
    """A name to show: control and formatting characters, such as one that turns the writing direction, become �."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a name")
    return "".join("�" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char for char in value)


def find(root: Path) -> Found:
    """Every record of a run below a folder; nothing in it can make this fail.

    In a study, of a contender that has been judged on a task only the runs that it was tuned and judged by: others are
    left from an earlier search.

    Raises:
        ValueError: there is no such folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of the records, or make some with 'hatam compare'")
    found, times, judged = Found(), dict[Key, float](), dict[Key, dict[str, str]]()
    for path, content in archive.files(root):
        relative = path.relative_to(root)
        try:
            if isinstance(content, ValueError):
                raise content
            record = json.loads(content)
            if _is_run(relative, record):
                found.entries.append(entry(relative, record))
            else:
                found.others += 1
                times |= _times(relative, record)
                for key, names in _judged(relative, record).items():
                    judged.setdefault(key, {}).update(names)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            found.damaged.append((text(relative.as_posix()), text(what.replace(str(root), root.name))))
    found.entries = [e for e in found.entries if _stands(e, judged)]
    for i, e in enumerate(found.entries):
        e = replace(e, stage=judged.get((e.group, e.task, e.contender), {}).get(_name(e), ""))
        found.entries[i] = e
        if (key := (e.group, e.task, e.contender)) in times:
            found.entries[i] = replace(e, step_s=times[key], timed=True)
    return found


def _judged(path: Path, record: Any) -> dict[Key, dict[str, str]]:
    """The records by their names, with their stages, from a study's cells/TASK/CONTENDER-COMPARISON.json."""
    if path.parent.parent.name != "cells" or not isinstance(record, dict) or "stages" not in record:
        return {}
    study = path.parent.parent.parent
    names = {
        text((study / name).as_posix()): stage
        for stage, content in record["stages"].items()
        for setting in content["settings"]
        for name in setting["records"]
    }
    return {(text((study / "records").as_posix()), text(record["task"]), text(record["contender"])): names}


def _stands(e: Entry, judged: dict[Key, dict[str, str]]) -> bool:
    names = judged.get((e.group, e.task, e.contender))
    return names is None or _name(e) in names


def _name(e: Entry) -> str:
    return f"{e.folder}/{e.seed}.json"


def _times(path: Path, record: Any) -> dict[Key, float]:
    """Seconds of a step by group, task and contender from a study's timing/TASK.json, where all took turns."""
    if path.parent.name != "timing" or not isinstance(record, dict) or not isinstance(record.get("step_s"), dict):
        return {}
    group = text((path.parent.parent / "records").as_posix())
    return {(group, text(record["task"]), text(name)): number(x) for name, x in record["step_s"].items()}


def _is_run(path: Path, record: Any) -> bool:
    """By its content, or else by its place: SEED.json in CONTENDER-DIGEST/."""
    placed = path.stem.isdigit() and re.search(r"-[0-9a-f]{10}$", path.parent.name) is not None
    return placed or (isinstance(record, dict) and isinstance(record.get("run"), dict))


def entry(path: Path, record: dict[str, Any]) -> Entry:
    """The run of a record; its path is relative to the folder of the records.

    Raises:
        ValueError: something in the record is not what it must be.
        KeyError: something is not there.
    """
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']!r} is not {SCHEMA}")
    run, result, time = record["run"], record["result"], record.get("time") or {}
    purpose = run.get("purpose", "final")
    if path.stem != str(run["seed"]):
        raise ValueError(f"seed {run['seed']!r} is not that of the file's name")
    if purpose not in ("final", "tune"):
        raise ValueError(f"purpose {purpose!r} is neither 'final' nor 'tune'")
    score = result["test" if purpose == "final" else "validation"]
    if math.isnan(number(score)) and score != "nan" and not isinstance(score, float):
        raise ValueError(f"the score {score!r} is not a number")
    sharpness = {text(key): number(value) for key, value in (result.get("sharpness") or {}).items()}
    sharpness.setdefault("lambda_max", number(result.get("hessian_lambda_max")))
    curve = sorted((int(point["step"]), number(point.get("validation"))) for point in record["curve"])
    return Entry(
        group="/".join(text(part) for part in path.parts[:-3]),
        folder=text(path.parent.as_posix()),
        task=text(run["task"]),
        label=text(run["label"]),
        contender=text(run["contender"]),
        options=dict(run["options"]),
        seed=int(run["seed"]),
        steps=int(run["steps"]),
        purpose=purpose,
        diverged=result["status"] == "diverged",
        validation=number(result.get("validation", curve[-1][1] if curve else None)),
        test=number(result.get("test")),
        curve=tuple(curve),
        shifts={
            text(name): {float(severity): number(score) for severity, score in sorted(scores.items(), key=_severity)}
            for name, scores in (result.get("shifts") or {}).items()
        },
        sharpness=sharpness,
        step_s=number(time.get("step_median_s")),
        gradients_per_step=number(record.get("gradients_per_step")),
        source=str(run.get("source", "")),
        started=str(record.get("started", "")),
        metric=Metric(text(told["name"]), bool(told["higher_is_better"])) if (told := record.get("metric")) else None,
    )


def _severity(item: tuple[str, Any]) -> float:
    return float(item[0])
