"""How the means and variances of a Bayesian network's layers move while it trains, recorded layer by layer.

A log is one HDF5 file a layer that is complete and closed at every moment. Its structure, with room for
rows to come, is written whole by h5py; a row is then written straight to its place in the file, its checksum
last, so HDF5's own metadata never change and a kill can tear no more than the row at hand, which then fails
its checksum. When the room is used up, twice as much is written anew, whole, in the file's stead.

In a log:
    moments/    a row a record: epoch and batch (from 1), mean and variance [examples, nodes] of the outputs
    posterior/  a row an epoch, at its end: epoch, and weight_mean, weight_std, bias_mean, bias_std [kept]
    nodes, weight_kept, bias_kept   which ones, as indices into the flattened output of an example or weight
and as attributes what the rest means. `read_recording` reads it back; other readers of HDF5 should pass over
the rows at the end whose epoch is 0.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from layers import BayesianLayer, Posterior
from support import UserError, archive, atomic_write, first_line

FORMAT = "recorded Bayesian layer, version 1"
EXAMPLES, NODES, WEIGHTS = 16, 64, 2**15  # kept at most: 8 KiB a record, 256 KiB and the biases an epoch
ROOM = {"moments": 1024, "posterior": 32}  # rows that a log first has room for; unused, they take no disk
Array = NDArray[Any]
Table = dict[str, Array]  # columns [rows, ...]


def recorded_layers(net: nn.Module, names: Sequence[str] | None = None) -> dict[str, BayesianLayer]:
    """The Bayesian layers of `net` that bear one of `names`, or all of them for None, by what a log calls them.

    A layer goes by its `name`, or by its dotted module path where it has no name of its own; `names` may have
    either.

    Raises:
        UserError: no layer bears a name (the known ones are listed), or the network has no Bayesian layer.
    """
    layers = {path: module for path, module in net.named_modules() if isinstance(module, BayesianLayer)}
    paths = {path: layer for path, layer in layers.items() if "lrt" in layer.estimators}  # whose outputs have moments
    if not paths:
        raise UserError(f"{type(net).__name__} has no Bayesian layer to record")
    bearers = Counter(layer.name for layer in paths.values())
    titles = {}
    for path, layer in paths.items():
        own = layer.name is not None and bearers[layer.name] == 1 and paths.get(layer.name, layer) is layer
        titles[path] = str(layer.name) if own else path or type(layer).__name__
    if names is None:
        return {titles[path]: layer for path, layer in paths.items()}
    chosen: dict[str, BayesianLayer] = {}
    for name in names:
        found = {titles[path]: layer for path, layer in paths.items() if name in (titles[path], layer.name, path)}
        if not found:
            raise UserError(f"no Bayesian layer is called {name!r}: known are {', '.join(titles.values())}")
        chosen |= found
    return chosen


def moments(layer: BayesianLayer, input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean op(x, μ) and variance op(x², σ²) of a layer's output under its posterior, whatever its estimator.

    Both of the output's shape [n, ...], without gradient and not in a lower precision than the weights'.
    """
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        input = input.to(layer.weight.dtype) if input.is_floating_point() else input
        mean = layer.operation(input, *layer.means())
        variance = layer.operation(layer.squared(input), *layer.variances())
        return mean, variance.clamp_min(0)


