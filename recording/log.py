"""The file of a recorded layer: a SQLite database whose every row has a checksum.

    about       one row: JSON that says what the rest means, and its CRC-32
    moments     one row per record: step, mean and variance [examples, nodes] of the outputs, CRC-32
    posterior   one row per epoch, at its end: step, mean and std [weights, then biases], CRC-32

A step is a batch of the run, counted from 1. Arrays are float32, little-endian, in row-major order; a row's CRC-32
is that of the step in decimal digits and the two arrays (SQLite checks its pages for structure, not for flipped bits).

Rows wait in memory and are written in one short transaction, so a process that is killed leaves whole rows, and
whoever reads while the run goes on waits for milliseconds. Resuming is a DELETE.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recording import hdf5
from recording.hdf5 import Rows
from support import UserError, atomic_write, first_line, whole
from support.checks import INT64_MAX

SUFFIX = ".sqlite"
APPLICATION_ID, VERSION = 0x42434E4E, 2  # "BCNN"; version 1 was HDF5
SCHEMA = {
    "about": "CREATE TABLE about (json TEXT NOT NULL, crc32 INTEGER NOT NULL)",
    "moments": "CREATE TABLE moments "
    "(step INTEGER PRIMARY KEY, mean BLOB NOT NULL, variance BLOB NOT NULL, crc32 INTEGER NOT NULL)",
    "posterior": "CREATE TABLE posterior "
    "(step INTEGER PRIMARY KEY, mean BLOB NOT NULL, std BLOB NOT NULL, crc32 INTEGER NOT NULL)",
}
DIMENSIONS, LARGEST_BATCH = 8, 2**16  # of a tensor, and of the examples of a record, at most
NAMES_ANOTHER_FILE = bytes.fromhex("d9d505f920a163d7")  # the end of a journal that belongs to several databases
Array = NDArray[Any]


@dataclass(frozen=True)
class RecordedWeights:
    """The posterior of a layer's weight or bias at the end of every epoch.

    Attributes:
        shape: of the whole tensor.
        kept: [weights], the indices into the flattened tensor of those that were recorded.
        mean, std: [epochs, weights].
    """

    shape: tuple[int, ...]
    kept: Array
    mean: Array
    std: Array

    @property
    def signal_to_noise(self) -> Array:
        """|μ| / σ, [epochs, weights]; infinite (NaN for μ = 0) where σ is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(self.mean) / self.std

    @property
    def whole(self) -> bool:
        """Whether every weight was kept."""
        return len(self.kept) == math.prod(self.shape)


@dataclass(frozen=True)
class Recorded:
    """The recording of a layer.

    Attributes:
        layer, kind: what the layer is called, and its class.
        order: the position of the layer among the recorded ones, from 0.
        node_shape: of one example's output.
        nodes: [nodes], the indices into the flattened output of those that were recorded.
        kept: in words, which examples and nodes were recorded.
        frequency, batches: requested records per epoch, and batches per epoch.
        settings: of the run.
        epoch, batch: [records], from 1.
        mean, variance: [records, examples, nodes] of the outputs; NaN where a batch had fewer examples.
        posterior_epoch: [epochs], the epochs at whose end the weights were recorded.
        weights: the posterior of 'weight' and, if the layer has one, 'bias'.
    """

    layer: str
    kind: str
    order: int
    node_shape: tuple[int, ...]
    nodes: Array
    kept: str
    frequency: int
    batches: int
    settings: dict[str, Any]
    epoch: Array
    batch: Array
    mean: Array
    variance: Array
    posterior_epoch: Array
    weights: dict[str, RecordedWeights]

    @property
    def std(self) -> Array:
        """[records, examples, nodes]."""
        return np.asarray(np.sqrt(self.variance))

    @property
    def time(self) -> Array:
        """[records], in epochs: how much training came before each."""
        return np.asarray(self.epoch - 1 + (self.batch - 1) / self.batches)


