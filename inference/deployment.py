"""Networks for other machines: one of the posterior means, and two that return their uncertainty, by draws or moments.

All take images [n, channels, height, width] with pixels in [0, 1] and normalize them themselves.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference.classifier import Classifier
from layers import BayesianLayer, to_deterministic
from likelihoods import accuracy
from moments import DRAWS, Propagation, fixed_normals
from support import UserError, atomic_write


class DeployedNetwork(nn.Module):
    """A network that normalizes its images, and names its outputs for other runtimes.

    Args:
        net: a network of normalized images; it is set to eval mode.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    outputs: ClassVar[tuple[str, ...]]
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net.eval()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def normalized(self, images: Tensor) -> Tensor:
        """The network's inputs for images with pixels in [0, 1]."""
        return (images - self.mean) / self.std

    def probs(self, images: Tensor) -> Tensor:
        """Class probabilities [n, classes] of one forward pass.

        Raises:
            ValueError: the network's outputs are not the logits [n, classes] of at least 2 classes.
        """
        output = self.net(self.normalized(images))
        logits = output[0] if isinstance(output, tuple) else output
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"expected logits [n, classes] of at least 2 classes, got {list(logits.shape)}")
        return logits.softmax(-1)


class MeanNetwork(DeployedNetwork):
    """Class probabilities [n, classes] by the posterior means: an ordinary deterministic network.

    Args:
        net: a Bayesian or deterministic network; it is not modified.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    outputs = ("probs",)

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(to_deterministic(net), mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, height, width] in [0, 1] to probabilities [n, classes]."""
        return self.probs(images)


class UncertainNetwork(DeployedNetwork):
    """A network that returns its uncertainty: a subclass defines its draws.

    Args:
        net: a Bayesian network.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    outputs = ("probs", "epistemic", "aleatoric")

    def draws(self, images: Tensor) -> Tensor:
        """Class probabilities [draws, n, classes] for images in [0, 1]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict images [n, channels, height, width] in [0, 1].

        Returns:
            Probabilities [n, classes]; the mutual information [n] (epistemic) and the mean entropy of a draw [n]
            (aleatoric), in nats, which add up to the entropy of the probabilities.
        """
        draws = self.draws(images)
        probs, aleatoric = draws.mean(0), _entropy(draws).mean(0)
        return probs, (_entropy(probs) - aleatoric).clamp_min(0), aleatoric


class MomentNetwork(UncertainNetwork):
    """The posterior predictive by moments, in one pass and without random numbers.

    Args:
        net: a Bayesian network; it is not modified.
        classes: how many it tells apart.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.

    Raises:
        MissingRuleError: in a call, the network has an operation without a rule.
    """

    net: Propagation
    noise: Tensor

    def __init__(self, net: nn.Module, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        with torch.no_grad():  # the moments of weights become constants
            propagation = Propagation(copy.deepcopy(net).eval())
        super().__init__(propagation, mean, std)
        self.register_buffer("noise", fixed_normals(DRAWS, classes))

    def draws(self, images: Tensor) -> Tensor:
        """Class probabilities [48, n, classes] of fixed draws of the logits."""
        return self.net.draws(self.normalized(images), self.noise).softmax(-1)


class PredictiveNetwork(UncertainNetwork):
    """The posterior predictive, with fresh draws in every call that all images of the call share.

    Args:
        net: a Bayesian network; it is not modified.
        num_samples: draws per call.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    def __init__(self, net: nn.Module, num_samples: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(copy.deepcopy(net), mean, std)
        self.num_samples = num_samples
        for layer in self.net.modules():
            if isinstance(layer, BayesianLayer):
                layer.layer_type, layer.sampling = "bbb", True

    def draws(self, images: Tensor) -> Tensor:
        """Class probabilities [num_samples, n, classes], one pass per draw."""
        return torch.stack([self.probs(images) for _ in range(self.num_samples)])


def export_network(network: DeployedNetwork, channels: int, size: int | tuple[int, int], path: Path) -> Path:
    """Write the network as a file that takes batches of any length.

    Args:
        network: the network to export.
        channels: of the images.
        size: height and width of the images; one number if they are the same.
        path: ends in `.pt2` for `torch.export`, or in `.onnx` for other runtimes.

    Raises:
        UserError: `path` has another ending, ONNX's packages are missing, or the file cannot be written.
    """
    example = torch.rand(2, channels, *((size, size) if isinstance(size, int) else size))
    dynamic = {"images": {0: torch.export.Dim("n", min=1)}}
    with torch.no_grad(), atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own code
        if path.suffix == ".pt2":
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic, strict=False)
            torch.export.save(program, temporary)
        elif path.suffix == ".onnx":
            try:
                torch.onnx.export(
                    network, (example,), temporary, dynamo=True, dynamic_shapes=dynamic, input_names=["images"],
                    output_names=list(network.outputs), external_data=False, verbose=False,
                )  # fmt: skip
            except ImportError as error:
                raise UserError(
                    f"cannot write {path} without ONNX's packages: pip install onnx onnxscript, or 'bayesian-cnn[onnx]'"
                ) from error
        else:
            raise UserError(f"cannot export to {path}: the name must end in .pt2 or .onnx")
    return path


