"""Complete runs of main_bayesian.py: compared with their training steps alone, and with and without recording."""

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
    """Time of a process that trains, validates, saves and tests, compared with the time of its training steps alone."""
    tune_cpu()
    steps = -(-len(load_data(dataset, "data", 0.1, 0).train) // batch)
    actions = {"step": training_step("lrt", "lenet", "relu", batch, False, channels=1)}
    before = time_interleaved(actions, 15)["step"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, results = _run(folder, dataset, batch, epochs)
    after = time_interleaved(actions, 15)["step"]
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
        [
            f"{result['steps']} training steps alone, {result['step_seconds'] * 1000:.1f} ms each",
            f"{steps:.1f} s",
            "1.00",
        ],
        ["training, validation, checkpoints", f"{result['training_seconds']:.1f} s", f"{result['training_ratio']:.2f}"],
        ["the complete process", f"{result['process_seconds']:.1f} s", f"{result['ratio']:.2f}"],
    ]
    return table([f"LeNet, lrt, {result['dataset']}, {result['epochs']} epochs", "time", "ratio"], rows)


def measure_record(dataset: str = "MNIST5k", batch: int = 256, epochs: int = 5, rounds: int = 5) -> dict[str, Any]:
    """Ratio of the training time with every layer recorded (at most 32 times per epoch) to that without; file sizes."""
    ratios, size = [], 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            _, plain = _run(f"{folder}/plain", dataset, batch, epochs)
            _, recorded = _run(f"{folder}/recorded", dataset, batch, epochs, "--record_mean_var", "True")
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.sqlite"))
        ratios.append(recorded["training_seconds"] / plain["training_seconds"])
    return {
        "dataset": dataset, "batch": batch, "epochs": epochs, "ratio": statistics.median_high(ratios), "ratios": ratios,
        "mib": size / 2**20, "conditions": conditions(),
    }  # fmt: skip


def render_record(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [[f"{result['ratio']:.2f}", f"{result['mib']:.1f} MiB"]]
    return table(["training time with recording / without", "size of the recordings of all layers"], rows)


def _run(folder: str, dataset: str, batch: int, epochs: int, *flags: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a run of main_bayesian.py, and its results."""
    command = [
        sys.executable, "main_bayesian.py", "--dataset", dataset, "--batch_size", str(batch), "--n_epochs", str(epochs),
        "--layer_type", "lrt", "--checkpoint_dir", folder, *flags,
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {process.stderr.strip().splitlines()[-1]}")
    return seconds, json.loads(next(Path(folder).rglob("results.json")).read_text())
