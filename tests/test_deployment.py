"""Exported networks, run by torch.export and by onnxruntime, give what the library gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_files
from onnxruntime import InferenceSession
from torch import Tensor, nn

from inference import (
    Classifier,
    Decisions,
    MeanNetwork,
    MomentNetwork,
    PredictiveNetwork,
    export_network,
    load_finite_network,
    posterior_predictive,
    quantized,
    regression_predictive,
)
from inference.deployment import compare_mean_network
from inference.export import main
from layers import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper, sample_parameters, sampling
from likelihoods import StudentT
from models import UNet, build, write_checkpoint
from support import UserError
from training import BayesianSettings

MAPS = "categorical"
WIDE = {"posterior_rho_initial": (-1.5, 0.3)}
MOMENTS: dict[str, Any] = {"mean": (0.4, 0.5), "std": (0.2, 0.3)}


class Small(ModuleWrapper):
    def __init__(self, alpha_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        wide: dict[str, Any] = {
            "alpha_shape": alpha_shape,
            "priors": {"posterior_rho_initial": (-1.5, 0.3), "posterior_log_alpha_initial": -1.0},
        }
        self.conv = BBBConv2d(2, 3, 3, stride=2, **wide)
        self.act = nn.ReLU()
        self.flatten = FlattenLayer(27)
        self.fc = BBBLinear(27, 4, **wide)


def run(path: Path, images: Tensor) -> list[Tensor]:
    if path.suffix == ".pt2":
        output = torch.export.load(path).module()(images)
        return list(output) if isinstance(output, tuple) else [output]
    return [torch.from_numpy(values) for values in InferenceSession(str(path)).run(None, {"images": images.numpy()})]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_mean_network_runs_elsewhere_with_equal_outputs(ending: str, tmp_path: Path) -> None:
    net = Small()
    network = MeanNetwork(net, **MOMENTS)
    path = export_network(network, 2, 8, tmp_path / f"mean{ending}")
    for count in (1, 7):
        images = torch.rand(count, 2, 8, 8)
        exported = run(path, images)[0]
        normalized = (images - torch.tensor([0.4, 0.5]).view(2, 1, 1)) / torch.tensor([0.2, 0.3]).view(2, 1, 1)
        with sampling(net, False):
            expected = net(normalized)[0].softmax(-1)
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_predictive_network_has_the_librarys_distribution(
    ending: str, alpha_shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Over many calls of few draws, the means of all outputs agree within the noise that the calls show."""
    net = Small(alpha_shape)
    path = export_network(PredictiveNetwork(net, 4, (0.0, 0.0), (1.0, 1.0)), 2, 8, tmp_path / f"predictive{ending}")
    images = torch.rand(5, 2, 8, 8)
    if ending == ".onnx":
        session = InferenceSession(str(path))
        assert [output.name for output in session.get_outputs()] == ["probs", "epistemic", "aleatoric"]
        calls = [session.run(None, {"images": images.numpy()}) for _ in range(400)]
        exported = [torch.stack([torch.from_numpy(call[index]) for call in calls]) for index in range(3)]
    else:
        module = torch.export.load(path).module()
        with torch.no_grad():
            outputs = [module(images) for _ in range(400)]
        exported = [torch.stack([output[index] for output in outputs]) for index in range(3)]
    own = [posterior_predictive(net, images, num_samples=4, seed=seed) for seed in range(400)]
    expected = [
        torch.stack([each.probs for each in own]),
        torch.stack([each.mutual_information for each in own]),
        torch.stack([each.expected_entropy for each in own]),
    ]
    for one, other in zip(exported, expected, strict=True):
        noise = ((one.var(0) + other.var(0)) / 400).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * noise).all()
        torch.testing.assert_close(one.std(0), other.std(0), rtol=0.3, atol=1e-3)
    probs, epistemic, aleatoric = exported
    entropy = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(epistemic + aleatoric, torch.maximum(entropy, aleatoric), rtol=1e-4, atol=1e-5)


def test_the_predictive_network_samples_parameters_too() -> None:
    net = ModuleWrapper(nn.Flatten(), sample_parameters(nn.Linear(4, 3), "weight", priors=WIDE))
    net.set_flag("sampling", False)
    _, epistemic, _ = PredictiveNetwork(net, 4, (0.5,), (0.5,))(torch.rand(5, 1, 2, 2))
    assert (epistemic > 1e-6).all()


