"""Networks for other machines: one of the posterior means, and two that return their uncertainty, by draws or moments.

All take images [n, channels, height, width] with pixels in [0, 1] and normalize them themselves. What they return fits
the task: probabilities of classes, of labels or of the pixels' classes, or numbers.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.classifier import Classifier
from inference.distributions import refuse_distribution
from inference.regressor import Regressor
from layers import BayesianLayer, ModuleWrapper, SampledParameter, to_deterministic
from likelihoods import GaussianLikelihood, Predictive, RegressionPredictive, get_likelihood
from moments import DRAWS, Propagation, fixed_normals
from support import UserError, atomic_write, first_line


class DeployedNetwork(nn.Module):
    """A network that normalizes its images, and names its outputs for other runtimes.

    Args:
        net: a network of normalized images; it is set to eval mode.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: what the outputs of `net` are, as of a `Classifier` or `Regressor`: None for logits [n, classes],
            'categorical' also for maps, 'bernoulli' for labels, or the likelihood of a regression.

    Attributes:
        temperature: what logits are divided by, as of a calibrated `Classifier`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        likelihood: str | GaussianLikelihood | None = None,
    ) -> None:
        super().__init__()
        self.net = self.prepared(net).eval()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.likelihood = likelihood
        self.temperature = 1.0

    def prepared(self, net: nn.Module) -> nn.Module:
        """The network that is deployed for the one that is given: by default itself."""
        return net

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what a call returns."""
        return ("mean" if self.is_regression else "probs", "epistemic", "aleatoric")

    @property
    def is_regression(self) -> bool:
        """Whether it predicts numbers."""
        return isinstance(self.likelihood, GaussianLikelihood)

    def normalized(self, images: Tensor) -> Tensor:
        """The network's inputs for images with pixels in [0, 1]."""
        return (images - self.mean) / self.std

    def one_pass(self, images: Tensor) -> Tensor:
        """The outputs [n, outputs, ...] of one forward pass."""
        output = self.net(self.normalized(images))
        return output[0] if isinstance(output, tuple) else output

    def summary(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction, its epistemic and its aleatoric uncertainty, of outputs [draws, n, outputs, ...].

        Raises:
            ValueError: they are not what the likelihood reads.
        """
        if isinstance(self.likelihood, GaussianLikelihood):
            means, variances = self.likelihood.moments(draws)
            return means.mean(0), means.var(0, correction=0), variances.mean(0)
        reading = get_likelihood(self.likelihood)
        logits = reading.logits(draws.flatten(0, 1)) / self.temperature
        choices = logits.softmax(-1).unflatten(0, (len(draws), -1))
        probs, aleatoric = choices.mean(0), _entropy(choices).mean(0)
        return reading.from_choices(probs), (_entropy(probs) - aleatoric).clamp_min(0), aleatoric


class MeanNetwork(DeployedNetwork):
    """The prediction by the posterior means: an ordinary deterministic network.

    A call returns probabilities, [n, classes], [n, labels] or maps [n, classes, height, width]; for a regression the
    means and the variances of the noise, [n, targets] each.

    Args:
        net: a Bayesian or deterministic network; it is not modified.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: as for `DeployedNetwork`.
    """

    def prepared(self, net: nn.Module) -> nn.Module:
        """The deterministic twin, with the posterior means."""
        return to_deterministic(net)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what a call returns."""
        return ("mean", "aleatoric") if self.is_regression else ("probs",)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Predict images [n, channels, height, width] in [0, 1]."""
        prediction, _, aleatoric = self.summary(self.one_pass(images)[None])
        return (prediction, aleatoric) if self.is_regression else prediction


class UncertainNetwork(DeployedNetwork):
    """A network that returns its uncertainty: a subclass defines its draws."""

    def draws(self, images: Tensor) -> Tensor:
        """Outputs [draws, n, outputs, ...] for images in [0, 1]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict images [n, channels, height, width] in [0, 1].

        Returns:
            Probabilities [n, classes]; the mutual information [n] (epistemic) and the mean entropy of a draw [n]
            (aleatoric), in nats, which add up to the entropy of the probabilities. For labels all are [n, labels]; for
            maps [n] stands for [n, height, width]. For a regression the mean, and the variances of the means
            (epistemic) and of the noise (aleatoric), [n, targets] each.
        """
        return self.summary(self.draws(images))


class MomentNetwork(UncertainNetwork):
    """The posterior predictive by moments, in one pass and without random numbers.

    The moments of the weights are constants where the network was when this was made: move or cast it before.

    Args:
        net: a Bayesian network; it is not modified.
        outputs: how many it has.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: as for `DeployedNetwork`.

    Raises:
        UserError: the network is a `WeightDistribution`.
        MissingRuleError: in a call, the network has an operation without a rule.
    """

    net: Propagation
    noise: Tensor

    def __init__(
        self,
        net: nn.Module,
        outputs: int,
        mean: Sequence[float],
        std: Sequence[float],
        likelihood: str | GaussianLikelihood | None = None,
    ) -> None:
        refuse_distribution(net)
        with torch.no_grad():  # the moments of weights become constants
            propagation = Propagation(copy.deepcopy(net).eval())
        super().__init__(propagation, mean, std, likelihood)
        self.register_buffer("noise", fixed_normals(DRAWS, outputs))

    def draws(self, images: Tensor) -> Tensor:
        """48 fixed draws of the outputs, of each component of the posterior."""
        return self.net.draws(self.normalized(images), self.noise)


class PredictiveNetwork(UncertainNetwork):
    """The posterior predictive, with fresh draws in every call that all images of the call share.

    Its network computes no KL.

    Args:
        net: a Bayesian network; it is not modified.
        num_samples: draws per call.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: as for `DeployedNetwork`.

    Raises:
        UserError: the network is a `WeightDistribution`.
    """

    def __init__(
        self,
        net: nn.Module,
        num_samples: int,
        mean: Sequence[float],
        std: Sequence[float],
        likelihood: str | GaussianLikelihood | None = None,
    ) -> None:
        refuse_distribution(net)
        super().__init__(copy.deepcopy(net), mean, std, likelihood)
        self.num_samples = num_samples
        for layer in self.net.modules():
            if isinstance(layer, (BayesianLayer, ModuleWrapper)):
                layer.kl = _no_kl  # type: ignore[method-assign]
            if isinstance(layer, (BayesianLayer, SampledParameter)):
                layer.sampling = True
            if isinstance(layer, BayesianLayer):
                layer.layer_type = "bbb"

    def draws(self, images: Tensor) -> Tensor:
        """`num_samples` draws of the outputs, one pass per draw."""
        return torch.stack([self.one_pass(images) for _ in range(self.num_samples)])


def _no_kl() -> Tensor:
    """In the place of a KL that no prediction needs: every draw would compute it again, in each runtime."""
    return torch.zeros(())


def export_network(
    network: DeployedNetwork, channels: int, size: int | tuple[int, int], path: Path, *, any_size: bool = False
) -> Path:
    """Write the network as a file that takes batches of any length.

    Args:
        network: the network to export.
        channels: of the images.
        size: height and width of the images; one number if they are the same.
        path: ends in `.pt2` for `torch.export`, or in `.onnx` for other runtimes.
        any_size: whether the file takes images of other sizes too. It is tried at two of them.

    Raises:
        UserError: `path` has another ending, ONNX's packages are missing, the file cannot be written, or the network
            has an operation that the format has not, or is for one size.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise UserError(f"cannot export to {path}: the name must end in .pt2 or .onnx")
    height, width = (size, size) if isinstance(size, int) else size
    example = torch.rand(2, channels, height, width)
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if any_size else {}
    dynamic = {"images": {0: torch.export.Dim("n", min=1), **free}}
    others = [(height + 16, width + 7), (2 * height, 2 * width + 16)] if any_size else []
    with torch.no_grad(), atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own code
        try:
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic, strict=False)
            if path.suffix == ".pt2":
                torch.export.save(program, temporary)
            else:
                program = _write_onnx(program, network.outputs, dynamic, temporary)
            for other in others:
                _compare(network, program, torch.rand(1, channels, *other))
        except (UserError, OSError):
            raise
        except Exception as error:  # of many kinds, where a network cannot do what is asked for
            of_any_size, remedy = "", "give a network of operations that the format has"
            if any_size:
                of_any_size, remedy = " for images of any size", "export this network for its own size alone"
            raise UserError(f"cannot write {path}{of_any_size} ({_reason(error)}): {remedy}") from error
    return path


