"""T posterior samples against T passes of the frequentist twin; the memory that they take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import CHANNELS, CLASSES
from benchmarks.measure import against, conditions, in_a_process, peak_mib, return_freed_memory, table, time_interleaved
from inference.prediction import posterior_predictive
from models import NETWORKS, build
from support import tune_cpu

SIZES = ((25, 1000, 256), (5, 1000, 256), (100, 1000, 256), (25, 4000, 256), (25, 1000, 32), (25, 1000, 1000))


def measure(rounds: int = 15) -> dict[str, Any]:
    """For every network and (T, n, batch): seconds of both, and their ratio."""
    tune_cpu()
    found: dict[str, Any] = {}
    for net_type in NETWORKS:
        net, twin = (build(net_type, bayesian, CLASSES, CHANNELS).eval() for bayesian in (True, False))
        found[net_type] = {}
        for samples, images, batch in SIZES if net_type == "lenet" else SIZES[:1]:
            data = torch.randn(images, CHANNELS, 32, 32)
            actions: dict[str, Callable[[], object]] = {
                "twin": partial(_passes, twin, data, samples, batch),
                "bayesian": partial(posterior_predictive, net, data, samples, batch),
            }
            rows = against(time_interleaved(actions, rounds), "twin")
            found[net_type][f"{samples},{images},{batch}"] = rows
            print(f"{net_type} T={samples} n={images} batch={batch}: {rows['bayesian']['ratio']:.2f}", flush=True)
    return {"rounds": rounds, "networks": found, "conditions": conditions()}


def _passes(twin: nn.Module, data: Tensor, passes: int, batch: int) -> None:
    with torch.inference_mode():
        for _ in range(passes):
            for part in data.split(batch):
                twin(part).softmax(-1)


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = []
    for net_type, sizes in result["networks"].items():
        for size, found in sizes.items():
            twin, bayesian = (f"{found[name]['seconds'] * 1000:.0f} ms" for name in ("twin", "bayesian"))
            rows.append([net_type, *size.split(","), twin, bayesian, f"{found['bayesian']['ratio']:.2f}"])
    return table(["network", "samples T", "images", "batch", "T twin passes", "T samples", "ratio"], rows)


def measure_memory() -> dict[str, Any]:
    """MiB that predicting adds to the peak memory of a process, by T and n."""
    sizes = [(samples, images) for images in (1000, 10_000) for samples in (1, 5, 25)]
    found = {f"{samples},{images}": in_a_process(predict_memory, samples, images) for samples, images in sizes}
    return {"memory_mib": found, "conditions": conditions()}


def predict_memory(samples: int, images: int) -> float:
    """What predicting adds to the peak memory of a process that already holds the images, MiB."""
    return_freed_memory()
    torch.set_num_threads(1)
    net = build("lenet", True, CLASSES, CHANNELS)
    data = torch.randn(images, CHANNELS, 32, 32)
    posterior_predictive(net, data[:512], 1, 256)
    before = peak_mib()
    posterior_predictive(net, data, samples, 256)
    return peak_mib() - before


def render_memory(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [[*size.split(","), f"{mib:.1f} MiB"] for size, mib in result["memory_mib"].items()]
    return table(["samples T", "images", "added to peak memory"], rows)
