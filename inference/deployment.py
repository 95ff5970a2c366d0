"""What leaves the training machine: a network of the means, and one that samples and tells what it does not know.

Both take images as they are, [n, channels, height, width] with pixels in [0, 1], and normalize them themselves.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from layers import BayesianLayer, to_deterministic
from support import UserError, atomic_write


class Deployed(nn.Module):
    """Normalizes its images, and names its outputs for other runtimes."""

    outputs: ClassVar[tuple[str, ...]]
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net.eval()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def probs(self, images: Tensor) -> Tensor:
        """Of one pass of the network, [n, classes]."""
        output = self.net((images - self.mean) / self.std)
        return (output[0] if isinstance(output, tuple) else output).softmax(-1)


class MeanNetwork(Deployed):
    """Class probabilities [n, classes] by the posterior means: an ordinary deterministic network.

    Args:
        net: a Bayesian or deterministic network.
        mean, std: what the channels, in [0, 1], are normalized by.
    """

    outputs = ("probs",)

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(to_deterministic(net), mean, std)

    def forward(self, images: Tensor) -> Tensor:
        return self.probs(images)


class PredictiveNetwork(Deployed):
    """The posterior predictive by fresh draws in every call: (probs [n, classes], epistemic [n], aleatoric [n]).

    `epistemic` is the mutual information and `aleatoric` the mean entropy of a draw, both in nats; their sum is the
    entropy of `probs`. A draw is shared by the images of a call, as in `inference.prediction`.

    Args:
        net: a Bayesian network.
        num_samples: draws a call.
        mean, std: what the channels, in [0, 1], are normalized by.
    """

    outputs = ("probs", "epistemic", "aleatoric")

    def __init__(self, net: nn.Module, num_samples: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(copy.deepcopy(net), mean, std)
        self.num_samples = num_samples
        for layer in self.net.modules():
            if isinstance(layer, BayesianLayer):
                layer.layer_type, layer.sampling = "bbb", True

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draws = torch.stack([self.probs(images) for _ in range(self.num_samples)])
        probs, aleatoric = draws.mean(0), _entropy(draws).mean(0)
        return probs, (_entropy(probs) - aleatoric).clamp_min(0), aleatoric


def export(network: Deployed, channels: int, size: int, path: Path) -> Path:
    """Write the network for batches of any size: `.pt2` by `torch.export`, `.onnx` for other runtimes.

    Raises:
        UserError: another ending, ONNX's packages are missing, or the file cannot be written.
    """
    example = torch.rand(2, channels, size, size)
    dynamic = {"images": {0: torch.export.Dim("n", min=1)}}
    with torch.no_grad(), atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic), temporary)
        elif path.suffix == ".onnx":
            try:
                torch.onnx.export(
                    network, (example,), temporary, dynamo=True, dynamic_shapes=dynamic, input_names=["images"],
                    output_names=list(network.outputs), external_data=False, verbose=False,
                )  # fmt: skip
            except ImportError as error:
                raise UserError(f"to write {path} install ONNX's packages: pip install onnx onnxscript") from error
        else:
            raise UserError(f"cannot export to {path}: the name must end in .pt2 or .onnx")
    return path


def quantized(network: MeanNetwork) -> nn.Module:
    """A copy whose linear layers compute in int8, with scales found as it runs: for CPUs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch names the package that will take this over
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)


def _entropy(probs: Tensor) -> Tensor:
    """`prediction.entropy` in operations that every runtime has."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)
