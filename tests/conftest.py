"""What the tests share: small pictures of two classes, tiny runs on them, and scripts run as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import config_bayesian
import config_frequentist
from inference import plots
from support import write_text
from tests.processes import ROOT, run_program
from training import BayesianSettings, RunFiles, Settings, from_config, loop, run

Script = Callable[..., "subprocess.CompletedProcess[str]"]


# Tests are of small tensors, for which threads cost more than they bring; their processes and compilers have one each.
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores, also in their processes
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

in_one_graph = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="before torch 2.14 the compiler does not follow a context variable: a network has several graphs",
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _history_undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run within a test writes empty pictures, except where the test is marked `draws`."""

    def write_nothing(name: str) -> Callable[..., Path]:
        def plot_nothing(folder: Path, *content: object) -> Path:
            write_text(folder / f"{name}.png", "")
            return folder / f"{name}.png"

        return plot_nothing

    if not request.node.get_closest_marker("draws"):
        for name in ("history", "confusion"):
            monkeypatch.setattr(loop, f"plot_{name}", write_nothing(name))


def script_environment() -> dict[str, str]:
    """Of a new interpreter: help texts have the same width everywhere."""
    return {**os.environ, "COLUMNS": "120"}


@pytest.fixture
def script() -> Script:
    """Runs `python NAME ARGUMENTS…` in the project's root; in a new interpreter if `fresh`, else see `processes`."""

    def run(name: str, *arguments: object, expect: int = 0, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        answer = (new_interpreter if fresh else run_program)(name, *arguments)
        assert answer.returncode == expect, answer.stdout + answer.stderr
        return answer

    return run


def draw_nothing(patch: Callable[..., None] = setattr) -> None:
    """Spare a report the seconds that its pictures take, in a test that looks at none."""
    patch(plots, "plot_evaluation", lambda *_: [])


def new_interpreter(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS…` in the project's root, with all the imports that it takes."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT, env=script_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def draw_pictures(folder: Path, each: int, mode: str = "L", seed: int = 0) -> Path:
    """`folder/<class>/*.png`: noise with a bright bar, upright or lying by class, of 32×32 pixels."""
    random = np.random.default_rng(seed)
    for label, name in enumerate(("lying", "upright")):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = random.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            at = int(random.integers(4, 26))
            bar = (slice(at, at + 3), slice(None)) if label == 0 else (slice(None), slice(at, at + 3))
            pixels[bar] += 150
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey pictures: train/ with 100 of each of two classes, test/ with 20."""
    root = tmp_path_factory.mktemp("images") / "bars"
    draw_pictures(root / "train", 100, seed=0)
    draw_pictures(root / "test", 20, seed=1)
    return root


def bayesian_settings(pictures: Path, folder: Path, **changes: Any) -> BayesianSettings:
    """Settings of a run of 3 epochs, of 3 steps each, on the pictures; its checkpoints go to `folder`."""
    changes = {"n_epochs": 3, "batch_size": 64, "lr_start": 3e-3, "valid_ens": 2, "test_ens": 3, **changes}
    settings = from_config(BayesianSettings, config_bayesian)
    return replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), **changes)


def frequentist_settings(pictures: Path, folder: Path, **changes: Any) -> Settings:
    """The same of the frequentist family, at the learning rate of its config."""
    changes = {"n_epochs": 3, "batch_size": 64, **changes}
    settings = from_config(Settings, config_frequentist)
    return replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), **changes)


def run_files(settings: Settings) -> RunFiles:
    """Where the files of a run on the pictures are."""
    return RunFiles.for_run(settings, "bars", isinstance(settings, BayesianSettings))


@pytest.fixture(scope="session")
def finished_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> BayesianSettings:
    """Settings of a Bayesian run of one epoch that is over; its files are for reading and copying."""
    folder = tmp_path_factory.mktemp("finished")
    settings = bayesian_settings(pictures, folder, n_epochs=1, batch_size=20, valid_ens=1, test_ens=2)
    run(settings)
    return settings


def weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint."""
    return torch.load(path, weights_only=True)["weights"]  # type: ignore[no-any-return]


def same(one: Any, other: Any) -> bool:
    """Whether nested plain values and tensors are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def draws_of(draw: Callable[[], torch.Tensor], count: int) -> torch.Tensor:
    """`count` independent calls, stacked; `torch.func.vmap` makes 1,000 at once, or one, which is the plain call."""
    torch.manual_seed(7)
    plain = draw().detach()

    def draws(size: int) -> torch.Tensor:
        return torch.func.vmap(lambda _: draw(), randomness="different")(torch.empty(size)).detach()

    torch.manual_seed(7)
    torch.testing.assert_close(draws(1)[0], plain)
    return torch.cat([draws(1000) for _ in range(count // 1000)])