def _reason(error: Exception) -> str:
    """The first line of the error that an exporter's own ones are about."""
    return _reason(error.__cause__) if isinstance(error.__cause__, Exception) else first_line(error)


def _write_onnx(
    program: torch.export.ExportedProgram, outputs: Sequence[str], dynamic: dict[str, Any], path: Path
) -> torch.export.ExportedProgram:
    """Write a program as an ONNX file, and return it in the operations that were written."""
    try:
        onnx: Any = torch.onnx.export(
            program, (), dynamo=True, dynamic_shapes=dynamic, input_names=["images"], output_names=[*outputs],
            external_data=False, verbose=False,
        )  # fmt: skip
    except ImportError as error:
        raise UserError(
            f"cannot write {path} without ONNX's packages: pip install onnx onnxscript, or 'bayesian-cnn[onnx]'"
        ) from error
    onnx.save(path)
    written: torch.export.ExportedProgram = onnx.exported_program
    return written


def _compare(network: DeployedNetwork, program: torch.export.ExportedProgram, images: Tensor) -> None:
    """Check that a program does what its network does, by the same draws, for images of another size.

    What depends on the size, as adaptive pooling does, could be that of the example's without an error.

    Raises:
        ValueError: it does not.
    """
    results: list[Sequence[Tensor]] = []
    for each in (network, program.module()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            output = each(images)
        results.append([output] if isinstance(output, Tensor) else output)
    if not all(torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(*results, strict=True)):
        height, width = images.shape[-2:]
        raise ValueError(f"what it would predict at {height}×{width} pixels is not what the network does")


def quantized(network: MeanNetwork) -> nn.Module:
    """A copy whose linear layers compute in int8 on a CPU; activations are scaled by their range in each pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation notice: torch moves this function to another package
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)


def compare_mean_network(network: MeanNetwork, path: Path, images: Tensor, targets: Tensor) -> dict[str, float]:
    """The exported mean network and its int8 copy beside the mean network itself.

    Args:
        network: the mean network.
        path: the ONNX file it was exported to.
        images: uint8 [n, channels, height, width].
        targets: [n], the classes, or what the task has instead: see `images.Split`.

    Returns:
        largest_difference: between the predictions of the file and of the network.
        float32: accuracy of the network; of a regression, its RMSE.
        int8: the same of its int8 copy.
        int8_time: the time of the int8 copy as a fraction of the network's.

    Raises:
        UserError: onnxruntime is missing.
    """
    inputs = images.float() / 255
    exported = _run_onnx(path, inputs)[0]
    small = quantized(network)
    with torch.inference_mode():
        full, int8 = (each(inputs)[0] if network.is_regression else each(inputs) for each in (network, small))
        seconds, int8_seconds = (_median_seconds(each, inputs) for each in (network, small))
    return {
        "largest_difference": float((exported - full).abs().max()),
        "float32": _score(network, full, targets),
        "int8": _score(network, int8, targets),
        "int8_time": int8_seconds / seconds,
    }


def compare_predictive_network(
    network: PredictiveNetwork, path: Path, predictor: Classifier | Regressor, images: Tensor, targets: Tensor
) -> dict[str, tuple[float, float, float]]:
    """The exported predictive network beside the library, and the library beside itself with another seed.

    Args:
        network: the predictive network.
        path: the ONNX file it was exported to.
        predictor: the network as the library predicts with it.
        images: uint8 [n, channels, height, width].
        targets: [n], the classes, or what the task has instead.

    Returns:
        By quantity, its value by the file, by the library with seed 0, and by the library with seed 1.

    Raises:
        UserError: onnxruntime is missing.
    """
    first, second = (_summary(predictor.predict(images, network.num_samples, seed)) for seed in (0, 1))
    unit = "squared units" if network.is_regression else "nats"
    predictions, epistemics, aleatorics = zip(_run_onnx(path, images.float() / 255), first, second, strict=True)
    rows = {
        "rmse" if network.is_regression else "accuracy": [_score(network, each, targets) for each in predictions],
        f"epistemic, mean ({unit})": [float(each.mean()) for each in epistemics],
        f"aleatoric, mean ({unit})": [float(each.mean()) for each in aleatorics],
        "epistemic, correlation with the library's": [_correlation(each, epistemics[1]) for each in epistemics],
    }
    return {name: (values[0], values[1], values[2]) for name, values in rows.items()}


def largest_difference(predictor: Classifier | Regressor, path: Path, images: Tensor) -> float:
    """Between the predictions of an exported `MomentNetwork` and of the library by moments.

    Args:
        predictor: the network that was exported.
        path: the ONNX file.
        images: uint8 [n, channels, height, width].

    Raises:
        UserError: onnxruntime is missing.
    """
    predictions = _run_onnx(path, images.float() / 255)[0]
    return float((predictions - _summary(predictor.predict(images, method="moments"))[0]).abs().max())


def _summary(predictive: Predictive | RegressionPredictive) -> tuple[Tensor, Tensor, Tensor]:
    """What an `UncertainNetwork` returns."""
    if isinstance(predictive, RegressionPredictive):
        return predictive.mean, predictive.epistemic, predictive.aleatoric
    return predictive.probs, predictive.mutual_information, predictive.expected_entropy


def _score(network: DeployedNetwork, predictions: Tensor, targets: Tensor) -> float:
    """Accuracy, or RMSE, of the first output of a network."""
    if network.is_regression:
        return float((predictions - targets).square().mean().sqrt())
    decided = predictions > 0.5 if network.likelihood == "bernoulli" else predictions.argmax(1)
    return float((decided == targets).double().mean())


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
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def _entropy(probs: Tensor) -> Tensor:
    """`likelihoods.entropy` in operations that every runtime has."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)
