"""Prediction by T posterior samples or by moments, compared with passes of the frequentist twin, and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import CHANNELS, CLASSES
from benchmarks.measure import (
    added_mib,
    conditions,
    ratios_to_baseline,
    return_freed_memory,
    run_in_fresh_process,
    table,
    time_interleaved,
)
from inference import Predictor, posterior_predictive
from layers import to_bayesian
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


def measure_moments(rounds: int = 15) -> dict[str, Any]:
    """Seconds of predictions by 1, 25 and 100 samples and by moments, and their ratios to one pass of the twin.

    Of 256 images in one batch, with a `Predictor`, whose draws or moments of weights are made before.
    """
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type in NETWORKS:
        net, twin = (build(net_type, bayesian, CLASSES, CHANNELS).eval() for bayesian in (True, False))
        data = torch.randn(256, CHANNELS, 32, 32)
        actions: dict[str, Callable[[], object]] = {"twin": partial(_passes, twin, data, 1, 256)}
        actions |= {f"{count} samples": partial(Predictor(net, count), data) for count in (1, 25, 100)}
        actions["moments"] = partial(Predictor(net, method="moments"), data)
        networks[net_type] = ratios_to_baseline(time_interleaved(actions, rounds), "twin")
        print(net_type, {name: round(row["ratio"], 2) for name, row in networks[net_type].items()}, flush=True)
    memory = {
        net_type: {method: run_in_fresh_process(pass_memory, net_type, method) for method in ("twin", "moments")}
        for net_type in NETWORKS
    }
    return {"rounds": rounds, "networks": networks, "memory_mib": memory, "conditions": conditions()}


def pass_memory(net_type: str, method: str) -> float:
    """MiB that the prediction of 256 images adds to the peak memory of a process that holds network and images."""
    return_freed_memory()
    torch.set_num_threads(1)
    data = torch.randn(256, CHANNELS, 32, 32)
    net = build(net_type, method == "moments", CLASSES, CHANNELS).eval()
    action = Predictor(net, method="moments") if method == "moments" else partial(_passes, net, passes=1, batch=256)
    action(data[:1])
    return added_mib(lambda: action(data))


def render_moments(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [
        [
            net_type,
            *(f"{row['ratio']:.2f}" for name, row in measured.items() if name != "twin"),
            f"{result['memory_mib'][net_type]['moments'] / result['memory_mib'][net_type]['twin']:.2f}",
        ]
        for net_type, measured in result["networks"].items()
    ]
    return table(["network", "1 sample", "25 samples", "100 samples", "moments", "memory of moments"], rows)


def measure_single(rounds: int = 15) -> dict[str, Any]:
    """Seconds of the prediction of one image: a pass of the twin, 25 samples drawn or kept, moments."""
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type in NETWORKS:
        net, twin = (build(net_type, bayesian, CLASSES, CHANNELS).eval() for bayesian in (True, False))
        image = torch.randn(1, CHANNELS, 32, 32)
        actions: dict[str, Callable[[], object]] = {
            "twin": partial(_passes, twin, image, 1, 1),
            "25 samples, drawn": partial(posterior_predictive, net, image, 25),
            "25 samples, kept": partial(Predictor(net, 25), image),
            "moments": partial(Predictor(net, method="moments"), image),
        }
        networks[net_type] = ratios_to_baseline(time_interleaved(actions, rounds), "twin")
        print(
            net_type, {name: f"{row['seconds'] * 1000:.1f} ms" for name, row in networks[net_type].items()}, flush=True
        )
    return {"rounds": rounds, "networks": networks, "conditions": conditions()}


def render_single(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    networks = result["networks"]
    names = list(next(iter(networks.values())))
    rows = [
        [net_type, *(f"{measured[name]['seconds'] * 1000:.1f} ms" for name in names)]
        for net_type, measured in networks.items()
    ]
    return table(["one image", *names], rows)


def measure_last_layer(rounds: int = 15) -> dict[str, Any]:
    """Seconds of 25 samples of torchvision's networks with a Bayesian last layer, and ratios to one pass of the twin.

    Of 256 images in one batch. At 32×32, ResNet-18 has a first layer for small images, and is five times the work.
    """
    tune_cpu()
    networks: dict[str, Any] = {}
    for net_type, size in (("resnet18", 32), ("resnet18", 64), ("mobilenet_v3_small", 64)):
        twin = build(net_type, False, CLASSES, CHANNELS, image_size=(size, size)).eval()
        net = to_bayesian(twin, layers="last")
        data = torch.randn(256, CHANNELS, size, size)
        actions: dict[str, Callable[[], object]] = {
            "twin": partial(_passes, twin, data, 1, 256),
            "25 samples": partial(posterior_predictive, net, data, 25),
        }
        row = ratios_to_baseline(time_interleaved(actions, rounds), "twin")
        networks[f"{net_type},{size}"] = row
        print(net_type, size, f"{row['25 samples']['ratio']:.2f}", flush=True)
    return {"rounds": rounds, "networks": networks, "conditions": conditions()}


def render_last_layer(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = []
    for name, measured in result["networks"].items():
        seconds = (f"{measured[action]['seconds'] * 1000:.0f} ms" for action in ("twin", "25 samples"))
        rows.append([*name.split(","), *seconds, f"{measured['25 samples']['ratio']:.2f}"])
    return table(["network", "image size", "one pass of the twin", "25 samples of the last layer", "ratio"], rows)


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
    return added_mib(lambda: posterior_predictive(net, data, samples, 256))


def render_memory(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = [[*size.split(","), f"{mib:.1f} MiB"] for size, mib in result["memory_mib"].items()]
    return table(["samples T", "images", "added to peak memory"], rows)
