"""Kills runs at random moments, resumes them, and compares them with runs that were left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import images
from models import read_checkpoint
from recording import read_recording
from tests.conftest import bayesian_settings, draw_pictures, run_files, same
from tests.processes import forkserver, ranks
from training import BayesianSettings, RunFiles, run

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CASES = [(True, 1), (False, 1), (True, 2), (False, 2)]  # whether the images fit in memory, processes


def kill_runs(count: int, seed: int, folder: Path, cases: list[tuple[bool, int]] = CASES, epochs: int = 20) -> None:
    """Kill runs `count` times, and finish them.

    Args:
        count: of kills.
        seed: of the moments.
        folder: where pictures and runs go, empty or new.
        cases: the kinds of run, each a share of the kills.
        epochs: of a run; it has 9 steps per epoch.

    Raises:
        AssertionError: a run that was killed and resumed differs from the one that was left alone, or left a file
            behind; the message has the seed.
    """
    draw_pictures(folder / "bars" / "train", 100, seed=0)
    draw_pictures(folder / "bars" / "test", 20, seed=1)
    for index, (in_memory, processes) in enumerate(cases):
        share = len(range(index, count, len(cases)))
        name = f"seed {seed}, in memory {in_memory}, {processes} processes"
        try:
            _kill(
                share, random.Random(f"{seed} {index}"), folder, folder / f"case{index}", in_memory, processes, epochs
            )
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


def _kill(
    count: int, chance: random.Random, pictures: Path, folder: Path, in_memory: bool, processes: int, epochs: int
) -> None:
    settings = bayesian_settings(
        pictures / "bars", folder / "alone", n_epochs=epochs, batch_size=20, valid_ens=1, test_ens=2,
        record_mean_var=True, record_layers=["fc3"], num_workers=0,
    )  # fmt: skip
    killed = replace(settings, checkpoint_dir=str(folder / "killed"))
    alone, files = run_files(settings), run_files(killed)
    group = _Group(folder / "output", in_memory, processes)
    group.start(settings)
    group.check_finished()
    kills = 0
    while kills < count:
        group.start(replace(killed, resume=files.last.exists()))
        group.wait_for_output()
        group.wait(chance.random() * 0.3)  # several epochs
        if group.ended():  # on a fast machine: once more from the beginning, and over the files of this run
            group.check_finished()
            _compare(alone, files)
            files.last.rename(folder / "last.pt")
            continue
        group.kill(SIGNALS[kills % 3], chance.randrange(processes))
        kills += 1
        if files.last.exists():
            read_checkpoint(files.last)
    group.start(replace(killed, resume=files.last.exists()))
    group.check_finished()
    _compare(alone, files)


class _Group:
    """The processes of a run."""

    def __init__(self, output: Path, in_memory: bool, size: int) -> None:
        self._context = forkserver()
        self._output, self._in_memory, self._size = output, in_memory, size
        self._processes: list[multiprocessing.context.ForkServerProcess] = []

    def start(self, settings: BayesianSettings) -> None:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_text("")
        self._processes = [
            self._context.Process(target=_run, args=(settings, self._output, self._in_memory, environment))
            for environment in (ranks(self._size) if self._size > 1 else [{}])
        ]
        for process in self._processes:
            process.start()

    def wait_for_output(self) -> None:
        """Until it resumes or ends its first epoch."""
        while not self.ended() and not {"resuming", "epoch"} & set(self._output.read_text().split()):
            self.wait(0.01)

    def wait(self, seconds: float) -> None:
        self._processes[0].join(seconds)

    def ended(self) -> bool:
        return self._processes[0].exitcode is not None

    def kill(self, signum: int, rank: int) -> None:
        """Send the signal to one of the processes; a lost one ends the others, and a stop request reaches them."""
        process = self._processes[rank]
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signum)
        for process in self._processes:
            process.join(60)
            assert process.exitcode is not None, f"a process hangs: {self._output.read_text()}"
        assert "Traceback" not in self._output.read_text(), self._output.read_text()

    def check_finished(self) -> None:
        for process in self._processes:
            process.join(300)
            assert process.exitcode == 0, f"exit code {process.exitcode}: {self._output.read_text()}"


def _run(settings: BayesianSettings, output: Path, in_memory: bool, environment: dict[str, str]) -> None:
    os.environ |= environment
    if not in_memory:
        images.folders.free_memory = lambda: 0.0  # type: ignore[attr-defined]
    with output.open("a") as sys.stdout:
        sys.stderr = sys.stdout
        run(settings)


def _compare(alone: RunFiles, killed: RunFiles) -> None:
    assert same(*(read_checkpoint(files.best)["weights"] for files in (alone, killed))), "other weights"
    history, other = ((files.reports / "history.csv").read_text().splitlines() for files in (alone, killed))
    for row, other_row in zip(history, other, strict=True):
        assert row.rpartition(",")[0] == other_row.rpartition(",")[0], "another history"  # all but the seconds
    one, two = (vars(read_recording(files.reports / "fc3.sqlite")) for files in (alone, killed))
    for name in ("epoch", "batch", "mean", "variance", "posterior_epoch"):
        np.testing.assert_array_equal(one[name], two[name])
    left = {path.name for path in killed.last.parent.rglob("*") if "earlier" not in path.parts}
    expected = {path.name for path in alone.last.parent.rglob("*")}
    assert left == expected, f"left behind: {left ^ expected}"