def test_a_layer_used_twice_has_one_draw_in_the_exported_network_too(tmp_path: Path) -> None:
    class Twice(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            priors = {"posterior_rho_initial": (0.0, 0.1)}
            self.flatten = FlattenLayer(4)
            self.first = BBBLinear(4, 4, bias=False, priors=priors)
            self.second = self.first

    net, images = Twice(), torch.rand(3, 1, 2, 2)
    library = torch.stack([posterior_predictive(net, images, 4, seed=seed).mutual_information for seed in range(200)])
    for ending in (".pt2", ".onnx"):
        network = PredictiveNetwork(net, 4, (0.0,), (1.0,))
        path = export_network(network, 1, 2, tmp_path / f"twice{ending}")
        if ending == ".pt2":
            module = torch.export.load(path).module()
            calls = [module(images)[1].detach() for _ in range(200)]
        else:
            session = InferenceSession(str(path))
            calls = [torch.from_numpy(session.run(None, {"images": images.numpy()})[1]) for _ in range(200)]
        exported = torch.stack(calls)
        noise = ((exported.var(0) + library.var(0)) / 200).sqrt()
        assert ((exported.mean(0) - library.mean(0)).abs() < 5 * noise).all(), ending


def test_a_network_without_classes_is_not_exported(tmp_path: Path) -> None:
    net = ModuleWrapper(FlattenLayer(4), BBBLinear(4, 1))
    for network in (MeanNetwork(net, (0.0,), (1.0,)), PredictiveNetwork(net, 2, (0.0,), (1.0,))):
        with pytest.raises(ValueError, match=r"expected logits \[n, classes\] of at least 2 classes .*, got \[\d, 1\]"):
            network(torch.rand(1, 1, 2, 2))


class Pooled(ModuleWrapper):
    """It takes images of any size."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.conv = BBBConv2d(2, 3, 3, priors=WIDE, padding=1, stride=2)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = FlattenLayer(3)
        self.fc = BBBLinear(3, outputs, priors=WIDE)


def test_one_file_takes_images_of_several_sizes(tmp_path: Path) -> None:
    by_moments, of_maps = MomentNetwork(Pooled(), 4, **MOMENTS), MeanNetwork(UNet(3, 2), **MOMENTS, likelihood=MAPS)
    for network in (by_moments, of_maps):
        path = export_network(network, 2, (12, 16), tmp_path / "network.onnx", any_size=True)
        for size in ((12, 16), (9, 30)):
            images = torch.rand(3, 2, *size)
            expected = network(images)
            for one, other in zip(run(path, images), [expected] if network is of_maps else expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("net", "size", "ending", "reason"),
    [
        (Small(), 8, ".pt2", r"FlattenLayer\(27\) got .* features per example"),
        # The exporter writes its pooling from 9×9 to 5×5 as that of this size alone, without an error.
        (build("lenet", True, 4, 2, image_size=(48, 48)), 48, ".onnx", "Guard failed|what it would predict at"),
    ],
)
def test_a_network_of_one_size_is_not_written_for_any(
    net: nn.Module, size: int, ending: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"({reason}).*: export this network for its own size alone") as error:
        export_network(MeanNetwork(net, **MOMENTS), 2, size, tmp_path / f"mean{ending}", any_size=True)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_posterior_whose_kl_no_runtime_knows_is_exported_without_it(tmp_path: Path) -> None:
    """The standard deviation by √(σ² + ΣL²), of which ONNX has no operation, is in the KL of `low_rank` alone."""
    torch.manual_seed(0)
    net = ModuleWrapper(FlattenLayer(8), BBBLinear(8, 3, posterior="low_rank", layer_type="bbb", priors=WIDE)).eval()
    network, images = PredictiveNetwork(net, 2, **MOMENTS), torch.rand(5, 2, 2, 2)
    session = InferenceSession(str(export_network(network, 2, 2, tmp_path / "network.onnx")))
    probs, _, aleatoric = zip(*(session.run(None, {"images": images.numpy()}) for _ in range(1000)), strict=True)
    expected = posterior_predictive(net, network.normalized(images), 2000)
    torch.testing.assert_close(torch.tensor(np.mean(probs, 0)), expected.probs, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.tensor(np.mean(aleatoric, 0)), expected.expected_entropy, rtol=0, atol=0.04)
    program = torch.export.load(export_network(network, 2, 2, tmp_path / "network.pt2"))
    assert not any("hypot" in str(node.target) for node in program.graph.nodes)
    assert net(torch.zeros(1, 8))[1].item() > 0  # the network that was given keeps its KL


class Bessel(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images.flatten(1))


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


@pytest.mark.parametrize(
    ("net", "ending", "message"),
    [
        (Bessel(), ".onnx", r"\(No ONNX function found for .*bessel_j0.*\): give a network of operations that"),
        (Branching(), ".pt2", r"\(.*data-dependent.*\): give a network of operations that the format has$"),
    ],
)
def test_an_operation_that_a_format_has_not_is_one_line(
    net: nn.Module, ending: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^cannot write .*{ending} {message}") as error:
        export_network(MeanNetwork(net, **MOMENTS), 2, 2, tmp_path / f"network{ending}")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


class Fixed(nn.Module):
    """The outputs of one Bayesian layer, given another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.fc = BBBLinear(8, math.prod(shape), priors=WIDE)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1)).view(-1, *self.shape)