def quantized(network: MeanNetwork) -> nn.Module:
    """A copy whose linear layers compute in int8 on a CPU; activations are scaled by their range in each pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation notice: torch moves this function to another package
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)


def compare_mean_network(network: MeanNetwork, path: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The exported mean network and its int8 copy beside the mean network itself.

    Args:
        network: the mean network.
        path: the ONNX file it was exported to.
        images: uint8 [n, channels, height, width].
        labels: [n].

    Returns:
        largest_difference: between the probabilities of the file and of the network.
        float32_accuracy: of the network.
        int8_accuracy: of its int8 copy.
        int8_time: the time of the int8 copy as a fraction of the network's.

    Raises:
        UserError: onnxruntime is missing.
    """
    inputs = images.float() / 255
    (exported,) = _run_onnx(path, inputs)
    small = quantized(network)
    with torch.inference_mode():
        probs, int8_probs = network(inputs), small(inputs)
        seconds, int8_seconds = (_median_seconds(each, inputs) for each in (network, small))
    return {
        "largest_difference": float((exported - probs).abs().max()),
        "float32_accuracy": accuracy(probs, labels),
        "int8_accuracy": accuracy(int8_probs, labels),
        "int8_time": int8_seconds / seconds,
    }


def compare_predictive_network(
    classifier: Classifier, path: Path, images: Tensor, labels: Tensor, num_samples: int
) -> dict[str, tuple[float, float, float]]:
    """The exported predictive network beside the library, and the library beside itself with another seed.

    Args:
        classifier: the network that was exported.
        path: the ONNX file of its `PredictiveNetwork`.
        images: uint8 [n, channels, height, width].
        labels: [n].
        num_samples: draws of the library's predictive.

    Returns:
        By quantity, its value by the file, by the library with seed 0, and by the library with seed 1.

    Raises:
        UserError: onnxruntime is missing.
    """
    first, second = (classifier.predict(images, num_samples, seed) for seed in (0, 1))
    probs, epistemic, aleatoric = _run_onnx(path, images.float() / 255)
    accuracies = [accuracy(each, labels) for each in (probs, first.probs, second.probs)]
    epistemics = (epistemic, first.mutual_information, second.mutual_information)
    aleatorics = (aleatoric, first.expected_entropy, second.expected_entropy)
    rows = {
        "accuracy": accuracies,
        "epistemic, mean (nats)": [float(each.mean()) for each in epistemics],
        "aleatoric, mean (nats)": [float(each.mean()) for each in aleatorics],
        "epistemic, correlation with the library's": [_correlation(each, epistemics[1]) for each in epistemics],
    }
    return {name: (values[0], values[1], values[2]) for name, values in rows.items()}


def largest_difference(classifier: Classifier, path: Path, images: Tensor) -> float:
    """Between the probabilities of an exported `MomentNetwork` and of the library by moments.

    Args:
        classifier: the network that was exported.
        path: the ONNX file.
        images: uint8 [n, channels, height, width].

    Raises:
        UserError: onnxruntime is missing.
    """
    probs = _run_onnx(path, images.float() / 255)[0]
    return float((probs - classifier.predict(images, method="moments").probs).abs().max())


def _run_onnx(path: Path, inputs: Tensor) -> list[Tensor]:
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise UserError(
            "cannot run ONNX files without onnxruntime: pip install onnxruntime, or 'bayesian-cnn[onnx]'"
        ) from error
    return [torch.from_numpy(output) for output in InferenceSession(str(path)).run(None, {"images": inputs.numpy()})]


def _median_seconds(network: Any, inputs: Tensor) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        network(inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def _entropy(probs: Tensor) -> Tensor:
    """`inference.prediction.entropy` in operations that every runtime has."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)
