"""The cost of a training step in FLOPs and bytes, and an upper bound on the throughput of many accelerators.

FLOPs (2 per multiply-add) and bytes are counted while a step runs on the meta device, on tensors without data.
The bytes are those of every tensor that an operation reads or writes, as if nothing were fused or cached. The
speeds are those that the manufacturer states:

NVIDIA H100 SXM: 494.7 TFLOP/s in TF32 and 989.4 in bfloat16, dense; 3.35 TB/s of memory bandwidth; 450 GB/s of
NVLink in each direction within a node of 8 (NVIDIA H100 datasheet). Between nodes, 50 GB/s in each direction per
accelerator: each has one 400 Gbit/s adapter (NVIDIA DGX H100 datasheet).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from benchmarks.contenders import CHANNELS, CLASSES
from benchmarks.measure import table
from layers import kl_divergence, to_bayesian
from models import NETWORKS, build

BATCH = 256  # images per accelerator
FLOPS = {"float32 (TF32)": 494.7e12, "bfloat16": 989.4e12}  # per second
MEMORY = 3.35e12  # bytes per second
EXCHANGE = {1: float("inf"), 8: 450e9, 64: 50e9}  # bytes per second in each direction, by the number of accelerators
FREE = {"view", "_unsafe_view", "t", "detach", "expand", "split", "split_with_sizes", "as_strided", "alias", "unbind"}


class _Bytes(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation reads or writes."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in FREE:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output


def measure() -> dict[str, Any]:
    """Parameters, FLOPs and bytes of a step of 256 images, by network and method."""
    networks: dict[str, Any] = {}
    for name in (*NETWORKS, "resnet50"):
        for method in ("frequentist", "bbb", "lrt"):
            with torch.device("meta"):
                net = _network(name, method)
                images = torch.empty(BATCH, 3, *((224, 224) if name == "resnet50" else (32, 32)))
                labels = torch.empty(BATCH, dtype=torch.int64)
            with FlopCounterMode(display=False) as flops, _Bytes() as counted:
                output = net(images)
                logits, kl = output if isinstance(output, tuple) else (output, kl_divergence(net))
                (F.cross_entropy(logits, labels) + kl).backward()
            parameters = sum(parameter.numel() for parameter in net.parameters())
            # Fused Adam reads the weight, its gradient and two moments, and writes all of them except the gradient.
            traffic = counted.total + 7 * 4 * parameters
            networks.setdefault(name, {})[method] = {
                "parameters": parameters, "flops": flops.get_total_flops(), "bytes": traffic,
            }  # fmt: skip
    return {"batch": BATCH, "networks": networks}


def _network(name: str, method: str) -> nn.Module:
    if name != "resnet50":
        settings: dict[str, Any] = {} if method == "frequentist" else {"layer_type": method}
        return build(name, method != "frequentist", CLASSES, CHANNELS, **settings)
    return resnet50() if method == "frequentist" else to_bayesian(resnet50(), layer_type=method, inplace=True)


def bound(cost: dict[str, float], flops: float, accelerators: int) -> tuple[float, str]:
    """An upper bound on the images per second, and what sets it: 'arithmetic', 'memory' or 'exchange' of gradients.

    Arithmetic and memory traffic are assumed to overlap. A ring all-reduce among K accelerators sends 2(K−1)/K of
    the gradients' bytes; it is assumed to overlap with the backward pass, two thirds of the step.

    Args:
        cost: 'flops', 'bytes' and 'parameters' of a step of `BATCH` images.
        flops: arithmetic speed of an accelerator, per second.
        accelerators: a key of `EXCHANGE`.
    """
    times = {"arithmetic": cost["flops"] / flops, "memory": cost["bytes"] / MEMORY}
    step, why = max((seconds, why) for why, seconds in times.items())
    exchange = 2 * (accelerators - 1) / accelerators * 4 * cost["parameters"] / EXCHANGE[accelerators]
    if exchange > step * 2 / 3:
        step, why = step / 3 + exchange, "exchange"
    return accelerators * BATCH / step, why


def render(result: dict[str, Any]) -> str:
    """The result as two Markdown tables."""
    costs, speeds = [], []
    for name, methods in result["networks"].items():
        for method, cost in methods.items():
            costs.append([
                name, method, f"{cost['parameters']:,}", f"{cost['flops'] / 1e9:,.0f} G",
                f"{cost['bytes'] / 1e9:,.2f} GB", f"{cost['flops'] / cost['bytes']:.0f}",
                f"{4 * cost['parameters'] / 1e6:,.1f} MB",
            ])  # fmt: skip
            for precision, flops in FLOPS.items():
                # bfloat16 halves the size of activations and weights, which most of the bytes belong to
                scaled = {**cost, "bytes": cost["bytes"] * (0.5 if precision == "bfloat16" else 1)}
                cells = [bound(scaled, flops, accelerators) for accelerators in EXCHANGE]
                speeds.append([name, method, precision, *(f"{rate:,.0f} ({why})" for rate, why in cells)])
    key = ["network", "method"]
    cost_header = [*key, "parameters", "FLOPs per step", "bytes per step", "FLOPs per byte", "gradients to exchange"]
    speed_header = [
        *key,
        "precision",
        *(f"images/s, {count} accelerator{'s' * (count > 1)}" for count in EXCHANGE),
    ]
    return f"{table(cost_header, costs)}\n{table(speed_header, speeds)}"
