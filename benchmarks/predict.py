"""Prediction with T posterior samples compared with T passes of the frequentist twin, and its peak memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import CHANNELS, CLASSES
from benchmarks.measure import (
    conditions,
    peak_mib,
    ratios_to_baseline,
    return_freed_memory,
    run_in_fresh_process,
    table,
    time_interleaved,
)
from inference import posterior_predictive
from models import NETWORKS, build
from support import tune_cpu

SIZES = ((25, 1000, 256), (5, 1000, 256), (100, 1000, 256), (25, 4000, 256), (25, 1000, 32), (25, 1000, 1000))


def measure(rounds: int = 15) -> dict[str, Any]:
    """Seconds of both and their ratio, by network and by (samples T, images n, batch)."""
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type in NETWORKS:
        net, twin = (build(net_type, bayesian, CLASSES, CHANNELS).eval() for bayesian in (True, False))
        networks[net_type] = {}
        for samples, images, batch in SIZES if net_type == "lenet" else SIZES[:1]:
            data = torch.randn(images, CHANNELS, 32, 32)
            actions: dict[str, Callable[[], object]] = {
                "twin": partial(_passes, twin, data, samples, batch),
                "bayesian": partial(posterior_predictive, net, data, samples, batch),
            }
            rows = ratios_to_baseline(time_interleaved(actions, rounds), "twin")
            networks[net_type][f"{samples},{images},{batch}"] = rows
            print(f"{net_type} T={samples} n={images} batch={batch}: {rows['bayesian']['ratio']:.2f}", flush=True)
    return {"rounds": rounds, "networks": networks, "conditions": conditions()}


def _passes(twin: nn.Module, data: Tensor, passes: int, batch: int) -> None:
    """Class probabilities of `data` by the twin, `passes` times."""
    with torch.inference_mode():
        for _ in range(passes):
            for images in data.split(batch):
                twin(images).softmax(-1)


def render(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = []
    for net_type, sizes in result["networks"].items():
        for size, measured in sizes.items():
            twin, bayesian = (f"{measured[name]['seconds'] * 1000:.0f} ms" for name in ("twin", "bayesian"))
            rows.append([net_type, *size.split(","), twin, bayesian, f"{measured['bayesian']['ratio']:.2f}"])
    header = ["network", "samples T", "images", "batch size", "T passes of the twin", "T posterior samples", "ratio"]
    return table(header, rows)


def measure_memory() -> dict[str, Any]:
    """MiB that prediction adds to the peak memory of a process, by (samples T, images n)."""
    sizes = [(samples, images) for images in (1000, 10_000) for samples in (1, 5, 25)]
    memory = {f"{samples},{images}": run_in_fresh_process(predict_memory, samples, images) for samples, images in sizes}
    return {"memory_mib": memory, "conditions": conditions()}


def predict_memory(samples: int, images: int) -> float:
    """MiB that prediction adds to the peak memory of a process that already holds the images."""
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