@pytest.mark.parametrize("task", ["labels", "maps", "numbers"])
def test_each_task_has_the_outputs_of_its_predictive(task: str) -> None:
    likelihood: Any = {"labels": "bernoulli", "maps": "categorical", "numbers": StudentT((3.0,) * 2, (2.0,) * 2).module}
    net, images = Fixed({"labels": (3,), "maps": (3, 2, 2), "numbers": (4,)}[task]), torch.rand(5, 2, 2, 2)
    how: dict[str, Any] = {**MOMENTS, "likelihood": likelihood[task]}
    inputs = (images - torch.tensor([0.4, 0.5]).view(2, 1, 1)) / torch.tensor([0.2, 0.3]).view(2, 1, 1)
    if task == "numbers":
        of_numbers = regression_predictive(net, how["likelihood"], inputs, method="moments")
        expected = of_numbers.mean, of_numbers.epistemic, of_numbers.aleatoric
    else:
        predictive = posterior_predictive(net, inputs, method="moments", likelihood=how["likelihood"])
        expected = predictive.probs, predictive.mutual_information, predictive.expected_entropy
    passed = MomentNetwork(net, 4 if task == "numbers" else 3, **how)
    with torch.no_grad():
        for one, other in zip(passed(images), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
        calls = [PredictiveNetwork(net, 50, **how)(images) for _ in range(20)]
        drawn = [torch.stack(each) for each in zip(*calls, strict=True)]
        mean = MeanNetwork(net, **how)(images)
    assert passed.outputs == ("mean" if task == "numbers" else "probs", "epistemic", "aleatoric")
    for one, other in zip(drawn, expected, strict=True):
        torch.testing.assert_close(one.mean(0), other, rtol=0.15, atol=0.02)
    if task == "numbers":  # of weights without variance, that of the noise alone is left
        torch.testing.assert_close(mean[0], expected[0], rtol=0.05, atol=0.05)
        assert (mean[1] > 0).all()
    else:
        assert isinstance(mean, Tensor) and mean.shape == expected[0].shape


def test_int8_stays_close() -> None:
    network = MeanNetwork(Small(), **MOMENTS)
    images = torch.rand(50, 2, 8, 8)
    small = quantized(network)
    assert type(small.net.fc).__module__ != type(network.net.fc).__module__  # type: ignore[union-attr]
    difference = (small(images) - network(images)).abs().max().item()
    assert 0 < difference < 0.02


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the name must end in \.pt2 or \.onnx"):
        export_network(MeanNetwork(Small(), **MOMENTS), 2, 8, tmp_path / "net.bin")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_and_compares(
    finished_run: BayesianSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best, compared = run_files(finished_run).best, []

    def compare(network: MeanNetwork, path: Path, images: Tensor, targets: Tensor) -> dict[str, float]:
        compared.append(targets)
        return compare_mean_network(network, path, images, targets)

    monkeypatch.setattr("inference.export.compare_mean_network", compare)
    main(["--weights_path", str(best), "--num_samples", "2", "--check", "20", "--save_dir", str(tmp_path)])
    (targets,) = compared
    assert len(targets) == 20 and len(targets.unique()) == 2  # the first 20 of the folder are of one class
    names = {path.name for path in tmp_path.glob("*.*")}
    assert {f"model_lenet.{kind}{ending}" for kind in ("mean", "predictive") for ending in (".pt2", ".onnx")} <= names
    printed = capsys.readouterr().out
    assert float(printed.split("probabilities differ by at most ")[1].split()[0]) < 1e-5
    assert "int8 mean network: accuracy" in printed


def test_what_is_exported_has_the_temperature_of_the_checkpoint(
    finished_run: BayesianSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_finite_network(run_files(finished_run).best)
    decisions = Decisions(3.0, "total entropy", 0.1, 0.5, 0.1, 0.5, 0.5, images=20)
    path = tmp_path / "model_lenet.pt"
    write_checkpoint(path, saved.content | decisions.to_content())
    main(["--weights_path", str(path), "--prediction", "moments", "--check", "10"])
    assert float(capsys.readouterr().out.split("network of moments: probabilities differ by at most ")[1][:7]) < 1e-5
    images = torch.rand(4, 1, 32, 32)
    session = InferenceSession(str(path.with_suffix(".mean.onnx")))
    classifier = Classifier.load(path)
    expected = (MeanNetwork(classifier.net, classifier.mean, classifier.std).one_pass(images) / 3).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)
