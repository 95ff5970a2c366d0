"""Whole runs of main_bayesian.py: against their bare training steps, and with recording against without."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import training_step
from benchmarks.measure import conditions, table, time_interleaved
from images import load_data
from support import UserError, tune_cpu

ROOT = Path(__file__).parent.parent


def measure_epoch(dataset: str = "MNIST", batch: int = 256, epochs: int = 30) -> dict[str, Any]:
    """A process of `epochs` epochs with data, validation, checkpoints and test, against its steps alone."""
    tune_cpu()
    steps = -(-len(load_data(dataset, "data", 0.1, 0).train) // batch)
    bare = {"step": training_step("lrt", "lenet", "relu", batch, False, channels=1)}
    before = time_interleaved(bare, 15)["step"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, results = _run(folder, dataset, batch, epochs)
    after = time_interleaved(bare, 15)["step"]
    median = statistics.median_high(before + after)
    return {
        "dataset": dataset, "batch": batch, "epochs": epochs, "steps": steps * epochs, "step_seconds": median,
        "process_seconds": seconds, "training_seconds": results["training_seconds"],
        "test_seconds": results["test_seconds"], "ratio": seconds / (median * steps * epochs),
        "training_ratio": results["training_seconds"] / (median * steps * epochs), "conditions": conditions(),
    }  # fmt: skip


def render_epoch(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    steps = result["step_seconds"] * result["steps"]
    rows = [
        [f"{result['steps']} bare steps of {result['step_seconds'] * 1000:.1f} ms", f"{steps:.1f} s", "1.00"],
        ["training, validation, checkpoints", f"{result['training_seconds']:.1f} s", f"{result['training_ratio']:.2f}"],
        ["the whole process", f"{result['process_seconds']:.1f} s", f"{result['ratio']:.2f}"],
    ]
    return table([f"LeNet, lrt, {result['dataset']}, {result['epochs']} epochs", "time", "ratio"], rows)


def measure_record(dataset: str = "MNIST5k", batch: int = 256, epochs: int = 5, rounds: int = 5) -> dict[str, Any]:
    """Training time with every layer recorded, 32 records an epoch at most, against none; size of the logs."""
    ratios, size = [], 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            _, plain = _run(f"{folder}/plain", dataset, batch, epochs)
            _, recorded = _run(f"{folder}/recorded", dataset, batch, epochs, "--record_mean_var", "True")
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.h5"))
        ratios.append(recorded["training_seconds"] / plain["training_seconds"])
    return {
        "dataset": dataset, "batch": batch, "epochs": epochs, "ratio": statistics.median_high(ratios), "ratios": ratios,
        "mib": size / 2**20, "conditions": conditions(),
    }  # fmt: skip


def render_record(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [[f"{result['ratio']:.2f}", f"{result['mib']:.1f} MiB"]]
    return table(["training with recording, ratio to without", "logs of all layers"], rows)


def _run(folder: str, dataset: str, batch: int, epochs: int, *more: str) -> tuple[float, dict[str, Any]]:
    command = [
        sys.executable, "main_bayesian.py", "--dataset", dataset, "--batch_size", str(batch), "--n_epochs", str(epochs),
        "--layer_type", "lrt", "--checkpoint_dir", folder, *more,
    ]  # fmt: skip
    started = time.perf_counter()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if answer.returncode:
        raise UserError(f"{' '.join(command)} failed: {answer.stderr.strip().splitlines()[-1]}")
    return seconds, json.loads(next(Path(folder).rglob("results.json")).read_text())