@contextmanager
def recording(
    net: nn.Module,
    folder: str | Path,
    batches: int,
    *,
    layers: Sequence[str] | None = None,
    frequency: int = 32,
    resume_at: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[Recorder]:
    """Within it the layers of `net` record their outputs' moments; call `recorder.step()` after every batch.

    Example:
        >>> with recording(net, "checkpoints/mine", batches=len(loader)) as recorder:
        ...     for epoch in range(epochs):
        ...         for images, labels in loader:
        ...             train_step(net, images, labels)
        ...             recorder.step()
        >>> recorded = read_recording("checkpoints/mine/fc3.h5")

    A record is of the first pass that a layer makes in training mode in a batch that is due. Nothing is drawn
    from torch's global generators, so training takes the same course with and without recording.

    Args:
        folder: where `<layer>.h5` go, one a layer.
        batches: batches an epoch.
        layers: names or dotted paths; None for all.
        frequency: records an epoch, evenly spread over its batches; every batch if there are not so many.
        resume_at: batches that the run has behind it: its logs there are continued, and what they hold of
            later batches is dropped. None for a run anew: earlier logs are moved aside, and where to is printed.
        settings: of the run, kept in the logs: plain values.
        seed: of the choice of examples, nodes and weights, where a layer has more than are kept.

    Raises:
        UserError: a name that no layer bears, a frequency below 1, a log that cannot be continued or written.
    """
    recorder = Recorder(net, Path(folder), batches, layers, frequency, resume_at, settings or {}, seed)
    try:
        yield recorder
    finally:
        recorder.close()


class Recorder:
    """See `recording`, which makes it.

    Attributes:
        steps: batches trained so far, of this run and the runs that it resumes.
    """

    def __init__(
        self,
        net: nn.Module,
        folder: Path,
        batches: int,
        names: Sequence[str] | None,
        frequency: int,
        resume_at: int | None,
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
            raise UserError(f"the recording frequency must be a whole number of at least 1, got {frequency!r}")
        if batches < 1:
            raise UserError(f"an epoch must have at least 1 batch, got {batches!r}")
        self._net, self._folder, self._seed = net, folder, seed
        self._layers = recorded_layers(net, names)
        self._about = {"frequency": frequency, "batches": batches, "settings": json.dumps(dict(settings), default=str)}
        self._due = due_batches(frequency, batches)
        self.steps = resume_at or 0
        self._batches = batches
        self._chosen: dict[int, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._logs: dict[str, _Log] = {}
        if resume_at is None:
            _archive_recordings(folder)
        else:
            for title, layer in self._layers.items():
                if self._path(title).exists():
                    self._logs[title] = self._continued(title, layer)
        self._hooks = [
            layer.register_forward_pre_hook(_Hook(self, title), with_kwargs=True)
            for title, layer in self._layers.items()
        ]

    def step(self) -> None:
        """A batch is over: write what was recorded of it and, after an epoch's last, the posterior."""
        epoch, batch = divmod(self.steps, self._batches)
        for title, (mean, variance) in self._seen.items():
            if title not in self._logs:
                self._logs[title] = self._begun(title, mean)
            log = self._logs[title]
            row = {"epoch": epoch + 1, "batch": batch + 1, "mean": log.kept(mean), "variance": log.kept(variance)}
            log.append("moments", row)
        self._seen.clear()
        self.steps += 1
        if batch + 1 == self._batches:
            for title, log in self._logs.items():
                log.append("posterior", {"epoch": epoch + 1, **_posterior(self._layers[title], log.content.fixed)})

    def observe(self, input: Tensor) -> None:
        """Record from an extra pass of the kept examples of `input`, if a record is due.

        For a network that is trained through `torch.compile`, whose compiled passes call no recorder.
        """
        if self._is_due():
            devices = [input.device] if input.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                self._net(input[self._examples(len(input))])

    def observe_layer(self, title: str, layer: BayesianLayer, input: Tensor) -> None:
        """Note the moments of a layer's first training pass in a batch that is due."""
        if layer.training and self._is_due() and title not in self._seen:
            if input.dim() < layer.weight.dim():
                input = input.unsqueeze(0)  # one example, unbatched
            self._seen[title] = moments(layer, input.detach()[self._examples(len(input))])

    def sync(self) -> None:
        """Bring the logs to the disk: called before a checkpoint is written, no checkpoint is ahead of them."""
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        """Take the hooks off the network and give back the room in the logs that was not used."""
        for hook in self._hooks:
            hook.remove()
        for log in self._logs.values():
            log.close()

    def _is_due(self) -> bool:
        return self.steps % self._batches in self._due

    def _examples(self, batch_size: int) -> Tensor:
        if batch_size not in self._chosen:
            self._chosen[batch_size] = torch.from_numpy(_subset(batch_size, EXAMPLES, self._seed))
        return self._chosen[batch_size]

    def _path(self, title: str) -> Path:
        return self._folder / (re.sub(r"[^\w.-]", "_", title) + ".h5")

    def _begun(self, title: str, mean: Tensor) -> _Log:
        layer, path = self._layers[title], self._path(title)
        if path.exists():
            raise UserError(f"{path} is in the way of a new recording and is none itself: move it elsewhere")
        nodes = _subset(mean[0].numel(), NODES, self._seed)
        fixed, none_yet = {"nodes": nodes}, np.zeros(0, "<i4")
        posterior: Table = {"epoch": none_yet}
        attributes = {
            "format": FORMAT,
            "layer": title,
            "kind": type(layer).__name__,
            "order": list(self._layers).index(title),
            "node_shape": tuple(mean.shape[1:]),
            "kept": f"{len(mean)} examples of a batch, {len(nodes)} of {mean[0].numel()} nodes, by seed {self._seed}",
            **self._about,
        }
        for key, weight in _weights(layer):
            fixed[f"{key}_kept"] = kept = _subset(weight.numel(), WEIGHTS, self._seed)
            attributes[f"{key}_shape"] = tuple(weight.shape)
            posterior |= {f"{key}_{moment}": np.zeros((0, len(kept)), "<f4") for moment in ("mean", "std")}
        values = np.zeros((0, len(mean), len(nodes)), "<f4")
        records = {"epoch": none_yet, "batch": none_yet, "mean": values, "variance": values}
        return _Log(path, _Content(attributes, fixed, {"moments": records, "posterior": posterior}))

    def _continued(self, title: str, layer: BayesianLayer) -> _Log:
        path = self._path(title)
        content = _read(path)
        if any(tuple(content.attributes[f"{key}_shape"]) != weight.shape for key, weight in _weights(layer)):
            raise UserError(f"{path} was recorded of another layer than this network's {title}: move it elsewhere")
        records, posterior = content.tables["moments"], content.tables["posterior"]
        at = (records["epoch"] - 1) * self._batches + records["batch"] - 1
        wanted = max((step for step in range(self.steps) if step % self._batches in self._due), default=None)
        if wanted is not None and wanted not in at:
            epoch, batch = divmod(wanted, self._batches)
            raise UserError(
                f"{path} lacks the record of epoch {epoch + 1}, batch {batch + 1}, so it is of another run than "
                f"the one that is resumed: move it elsewhere, and recording begins where the run goes on"
            )
        past = at < self.steps, posterior["epoch"] <= self.steps // self._batches
        tables = {
            name: {column: values[kept] for column, values in table.items()}
            for (name, table), kept in zip(content.tables.items(), past, strict=True)
        }
        return _Log(path, _Content(content.attributes, content.fixed, tables))


@dataclass(frozen=True)
class _Hook:
    """Called before each pass of a layer; a copy of the network has copies of its hooks, and these do nothing."""

    recorder: Recorder | None = None
    title: str = ""

    def __call__(self, layer: BayesianLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.recorder is not None and not torch.compiler.is_compiling():
            self.recorder.observe_layer(self.title, layer, args[0] if args else kwargs["input"])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def due_batches(frequency: int, batches: int) -> set[int]:
    """The batches (from 0) of an epoch that are recorded: evenly spread from the first, all if there are too few."""
    count = min(frequency, batches)
    return {index * batches // count for index in range(count)}


@dataclass(frozen=True)
class RecordedWeights:
    """The posterior of a layer's weight or bias at the end of every epoch.

    Attributes:
        shape: of the whole tensor.
        kept: [weights] the indices into the flattened tensor of those that were recorded.
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
        return len(self.kept) == int(np.prod(self.shape))


@dataclass(frozen=True)
class Recorded:
    """A layer's log.

    Attributes:
        layer, kind: what the layer is called, and its class.
        order: where the layer stands among the recorded ones, from 0.
        node_shape: of one example's output.
        nodes: [nodes] the indices into the flattened output of those that were recorded.
        kept: in words, which examples and nodes were.
        frequency, batches: records asked for and batches, an epoch.
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
        """[records] in epochs: how much of training lay behind each."""
        return np.asarray(self.epoch - 1 + (self.batch - 1) / self.batches)


def read_recording(path: str | Path) -> Recorded:
    """A log up to its last whole record, of a run that ended, was killed, or still goes on.

    Raises:
        UserError: the file is missing, is no log, or cannot be read.
    """
    content = _read(Path(path))
    about, fixed, records, posterior = content.attributes, content.fixed, *content.tables.values()
    return Recorded(
        layer=about["layer"],
        kind=about["kind"],
        order=int(about["order"]),
        node_shape=tuple(map(int, about["node_shape"])),
        nodes=fixed["nodes"],
        kept=about["kept"],
        frequency=int(about["frequency"]),
        batches=int(about["batches"]),
        settings=json.loads(about["settings"]),
        epoch=records["epoch"],
        batch=records["batch"],
        mean=records["mean"],
        variance=records["variance"],
        posterior_epoch=posterior["epoch"],
        weights={
            key: RecordedWeights(
                tuple(map(int, about[f"{key}_shape"])),
                fixed[f"{key}_kept"],
                posterior[f"{key}_mean"],
                posterior[f"{key}_std"],
            )
            for key in ("weight", "bias")
            if f"{key}_shape" in about
        },
    )


@dataclass(frozen=True)
class _Content:
    attributes: dict[str, Any]
    fixed: Table
    tables: dict[str, Table]


class _Column(NamedTuple):
    """Where a column lies in a file: its first byte, the bytes of a row, their type."""

    offset: int
    width: int
    dtype: np.dtype[Any]


class _Log:
    """A log open for appending; `content.tables` are the rows that it starts with."""

    def __init__(self, path: Path, content: _Content) -> None:
        self.path = path
        self.content = content
        self._examples = content.tables["moments"]["mean"].shape[1]
        self._nodes = torch.from_numpy(content.fixed["nodes"])
        self._count = {table: len(columns["epoch"]) for table, columns in content.tables.items()}
        self._room = {table: count + ROOM[table] for table, count in self._count.items()}
        self._write(content)

    def kept(self, values: Tensor) -> Array:
        """[examples, nodes] of a batch's [n, ...], NaN below the n-th example."""
        chosen = values.flatten(1).index_select(1, self._nodes.to(values.device)).float().cpu().numpy()
        missing = self._examples - len(chosen)
        if missing > 0:
            chosen = np.pad(chosen, ((0, missing), (0, 0)), constant_values=np.nan)
        return np.asarray(chosen[: self._examples])

    def append(self, table: str, row: Mapping[str, Any]) -> None:
        """Write a row, whole or, if the process dies in it, with a checksum that does not fit."""
        if self._count[table] == self._room[table]:
            self._room[table] *= 2
            self._stream.close()
            self._write(_read(self.path))
        cells = [np.asarray(row[column], self._columns[table, column].dtype).tobytes() for column in sorted(row)]
        cells.append(np.asarray(_checksum(cells), "<u4").tobytes())
        try:
            for column, cell in zip([*sorted(row), "crc32"], cells, strict=True):
                place = self._columns[table, column]
                self._stream.seek(place.offset + self._count[table] * place.width)
                self._stream.write(cell)
            self._stream.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._count[table] += 1

    def sync(self) -> None:
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
        content = _read(self.path)
        self._room = {table: len(columns["epoch"]) for table, columns in content.tables.items()}
        _write(self.path, content, self._room)

    def _write(self, content: _Content) -> None:
        """Write the log anew with its present room, and open it for appending."""
        self._columns = _write(self.path, content, self._room)
        self._stream: BinaryIO = self.path.open("r+b")


def _write(path: Path, content: _Content, room: Mapping[str, int]) -> dict[tuple[str, str], _Column]:
    """Write a log whole, each table with `room` for so many rows; where the columns of each lie."""
    places = {}
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(content.attributes)
        for name, values in content.fixed.items():
            file[name] = values
        for table, columns in content.tables.items():
            count = len(columns["epoch"])
            checksums = np.array([_checksum(_cells(columns, index)) for index in range(count)], "<u4")
            for name, values in (columns | {"crc32": checksums}).items():
                # Contiguous and allocated now: the rows to come have their place, outside of HDF5's bookkeeping.
                layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                shape = (room[table], *values.shape[1:])
                data = file.create_dataset(f"{table}/{name}", shape, values.dtype, dcpl=layout)
                data[:count] = values
                width = values.dtype.itemsize * math.prod(values.shape[1:])
                places[table, name] = _Column(data.id.get_offset() or 0, width, values.dtype)
        file.attrs["crc32"] = _head_checksum(file)
    return places


def _read(path: Path) -> _Content:
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            if attributes.get("format") != FORMAT:
                raise UserError(f"{path} is not a recording of this version: expected the format {FORMAT!r}")
            _refuse_bomb(file)
            if attributes.pop("crc32", None) != _head_checksum(file):
                raise ValueError("it is damaged, its checksum is not that of its content")
            fixed = {name: data[()] for name, data in file.items() if isinstance(data, h5py.Dataset)}
            tables = {
                table: _whole_rows({name: data[()] for name, data in file[table].items()})
                for table in ("moments", "posterior")
            }
    except FileNotFoundError as error:
        raise UserError(
            f"there is no recording {path}: train with record_mean_var True first, or give another path"
        ) from error
    except UserError:
        raise
    except Exception as error:  # what HDF5 makes of a foreign file can be any of them
        raise UserError(f"{path} is not a readable recording: {first_line(error)}") from error
    return _Content(attributes, fixed, tables)


def _refuse_bomb(file: h5py.File) -> None:
    """What is written here is never compressed: tables that are larger than their file are not of this library."""
    sizes: list[int] = []
    file.visititems(lambda _, found: sizes.append(found.nbytes if isinstance(found, h5py.Dataset) else 0))
    if sum(sizes) > file.id.get_filesize():
        raise ValueError("its tables are larger than the file")


def _head_checksum(file: h5py.File) -> int:
    """Of all that is written once: attributes, what lies outside the tables, and what the tables' columns are."""
    about = [repr((name, np.asarray(value).tolist())) for name, value in file.attrs.items() if name != "crc32"]

    def add(path: str, found: object) -> None:
        if isinstance(found, h5py.Dataset):
            about.append(repr((path, found.dtype.str, found.shape[1:] if "/" in path else found[()].tolist())))

    file.visititems(add)
    return _checksum([text.encode() for text in sorted(about)])


def _whole_rows(table: Table) -> Table:
    """The rows before the first that is empty or torn, without their checksums."""
    checksums = table.pop("crc32")
    count = 0
    while count < len(checksums) and table["epoch"][count] > 0 and _checksum(_cells(table, count)) == checksums[count]:
        count += 1
    return {name: column[:count] for name, column in table.items()}


def _cells(table: Table, index: int) -> list[bytes]:
    return [table[name][index].tobytes() for name in sorted(table)]


def _checksum(cells: Sequence[bytes]) -> int:
    value = 0
    for cell in cells:
        value = zlib.crc32(cell, value)
    return value


def _subset(size: int, most: int, seed: int) -> Array:
    """Indices below `size`, ascending: all, or a seeded choice of `most` of them that has the first one."""
    if size <= most:
        return np.arange(size)
    others = np.random.default_rng(seed).choice(size - 1, most - 1, replace=False) + 1
    return np.sort(np.append(others, 0))


def _weights(layer: BayesianLayer) -> list[tuple[str, Tensor]]:
    return [(key, getattr(layer, key).detach()) for key in layer.posterior]


def _posterior(layer: BayesianLayer, fixed: Table) -> dict[str, Array]:
    row = {}
    with torch.no_grad():
        for key, mean in _weights(layer):
            kept = torch.from_numpy(fixed[f"{key}_kept"]).to(mean.device)
            posterior = layer.posterior[key]
            assert isinstance(posterior, Posterior)
            for moment, values in (("mean", mean), ("std", posterior.std(mean))):
                row[f"{key}_{moment}"] = values.flatten()[kept].float().cpu().numpy()
    return row


def _archive_recordings(folder: Path) -> None:
    """Move the logs in `folder` to a new folder within it, and say where to."""
    if logs := [path for path in sorted(folder.glob("*.h5")) if _is_log(path)]:
        print(f"the earlier recording went to {archive(logs, folder)}", flush=True)


def _is_log(path: Path) -> bool:
    try:
        _read(path)
    except UserError:
        return False
    return True
