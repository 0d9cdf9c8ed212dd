"""Archives of records: nothing lost, nothing twice, the same bytes for the same records."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_records import put

from hatam.bench import archive, records
from hatam.bench.report.load import find


def test_an_archive_holds_what_the_folder_held(tmp_path: Path) -> None:
    root = tmp_path / "records"
    paths = [put(root, "adamw", seed, 70.0, task) for task in ("mnist1d-mlp", "digits") for seed in range(3)]
    before, found = records.read_all(root), find(tmp_path)
    assert archive.pack(root) == len(paths)
    assert find(tmp_path) == found  # a record that is there twice counts once
    for path in paths[1:]:
        path.unlink()
    assert sorted(path.name for path in root.glob("*.xz")) == ["digits.tar.xz", "mnist1d-mlp.tar.xz"]
    assert records.read_all(root) == before
    assert {e.folder for e in find(tmp_path).entries} == {e.folder for e in found.entries}
    archive.unpack(root)
    assert all(path.exists() for path in paths)
    assert records.read_all(root) == before


def test_packing_again_adds_what_is_new_and_changes_nothing_else(tmp_path: Path) -> None:
    first = put(tmp_path, "adamw", 0, 70.0)
    archive.pack(tmp_path)
    packed = tmp_path / "mnist1d-mlp.tar.xz"
    before = packed.read_bytes()
    os.utime(packed, (1, 1))
    archive.pack(tmp_path)
    assert packed.stat().st_mtime == 1
    packed.unlink()
    archive.pack(tmp_path)
    assert packed.read_bytes() == before
    first.unlink()
    put(tmp_path, "adamw", 1, 71.0)
    assert archive.pack(tmp_path) == 2
    assert [record["run"]["seed"] for record in records.read_all(tmp_path)] == [0, 1]


def test_a_damaged_record_does_not_take_the_place_of_an_archived_one(tmp_path: Path) -> None:
    path = put(tmp_path, "adamw", 0, 70.0)
    archive.pack(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"0\.json is damaged .* remove it, and the archived record counts"):
        archive.pack(tmp_path)
    path.unlink()
    archive.unpack(tmp_path)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    put(tmp_path, "adamw", 0, 70.0)
    archive.pack(tmp_path)
    packed = tmp_path / "mnist1d-mlp.tar.xz"
    packed.write_bytes(packed.read_bytes()[:100])
    for read in (archive.pack, archive.unpack, records.read_all):
        with pytest.raises(ValueError, match=r"mnist1d-mlp\.tar\.xz is damaged .* remove it"):
            read(tmp_path)
    found = find(tmp_path)
    assert len(found.entries) == 1
    assert [path for path, _ in found.damaged] == ["mnist1d-mlp.tar.xz"]
