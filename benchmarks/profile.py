"""Where a training step spends its time, and the effect of the memory layout of activations on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import BY_IVON, TWIN, training_step
from benchmarks.measure import conditions, ratios_to_baseline, table, time_interleaved
from models import NETWORKS
from support import tune_cpu

LAYOUTS = ("contiguous_format", "channels_last")
PROFILED = (TWIN, "lrt", "bbb", BY_IVON)
# Operations as the profiler names them, by part of a step; the operations that they call count to the same part.
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
    "adding up gradients, the optimizer": (
        "torch::autograd::AccumulateGrad", "aten::add_", "aten::add", "aten::_fused_adam_", "Optimizer.step#IVON.step",
    ),
}  # fmt: skip
REST = "activations, pooling, dispatch, the rest"


def measure(nets: Sequence[str] = tuple(NETWORKS), batch: int = 256, rounds: int = 15) -> dict[str, Any]:
    """Milliseconds of each part of a step, and the ratio of a channels_last step to one in the default layout."""
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type in nets:
        layouts = {
            f"{name}, {layout}": training_step(name, net_type, "softplus", batch, layout=getattr(torch, layout))
            for name in PROFILED
            for layout in LAYOUTS
        }
        times = time_interleaved(layouts, rounds)
        steps = {name: layouts[f"{name}, contiguous_format"] for name in PROFILED}
        profiles = [{name: _parts(step) for name, step in steps.items()} for _ in range(rounds)]  # interleaved
        networks[net_type] = {
            "milliseconds": {
                name: {part: statistics.median(round[name][part] for round in profiles) for part in (*PARTS, REST)}
                for name in PROFILED
            },
            "channels_last": {name: _effect_of_layout(times, name) for name in PROFILED},
        }
    return {"batch": batch, "rounds": rounds, "networks": networks, "conditions": conditions()}


def _effect_of_layout(times: Mapping[str, Sequence[float]], name: str) -> float:
    default, last = (f"{name}, {layout}" for layout in LAYOUTS)
    return ratios_to_baseline({default: times[default], last: times[last]}, default)[last]["ratio"]


def _parts(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of every part of a step, as the profiler reports them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    part_of = {operation: part for part, operations in PARTS.items() for operation in operations}
    milliseconds = dict.fromkeys((*PARTS, REST), 0.0)
    for event in profiler.events():
        part, parent = part_of.get(event.name, REST), event.cpu_parent
        while part == REST and parent is not None:
            part, parent = part_of.get(parent.name, REST), parent.cpu_parent
        milliseconds[part] += event.self_cpu_time_total / 1000
    return milliseconds


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table: percentages of the twin's step, then the effect of the layout."""
    nets = result["networks"]
    header = ["part of a step", *(f"{net}: {name}" for net in nets for name in PROFILED)]
    rows = []
    for part in (*PARTS, REST):
        cells = [part]
        for measured in nets.values():
            twin = sum(measured["milliseconds"][TWIN].values())
            cells += [f"{measured['milliseconds'][name][part] / twin:.1%}" for name in PROFILED]
        rows.append(cells)
    rows.append(["the whole step"] + [
        f"{sum(measured['milliseconds'][name].values()) / sum(measured['milliseconds'][TWIN].values()):.2f}"
        for measured in nets.values() for name in PROFILED
    ])  # fmt: skip
    rows.append(["step in channels_last / default layout"] + [
        f"{measured['channels_last'][name]:.2f}" for measured in nets.values() for name in PROFILED
    ])  # fmt: skip
    return table(header, rows)
