"""Archives: all records of a task in one file, so that a study of some ten thousand runs is a few files to keep.

``records/TASK.tar.xz`` holds what ``records/TASK/…`` holds. Where both have a record, the loose one counts.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".tar.xz"


def pack(root: Path) -> int:
    """Bring every archive below a folder of records up to date; loose records stay. Returns how many are archived.

    Raises:
        ValueError: an archive is damaged, or a loose record that would take the place of an archived one.
    """
    count = 0
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        archive = folder.with_name(folder.name + SUFFIX)
        packed = dict(_members(archive)) if archive.exists() else {}
        loose = {path.relative_to(root).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
        count += len(packed | loose)
        for name, content in loose.items() - packed.items():
            if name in packed:
                _check(root / name, content)
        if not loose.items() <= packed.items():
            _write(archive, packed | loose)
    return count


def _check(path: Path, content: bytes) -> None:
    try:
        json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the archived record counts") from error


def unpack(root: Path) -> None:
    """Write the archived records below a folder that are not there as loose ones.

    Raises:
        ValueError: an archive is damaged.
    """
    for archive in sorted(root.glob(f"*{SUFFIX}")):
        for name, content in _members(archive):
            path = root / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as file:
                    file.write(content)


def files(root: Path) -> Iterator[tuple[Path, bytes | ValueError]]:
    """Every JSON file below a folder by its path, loose or archived; a damaged archive by its own, as an error."""
    seen = set()
    for path in sorted(path for path in root.rglob("*.json") if path.is_file()):
        seen.add(path)
        yield path, path.read_bytes()
    for archive in sorted(root.rglob(f"*{SUFFIX}")):
        try:
            yield from ((path, text) for name, text in _members(archive) if (path := archive.parent / name) not in seen)
        except ValueError as error:
            yield archive, error


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r:xz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None or not Path(member.name).suffix == ".json" or ".." in Path(member.name).parts:
                    raise ValueError(f"{member.name} is not a record")
                yield member.name, file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"{archive} is damaged ({error}); restore it, or remove it and run again") from error


def _write(archive: Path, contents: dict[str, bytes]) -> None:
    """The same records give the same bytes."""
    with whole(archive) as file, tarfile.open(fileobj=file, mode="w:xz") as tar:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, so that a reader, or the next run, sees all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    os.chmod(temporary, 0o644)  # else nobody but its owner could read it
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
