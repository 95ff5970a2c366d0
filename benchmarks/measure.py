"""Timing side by side, memory in a process of its own, and tables of what was found."""

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
    actions: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.1
) -> dict[str, list[float]]:
    """Seconds of every action in every round; in a round each has its turn, so that a slow moment hits all.

    Args:
        rounds: how many; two more come before them to warm up.
        least: seconds that a turn lasts at least: a quick action is repeated, and the mean taken.
    """
    repeats = {}
    for name, action in actions.items():
        action()
        repeats[name] = max(1, round(least / _seconds(action, 1)))
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            found[name].append(_seconds(action, repeats[name]))
    return found


def _seconds(action: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - started) / repeats


def against(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, float]]:
    """For every name the median seconds, and the median and quartiles of the ratio to `baseline` in each round."""
    rows = {}
    for name, found in times.items():
        ratios = [mine / theirs for mine, theirs in zip(found, times[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"seconds": statistics.median(found), "ratio": middle, "ratio_low": low, "ratio_high": high}
    return rows


def in_a_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` in a fresh process: its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mib() -> float:
    """The most memory that this process has held, MiB."""
    status = Path("/proc/self/status")  # on Linux getrusage also counts what the parent held before it started this one
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def return_freed_memory() -> None:
    """Let glibc hand tensors back to the system when they are freed, so that a peak is of what was held at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def conditions() -> dict[str, Any]:
    """What a figure depends on: versions, commit, processor, threads."""
    packages = ("torchbnn", "bayesian-torch", "blitz-bayesian-pytorch", "torch-uncertainty")
    return {
        **versions(),
        "packages": {name: found for name in packages if (found := _version(name))},
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
