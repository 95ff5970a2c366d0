"""Files: written atomically, archived, and their folder locked against other runs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from support.errors import UserError


class LockedError(UserError):
    """Another process has locked the folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all, whatever interrupts it.

    If writing fails, the file that was at `path` is unchanged and nothing is left beside it.

    Yields:
        A path beside `path` to write to; afterwards it is flushed to disk and renamed to `path`.

    Raises:
        UserError: the disk or the folder cannot be written to.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it exists and is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, *patterns: str) -> None:
    """Delete what killed processes have left of files that they were writing by `atomic_write`.

    Args:
        folder: where to look; nobody else may be writing files of these names to it. It need not exist.
        patterns: of the files' own names, such as 'model_*.pt'.
    """
    for path in folder.glob(".*"):
        name = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(\.\w+)", path.name)
        if name and path.is_file() and any(fnmatch(name[1] + name[2], pattern) for pattern in patterns):
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, which is made if need be, against other processes; the system unlocks it when this one dies.

    Raises:
        LockedError: another process holds the lock.
        UserError: the folder cannot be written to.
    """
    lock = FileLock(folder / ".lock", blocking=False, fallback_to_soft=False)  # a soft lock would outlive its process
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"another run is writing to {folder}: wait for it, or give this one a checkpoint_dir of its own"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def archive(paths: Iterable[Path], folder: Path) -> Path:
    """Move files and folders into a new folder earlier/1, earlier/2, … within `folder`.

    Returns:
        The new folder.

    Raises:
        UserError: they cannot be moved.
    """
    numbers = [int(path.name) for path in folder.glob("earlier/*") if path.name.isdigit()]
    target = folder / "earlier" / str(max(numbers, default=0) + 1)
    try:
        target.mkdir(parents=True)
        for path in paths:
            path.rename(target / path.name)
    except OSError as error:
        raise UserError(f"cannot move the files of an earlier run to {target}: {error.strerror or error}") from error
    return target


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _umask() -> int:
    """The process's umask; the only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
