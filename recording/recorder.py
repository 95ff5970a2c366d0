"""Records how the means and variances of a Bayesian network's layers move while it trains.

Which layers, which of their outputs and weights, and when; `recording.log` is the file that they go to.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from layers import BayesianLayer, Posterior
from recording.log import SUFFIX, Array, Log, Recorded, find_recordings, read_recording
from support import UserError, archive, whole

EXAMPLES, NODES, WEIGHTS = 16, 64, 2**15  # kept at most: 8 KiB per record, 256 KiB and the biases per epoch


def recorded_layers(net: nn.Module, names: Sequence[str] | None = None) -> dict[str, BayesianLayer]:
    """The Bayesian layers of `net` that can be recorded, by the name that their recordings have.

    That is a layer's `name`, or its dotted module path where it has no name that is unique.

    Args:
        net: any network with Bayesian layers.
        names: names or dotted paths of layers; None for all.

    Raises:
        UserError: no layer has one of the names (the known ones are listed), or the network has no Bayesian layer.
    """
    layers = {path: module for path, module in net.named_modules() if isinstance(module, BayesianLayer)}
    paths = {path: layer for path, layer in layers.items() if "lrt" in layer.estimators}  # whose outputs have moments
    if not paths:
        raise UserError(f"{type(net).__name__} has no Bayesian layer to record")
    uses = Counter(layer.name for layer in paths.values())
    titles = {}
    for path, layer in paths.items():
        is_unique = layer.name is not None and uses[layer.name] == 1 and paths.get(layer.name, layer) is layer
        titles[path] = str(layer.name) if is_unique else path or type(layer).__name__
    if names is None:
        return {titles[path]: layer for path, layer in paths.items()}
    chosen: dict[str, BayesianLayer] = {}
    for name in names:
        matches = {titles[path]: layer for path, layer in paths.items() if name in (titles[path], layer.name, path)}
        if not matches:
            raise UserError(f"no Bayesian layer is called {name!r}: known are {', '.join(titles.values())}")
        chosen |= matches
    return chosen


def moments(layer: BayesianLayer, input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a layer's output under its posterior, whatever its estimator.

    Args:
        layer: a layer that the estimator `lrt` works with (see `layers.estimators`, eq. 6 of Kingma et al. 2015).
        input: [n, ...], as the layer takes it.

    Returns:
        Mean and variance, both of the output's shape [n, ...], without gradient and in the precision of the weights.
    """
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        input = input.to(layer.weight.dtype) if input.is_floating_point() else input
        mean, variance = layer.output_moments(input)
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
    """Record the moments of the outputs of `net`'s layers; call `recorder.step()` after every batch.

    Example:
        >>> with recording(net, "checkpoints/mine", batches=len(loader)) as recorder:
        ...     for epoch in range(epochs):
        ...         for images, labels in loader:
        ...             train_step(net, images, labels)
        ...             recorder.step()
        >>> recorded = read_recording("checkpoints/mine/fc3.sqlite")

    A record is of a layer's first pass in training mode in a batch that is due. No numbers are drawn from torch's
    global generators, so training takes the same course with and without recording. Records are written at the end
    of an epoch, at `recorder.sync()`, and when the context is left.

    Args:
        net: the network that is trained.
        folder: where the recordings go, one `<layer>.sqlite` per layer.
        batches: batches per epoch.
        layers: names or dotted paths; None for all.
        frequency: records per epoch, evenly spread over its batches; every batch if there are fewer.
        resume_at: batches that the resumed run has finished: its recordings in `folder` are continued, and their
            records of later batches are deleted. None for a new run: earlier recordings are moved to a folder that
            is printed.
        settings: plain values, settings of the run, that the recordings keep.
        seed: of the choice of examples, nodes and weights, where a layer has more than are kept.

    Raises:
        UserError: an unknown layer, a frequency below 1, or a recording that cannot be continued or written.
    """
    recorder = Recorder(net, Path(folder), batches, layers, frequency, resume_at, settings or {}, seed)
    try:
        yield recorder
    finally:
        recorder.close()


