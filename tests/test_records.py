"""Records: found again by what decides the outcome, written whole or not at all, by several processes too."""

from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hatam.bench import files
from hatam.bench.records import Run, Store, row

RUN = Run("t", "adamw", "adamw", {"lr": 0.1}, 0, 10, 4, 0.1)


def record(seed: int = 0, **found: Any) -> dict[str, Any]:
    found = {"test": 1.5, "status": "ok", "curve": [[1, 2.0, math.nan]], **found}
    return row(dataclasses.replace(RUN, seed=seed), **found)


def test_pandas_reads_them_in_one_line(tmp_path: Path) -> None:
    Store(tmp_path / "study.parquet").add([record(0), record(1, test=math.nan)])
    frame = pd.read_parquet(tmp_path / "study.parquet")
    assert list(frame["seed"]) == [0, 1]
    assert json.loads(frame["options"][0]) == {"lr": 0.1}
    assert json.loads(frame["curve"][0]) == [[1, 2.0, "nan"]]
    assert math.isnan(frame["test"][1])
    assert {"python", "torch", "commit"} <= set(frame.columns)


def test_a_later_record_of_a_run_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add([record(test=1.0)])
    store.add([record(test=2.0), record(1)])
    assert store.path.name == "records.parquet"
    assert dict(zip(store.read()["seed"], store.read()["test"], strict=True)) == {0: 2.0, 1: 1.5}


@pytest.mark.parametrize(
    "changed",
    [{"options": {"lr": 0.2}}, {"seed": 1}, {"steps": 11}, {"source": "x"}, {"stage": "select"}, {"task": "u"}],
)
def test_what_decides_the_outcome_decides_the_key(changed: dict[str, Any]) -> None:
    assert dataclasses.replace(RUN, **changed).key != RUN.key


def test_a_name_and_a_comparison_do_not(tmp_path: Path) -> None:
    assert dataclasses.replace(RUN, label="adamw:lr=0.1", comparison="steps").key == RUN.key


def test_several_may_add_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: Store(tmp_path).add([record(seed)]), range(24)))
    assert sorted(Store(tmp_path).read()["seed"]) == list(range(24))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.add([record()])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.add([record(1)])
    assert list(store.read()["seed"]) == [0]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"{}", b"PAR1 and then nothing"])
def test_a_damaged_file_is_named_and_not_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"records.parquet holds no records of runs .* remove it and run again"):
        Store(tmp_path).add([record()])
    assert path.read_bytes() == content


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="it has the columns a"):
        Store(tmp_path / "x.parquet").read()
