"""Training on JPEG files that are decoded as they are needed, compared with training on the same images in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import config_frequentist
from benchmarks.measure import conditions, ratios_to_baseline, table, time_interleaved
from images import Split, load_data
from training import Settings, from_config, start, train_epoch
from training.interruption import StopRequest
from training.state import Setup, State

CLASSES, SIDE, BATCH, STEPS = 4, 96, 32, 10
MEMORY = "in memory"


def write_photos(folder: Path, each: int) -> None:
    """`folder/<class>/*.jpg`: smooth random images of 96×96 pixels in color."""
    generator = torch.Generator().manual_seed(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for index in range(each):
            coarse = torch.rand(1, 3, 8, 8, generator=generator)
            smooth = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
            Image.fromarray((255 * smooth).byte().numpy()).save(folder / str(label) / f"{index:04d}.jpg", quality=90)


def measure(rounds: int) -> dict[str, Any]:
    """Epochs of the trainer with ResNet-18 as a deterministic network, whose steps are the shortest; by workers."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "photos")
        write_photos(root / "train", BATCH * STEPS // CLASSES)
        for name in ("val", "test"):
            write_photos(root / name, 1)
        settings = replace(
            from_config(Settings, config_frequentist), dataset=str(root), net_type="resnet18", image_size=(SIDE, SIDE),
            batch_size=BATCH, checkpoint_dir=temporary, lr_schedule="constant",
        )  # fmt: skip
        state, setup = start(settings)
        files = load_data(str(root), "data", 0.1, 0, memory_limit=0, image_size=(SIDE, SIDE))
        epochs = {MEMORY: Epoch(state, setup)} | {
            f"{workers} workers": Epoch(
                state, replace(setup, data=files, settings=replace(settings, num_workers=workers))
            )
            for workers in (0, 4)
        }
        times = time_interleaved(epochs, rounds)
    ratios = ratios_to_baseline(times, MEMORY)
    for name, row in ratios.items():
        waiting = epochs[name].waiting[-rounds:]
        row["waiting"] = statistics.median(
            waited / seconds for waited, seconds in zip(waiting, times[name], strict=True)
        )
    return {"side": SIDE, "batch": BATCH, "steps": STEPS, "ratios": ratios, "conditions": conditions()}


class Epoch:
    """An epoch of the trainer, which notes how long its steps wait for their images.

    Args:
        state: of the run.
        setup: of the run, with the images.
    """

    def __init__(self, state: State, setup: Setup) -> None:
        self.state, self.waiting = state, list[float]()
        split = Timed(setup.data.train.images, setup.data.train.labels, self.waiting)
        self.setup = replace(setup, data=replace(setup.data, train=split))

    def __call__(self) -> None:
        """Train."""
        self.state.progress.batch = 0
        self.waiting.append(0.0)
        train_epoch(self.state, self.setup, self.state.net, StopRequest())


@dataclass(frozen=True, eq=False)
class Timed(Split):
    """A split that adds what its batches take, in seconds, to the last of `waiting`."""

    waiting: list[float]

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """As of `Split`."""
        batches = super().batches(*args, **kwargs)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waiting[-1] += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [
        [name, f"{row['seconds'] / result['steps'] * 1000:.0f} ms", f"{row['waiting']:.1%}", f"{row['ratio']:.2f}"]
        for name, row in result["ratios"].items()
    ]
    header = f"ResNet-18, {result['batch']} JPEGs of {result['side']}×{result['side']} per step"
    return table([header, "step", "waiting for images", "ratio"], rows)