class Recorder:
    """Records the layers of a network while it is trained; made by `recording`, whose arguments it takes.

    Attributes:
        steps: batches trained so far, of this run and of those that it resumes.
    """

    def __init__(
        self,
        net: nn.Module,
        folder: Path,
        batches: int,
        layers: Sequence[str] | None,
        frequency: int,
        resume_at: int | None,
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        for name, value in (("frequency", frequency), ("batches", batches)):
            try:
                whole(1)(value)
            except ValueError as error:
                raise UserError(f"recording: {name}: expected {error}, got {value!r}") from error
        self._net, self._folder, self._seed = net, folder, seed
        self._layers = recorded_layers(net, layers)
        self._run = {"frequency": frequency, "batches": batches, "settings": dict(settings)}
        self._due = due_batches(frequency, batches)
        self.steps = resume_at or 0
        self._batches = batches
        self._examples_kept: dict[int, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._logs: dict[str, _LayerLog] = {}
        if resume_at is None:
            if earlier := find_recordings(folder):
                print(f"the earlier recording went to {archive(earlier, folder)}", flush=True)
        else:
            for title, layer in self._layers.items():
                if self._path(title).exists():
                    self._logs[title] = self._continue(title, layer)
        self._hooks = [
            layer.register_forward_pre_hook(_Hook(self, title), with_kwargs=True)
            for title, layer in self._layers.items()
        ]

    def step(self) -> None:
        """Count a finished batch, and add its records; after the last of an epoch also the posterior, and write."""
        self.steps += 1
        for title, (mean, variance) in self._seen.items():
            if title not in self._logs:
                self._logs[title] = self._create(title, mean)
            self._logs[title].add_moments(self.steps, mean, variance)
        self._seen.clear()
        if self.steps % self._batches == 0:
            for log in self._logs.values():
                log.add_posterior(self.steps)
            self.sync()

    def observe(self, input: Tensor) -> None:
        """Record an extra pass of the kept examples of `input` [n, ...], if a record is due.

        For a network that is trained through `torch.compile`, whose compiled passes are not recorded. The pass leaves
        the running statistics of batch norm as they are.
        """
        if self._is_due():
            devices = [input.device] if input.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                buffers = {name: buffer.clone() for name, buffer in self._net.named_buffers()}
                functional_call(self._net, buffers, input[self._examples(len(input))])

    def observe_layer(self, title: str, layer: BayesianLayer, input: Tensor) -> None:
        """Keep the moments of a layer's first training pass in a batch that is due; called before each pass."""
        if layer.training and self._is_due() and title not in self._seen:
            if input.dim() < layer.weight.dim():
                input = input.unsqueeze(0)  # one example, unbatched
            self._seen[title] = moments(layer, input.detach()[self._examples(len(input))])

    def sync(self) -> None:
        """Bring the records to the disk; called before a checkpoint is written, which they must not lag behind."""
        for log in self._logs.values():
            log.file.write()

    def close(self) -> None:
        """Remove the hooks from the network and write the records that wait."""
        for hook in self._hooks:
            hook.remove()
        for log in self._logs.values():
            log.file.write(last=True)

    def _is_due(self) -> bool:
        return self.steps % self._batches in self._due

    def _examples(self, batch_size: int) -> Tensor:
        if batch_size not in self._examples_kept:
            self._examples_kept[batch_size] = torch.from_numpy(_subset(batch_size, EXAMPLES, self._seed))
        return self._examples_kept[batch_size]

    def _path(self, title: str) -> Path:
        return self._folder / (re.sub(r"[^\w.-]", "_", title) + SUFFIX)

    def _create(self, title: str, mean: Tensor) -> _LayerLog:
        """A new recording, of a layer whose first record has this mean."""
        layer, path = self._layers[title], self._path(title)
        if path.exists():
            raise UserError(f"{path} exists and is not a recording: move it away")
        nodes = _subset(mean[0].numel(), NODES, self._seed)
        about = {
            "layer": title,
            "kind": type(layer).__name__,
            "order": list(self._layers).index(title),
            "node_shape": tuple(mean.shape[1:]),
            "nodes": nodes.tolist(),
            "examples": len(mean),
            "kept": f"{len(mean)} examples of a batch, {len(nodes)} of {mean[0].numel()} nodes, by seed {self._seed}",
            "weights": {
                key: {"shape": shape, "kept": _subset(math.prod(shape), WEIGHTS, self._seed).tolist()}
                for key, shape in _shapes(layer).items()
            },
            **self._run,
        }
        return _LayerLog(layer, Log.create(path, about), read_recording(path))

    def _continue(self, title: str, layer: BayesianLayer) -> _LayerLog:
        """The recording of the run that is resumed, without what lies after the step that it is resumed at."""
        path = self._path(title)
        recorded = read_recording(path)
        shapes = {key: weight.shape for key, weight in recorded.weights.items()}
        if shapes != _shapes(layer) or recorded.batches != self._batches:
            raise UserError(f"{path} is of another network or data set than this {title}: move it away")
        steps = (recorded.epoch - 1) * self._batches + recorded.batch
        due = max((step for step in range(self.steps) if step % self._batches in self._due), default=None)
        if due is not None and due + 1 not in steps:
            epoch, batch = divmod(due, self._batches)
            raise UserError(
                f"{path} lacks the record of epoch {epoch + 1}, batch {batch + 1}, so it is of another run than "
                f"the one that is resumed: move it away, and recording begins where the run goes on"
            )
        log, ends = Log(path), recorded.posterior_epoch * self._batches
        log.truncate({"moments": _last(steps, self.steps), "posterior": _last(ends, self.steps)})
        return _LayerLog(layer, log, recorded)


class _LayerLog:
    """The recording of a layer, and which of its outputs and weights go there: those of `recorded`."""

    def __init__(self, layer: BayesianLayer, file: Log, recorded: Recorded) -> None:
        self.file = file
        self._layer = layer
        self._examples = recorded.mean.shape[1]
        self._nodes = torch.from_numpy(recorded.nodes)
        self._weights = {key: torch.from_numpy(weight.kept) for key, weight in recorded.weights.items()}

    def add_moments(self, step: int, mean: Tensor, variance: Tensor) -> None:
        self.file.append("moments", step, self._thin(mean), self._thin(variance))

    @torch.no_grad()
    def add_posterior(self, step: int) -> None:
        means, stds = [], []
        for key, kept in self._weights.items():
            mean, posterior = getattr(self._layer, key), self._layer.posterior[key]
            assert isinstance(posterior, Posterior)
            means.append(posterior.location(mean).flatten()[kept.to(mean.device)])
            stds.append(posterior.std(mean).flatten()[kept.to(mean.device)])
        self.file.append("posterior", step, *(torch.cat(values).float().cpu().numpy() for values in (means, stds)))

    def _thin(self, values: Tensor) -> Array:
        """[examples, nodes] of a batch's [n, ...], NaN below the n-th example."""
        chosen = values.flatten(1).index_select(1, self._nodes.to(values.device)).float().cpu().numpy()
        thinned = np.full((self._examples, len(self._nodes)), np.nan, np.float32)
        thinned[: len(chosen)] = chosen[: self._examples]
        return thinned


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
    """The batches of an epoch, from 0, that are recorded: evenly spread from the first one, or all if there are fewer.

    Args:
        frequency: records per epoch.
        batches: batches per epoch.
    """
    count = min(frequency, batches)
    return {index * batches // count for index in range(count)}


def _subset(size: int, most: int, seed: int) -> Array:
    """Ascending indices below `size`: all, or a seeded choice of `most` of them, 0 among them."""
    if size <= most:
        return np.arange(size)
    others = np.random.default_rng(seed).choice(size - 1, most - 1, replace=False) + 1
    return np.sort(np.append(others, 0))


def _shapes(layer: BayesianLayer) -> dict[str, tuple[int, ...]]:
    return {key: tuple(getattr(layer, key).shape) for key in layer.posterior}


def _last(steps: Array, most: int) -> int:
    """The last of ascending steps that is at most `most`; 0 if there is none."""
    return max((step for step in steps.tolist() if step <= most), default=0)
