"""Time of a training step of every contender, as a ratio to the frequentist twin's, and its peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, TWIN, training_step
from benchmarks.measure import added_mib, conditions, ratios_to_baseline, run_in_fresh_process, table, time_interleaved
from models import NETWORKS
from support import tune_cpu

COMPILED = (TWIN, "lrt", "bbb", "flipout", "lrt, alpha", "bbb, alpha", "flipout, alpha")


def measure(
    nets: Sequence[str] = tuple(NETWORKS),
    activation: str = "softplus",
    batch: int = 256,
    rounds: int = 15,
    compiled: bool = False,
) -> dict[str, Any]:
    """Ratios and peak memory of a training step, by network and contender."""
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type in nets:
        torch.compiler.reset()
        steps = {}
        for name in CONTENDERS:
            try:
                steps[name] = training_step(name, net_type, activation, batch, False)
            except ImportError:
                print(f"{name} is not installed: skipped", flush=True)
        if compiled:
            for name in COMPILED:
                steps[f"{name}, compiled"] = training_step(name, net_type, activation, batch, True)
        rows = ratios_to_baseline(time_interleaved(steps, rounds), TWIN)
        for name, row in rows.items():
            if name in CONTENDERS:
                row["peak_mib"] = run_in_fresh_process(step_memory, name, net_type, activation, batch)
        networks[net_type] = rows
        print(f"{net_type}: " + ", ".join(f"{name} {row['ratio']:.2f}" for name, row in rows.items()), flush=True)
    return {
        "activation": activation,
        "batch": batch,
        "rounds": rounds,
        "networks": networks,
        "conditions": conditions(),
    }


def step_memory(name: str, net_type: str, activation: str, batch: int) -> float:
    """MiB that three training steps add to the peak memory of a process."""
    tune_cpu()
    # A first convolution loads torch's library, whose memory is not the step's.
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))

    def steps() -> None:
        step = training_step(name, net_type, activation, batch, False)
        for _ in range(3):
            step()

    return added_mib(steps)


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    nets = list(result["networks"])
    names = list(result["networks"][nets[0]])
    rows = []
    for name in names:
        cells = [name]
        for net_type in nets:
            row = result["networks"][net_type][name]
            memory = f", {row['peak_mib']:.0f} MiB" if "peak_mib" in row else ""
            time = f"{row['seconds'] * 1000:.0f} ms" if name == TWIN else f"{row['ratio']:.2f}"
            cells.append(f"{time}{memory}")
        rows.append(cells)
    return table(["training step", *nets], rows)