def read_recording(path: str | Path) -> Recorded:
    """Read the recording of a layer, of a run that ended, was killed, or still goes on.

    The rows are those before the first damaged one. Recordings of the earlier version, `<layer>.h5`, need h5py.

    Raises:
        UserError: the file is missing, is not a recording, or cannot be read.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")
        return _recorded(*(hdf5.read(path) if path.suffix == hdf5.SUFFIX else _read(path)))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no recording {path}: train with record_mean_var True first, or give another path"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a foreign or damaged file can raise any of SQLite's, HDF5's and Python's own
        raise UserError(f"{path} is not a readable recording: {first_line(error)}") from error


def find_recordings(folder: Path) -> dict[Path, Recorded]:
    """The recordings in a folder by path; files that are none, or cannot be read, are passed over."""
    recordings = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in (SUFFIX, hdf5.SUFFIX):
            try:
                recordings[path] = read_recording(path)
            except UserError:
                continue
    return recordings


class Log:
    """A recording to which rows are added.

    Args:
        path: where it is; it must have been read, or made by `create`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any]) -> Log:
        """Write a recording that has no rows yet, atomically.

        Args:
            path: where to.
            about: what `Recorded` says of the layer; `examples`, how many of them a record has; and for 'weight' and
                'bias' in `weights`, their shape and the indices that are kept.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps(about, default=str)
        with atomic_write(path) as temporary, _writing(path), closing(sqlite3.connect(temporary)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
            for table in SCHEMA.values():
                database.execute(table)
            with database:
                database.execute("INSERT INTO about VALUES (?, ?)", (text, zlib.crc32(text.encode())))
            _journal(path).unlink(missing_ok=True)  # of a file that is gone: SQLite would apply it to this one
        return cls(path)

    def truncate(self, steps: dict[str, int]) -> None:
        """Delete the rows of each table after the given step."""
        with _writing(self._path):
            self._execute([(f"DELETE FROM {table} WHERE step > ?", (step,)) for table, step in steps.items()])

    def append(self, table: str, step: int, *arrays: Array) -> None:
        """Add a row, which waits in memory until `write`."""
        blobs = [np.asarray(array, "<f4").tobytes() for array in arrays]
        self._waiting.append((f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (step, *blobs, _checksum(step, *blobs))))

    def write(self, *, last: bool = False) -> None:
        """Bring the rows that wait to the disk, in one transaction.

        While another program holds the file locked, they go on waiting, unless this is the `last` chance.

        Raises:
            UserError: they cannot be written.
        """
        if not self._waiting:
            return
        with _writing(self._path):
            try:
                self._execute(self._waiting)
            except sqlite3.OperationalError as error:
                if last or "locked" not in str(error):
                    raise
            else:
                self._waiting.clear()

    def _execute(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        with _opened(self._path, "rw") as database, database:
            database.execute("PRAGMA synchronous = OFF")  # a kill needs no flushes; for a power cut there is one below
            for statement in statements:
                database.execute(*statement)
        with self._path.open("rb+") as stream:
            os.fsync(stream.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, sqlite3.Error) as error:
        raise UserError(f"cannot write {path}: {first_line(error)}") from error


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """The database, closed on leaving. It may come from anywhere: nothing in it can run.

    A journal beside it belongs to a transaction that is under way, or that a kill interrupted: SQLite then takes the
    transaction back, for which it has to write. It would also delete any file that is named as its super-journal.
    """
    path = path.resolve()
    journal = _journal(path)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(journal.stat().st_mode):
            raise ValueError("its journal is not a regular file")
        if journal.read_bytes().endswith(NAMES_ANOTHER_FILE):
            raise ValueError("its journal names another file")
        mode = "rw"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        yield database


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _checksum(step: int, *blobs: bytes) -> int:
    return zlib.crc32(b"".join((b"%d" % step, *blobs)))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What a recording says about itself, and its rows."""
    with _opened(path, "ro") as database, database:
        database.execute("BEGIN")  # every query sees the same state
        identity = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if identity[0] != APPLICATION_ID:
            raise ValueError("it is another program's database")
        if identity[1] != VERSION:
            raise UserError(f"{path} is a recording of version {identity[1]}: expected version {VERSION}")
        schema = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        if schema != [("table", name, name, sql) for name, sql in SCHEMA.items()]:
            raise ValueError("its tables are not those of a recording")
        ((report,),) = database.execute("PRAGMA quick_check(1)")
        if report != "ok":
            raise ValueError(f"it is damaged: {report.splitlines()[-1]}")
        ((text, checksum),) = database.execute("SELECT * FROM about LIMIT 2")
        if zlib.crc32(text.encode()) != checksum:
            raise ValueError("it is damaged: its description has another checksum")
        about = json.loads(text)
        return about, {table: _rows(database, table) for table in ("moments", "posterior")}


