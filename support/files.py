"""Files that are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.errors import UserError


class LockedError(UserError):
    """Another process works in that folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on leaving it is flushed to disk and takes the name `path`.

    If writing fails, what stood at `path` before is untouched and nothing is left beside it.

    Raises:
        UserError: the disk or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process may lock `folder`; a process that dies gives its lock back.

    Raises:
        LockedError: another process holds it.
        UserError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # on Windows, where two runs on one folder go unnoticed
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(
                f"another run is writing to {folder}: wait for it, or give this one a checkpoint_dir of its own"
            ) from error
        yield


def archive(paths: Iterable[Path], folder: Path) -> Path:
    """Move files and folders into a new folder earlier/1, earlier/2, … within `folder`, and return that.

    Raises:
        UserError: they cannot be moved.
    """
    numbers = [int(path.name) for path in folder.glob("earlier/*") if path.name.isdigit()]
    aside = folder / "earlier" / str(max(numbers, default=0) + 1)
    try:
        aside.mkdir(parents=True)
        for path in paths:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"cannot move what an earlier run left to {aside}: {error.strerror or error}") from error
    return aside


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
