"""Interleaved timing, memory measured in a fresh process, and Markdown tables of the results."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from support import versions

RESULTS = Path(__file__).parent / "results"
M_MMAP_THRESHOLD = -3  # of <malloc.h>
Result = TypeVar("Result")


def time_interleaved(
    actions: Mapping[str, Callable[[], object]], rounds: int, min_seconds: float = 0.1
) -> dict[str, list[float]]:
    """Seconds of every action in every round. A round runs each action in turn, so a slow moment affects all of them.

    Args:
        actions: functions without arguments, by name; each first runs twice to warm up.
        rounds: number of rounds.
        min_seconds: a faster action is repeated until its turn takes about this long, and the mean is kept.

    Returns:
        For each action, the seconds of one call, per round.
    """
    repeats = {}
    for name, action in actions.items():
        action()
        repeats[name] = max(1, round(min_seconds / _seconds(action, 1)))
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(_seconds(action, repeats[name]))
    return times


def _seconds(action: Callable[[], object], repeats: int) -> float:
    """Mean seconds of one call."""
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - started) / repeats


def ratios_to_baseline(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, float]]:
    """For every action its median seconds, and the median and quartiles over rounds of its ratio to `baseline`.

    Args:
        times: seconds per round, by action, as `time_interleaved` returns them.
        baseline: the action that the others are divided by, round by round.
    """
    rows = {}
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"seconds": statistics.median(seconds), "ratio": middle, "ratio_low": low, "ratio_high": high}
    return rows


def run_in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """`function(*args)` in a new process, so that its peak memory includes nothing that ran before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def added_mib(action: Callable[[], object]) -> float:
    """MiB by which the peak memory of this process during the action exceeds the memory before it."""
    status = Path("/proc/self/status")
    if not status.exists():  # there the peak is that of the whole life of the process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        action()
        per_mib = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / per_mib
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_kib(status, "VmRSS")
    action()
    return (_status_kib(status, "VmHWM") - before) / 1024


def _status_kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def return_freed_memory() -> None:
    """Make glibc return freed tensors to the system at once, so that the peak is memory in use at the same time."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def conditions() -> dict[str, Any]:
    """What the measured values depend on: versions, commit, processor, threads."""
    packages = ("torchbnn", "bayesian-torch", "blitz-bayesian-pytorch", "torch-uncertainty")
    return {
        **versions(),
        "packages": {name: number for name in packages if (number := _version(name))},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