def _rows(database: sqlite3.Connection, table: str) -> Rows:
    """The rows of a table before the first damaged one."""
    rows = []
    for step, first, second, checksum in database.execute(f"SELECT * FROM {table} ORDER BY step"):
        if _checksum(step, first, second) != checksum:
            break
        rows.append((step, first, second))
    if len({(len(first), len(second)) for _, first, second in rows}) > 1:
        raise ValueError("its rows differ in size")
    steps, *columns = zip(*rows, strict=True) if rows else ((), (), ())
    first, second = (np.frombuffer(bytearray().join(blobs), "<f4") for blobs in columns)
    return np.array(steps, np.int64), first, second


def _recorded(about: Mapping[str, Any], tables: Mapping[str, Rows]) -> Recorded:
    """The recording, its sizes checked against each other: whoever makes a file can make its checksums."""
    node_shape, batches = _shape(about["node_shape"]), whole(1)(about["batches"])
    nodes = _indices(about["nodes"], node_shape)
    steps, mean, variance = tables["moments"]
    records = (len(steps), whole(1, LARGEST_BATCH)(about["examples"]), len(nodes))
    ends, means, stds = tables["posterior"]
    weights = about["weights"]
    shapes = {key: _shape(weights[key]["shape"]) for key in ("weight", *(weights.keys() & {"bias"}))}
    kept = {key: _indices(weights[key]["kept"], shape) for key, shape in shapes.items()}
    splits = np.cumsum([len(indices) for indices in kept.values()])
    columns = [np.split(values.reshape(len(ends), splits[-1]), splits[:-1], axis=1) for values in (means, stds)]
    return Recorded(
        layer=str(about["layer"]),
        kind=str(about["kind"]),
        order=whole(0)(about["order"]),
        node_shape=node_shape,
        nodes=nodes,
        kept=str(about["kept"]),
        frequency=whole(1)(about["frequency"]),
        batches=batches,
        settings=dict(about["settings"]),
        epoch=(steps - 1) // batches + 1,
        batch=(steps - 1) % batches + 1,
        mean=mean.reshape(records),
        variance=variance.reshape(records),
        posterior_epoch=ends // batches,
        weights={
            key: RecordedWeights(shapes[key], kept[key], *moments) for key, *moments in zip(kept, *columns, strict=True)
        },
    )


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(map(whole(1), sizes))
    if len(shape) > DIMENSIONS or math.prod(shape) > INT64_MAX:
        raise ValueError(f"it is of a tensor too large: {shape}")
    return shape


def _indices(values: Any, shape: tuple[int, ...]) -> Array:
    """Ascending indices into a flattened tensor."""
    indices = np.array(values, np.int64)
    ascending = indices.ndim == 1 and len(indices) and (np.diff(indices) > 0).all()
    if not ascending or indices[0] < 0 or indices[-1] >= math.prod(shape):
        raise ValueError("its indices are not those of its tensors")
    return indices
