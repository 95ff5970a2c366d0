"""Where a training step spends its time, and what the memory layout of activations does to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import TWIN, training_step
from benchmarks.measure import against, conditions, table, time_interleaved
from models import NETWORKS
from support import tune_cpu

LAYOUTS = ("contiguous_format", "channels_last")
PROFILED = (TWIN, "lrt", "bbb")
# What the profiler calls each part; a part's time includes that of the operations it calls.
PARTS = {
    "convolutions and matrix products": (
        "aten::convolution", "ConvolutionBackward0", "aten::addmm", "AddmmBackward0", "aten::linear", "LinearBackward0",
    ),
    "drawing normals": ("aten::normal_",),
    "σ and its gradient": ("_RhoToStd", "_RhoToStdBackward"),
    "KL and its gradient": ("_GaussianSums", "_GaussianSumsBackward"),
    "μ + sε and its gradient": ("_Noisy", "_NoisyBackward"),
    "μ + σε and its gradient": ("aten::addcmul", "AddcmulBackward0"),
    "x², σ² and their gradients": ("aten::square", "PowBackward0"),
    "adding up gradients, Adam": ("torch::autograd::AccumulateGrad", "aten::add_", "aten::add", "aten::_fused_adam_"),
}  # fmt: skip
REST = "activations, pooling, dispatch, the rest"


def measure(nets: Sequence[str] = tuple(NETWORKS), batch: int = 256, rounds: int = 15) -> dict[str, Any]:
    """Milliseconds of each part of a step, and the ratio of a step in channels_last to the same in the usual layout."""
    tune_cpu()
    found: dict[str, Any] = {}
    for net_type in nets:
        layouts = {
            f"{name}, {layout}": training_step(name, net_type, "softplus", batch, layout=getattr(torch, layout))
            for name in PROFILED
            for layout in LAYOUTS
        }
        times = time_interleaved(layouts, rounds)
        usual = {name: layouts[f"{name}, contiguous_format"] for name in PROFILED}
        profiles = [{name: _parts(step) for name, step in usual.items()} for _ in range(rounds)]  # interleaved too
        found[net_type] = {
            "milliseconds": {
                name: {part: statistics.median(round[name][part] for round in profiles) for part in (*PARTS, REST)}
                for name in PROFILED
            },
            "channels_last": {name: _effect_of_layout(times, name) for name in PROFILED},
        }
    return {"batch": batch, "rounds": rounds, "networks": found, "conditions": conditions()}


def _effect_of_layout(times: Mapping[str, Sequence[float]], name: str) -> float:
    usual, last = (f"{name}, {layout}" for layout in LAYOUTS)
    return against({usual: times[usual], last: times[last]}, usual)[last]["ratio"]


def _parts(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of every part of a step, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    part_of = {operation: part for part, operations in PARTS.items() for operation in operations}
    found = dict.fromkeys((*PARTS, REST), 0.0)
    for event in profiler.events():
        part, parent = part_of.get(event.name, REST), event.cpu_parent
        while part == REST and parent is not None:
            part, parent = part_of.get(parent.name, REST), parent.cpu_parent
        found[part] += event.self_cpu_time_total / 1000
    return found


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table: shares of the twin's step, then what the layout does."""
    nets = result["networks"]
    header = ["part of a step", *(f"{net}: {name}" for net in nets for name in PROFILED)]
    rows = []
    for part in (*PARTS, REST):
        cells = [part]
        for found in nets.values():
            whole = sum(found["milliseconds"][TWIN].values())
            cells += [f"{found['milliseconds'][name][part] / whole:.1%}" for name in PROFILED]
        rows.append(cells)
    rows.append(["channels_last, ratio of the step"] + [
        f"{found['channels_last'][name]:.2f}" for found in nets.values() for name in PROFILED
    ])  # fmt: skip
    return table(header, rows)
