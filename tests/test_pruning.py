"""Pruning removes the weights that the posterior is least sure of, and says what it costs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import matplotlib.image
import pytest
import torch
from conftest import Script, run_files
from torch import nn

from inference import export, posterior_predictive, prune, pruned, signal_to_noise, sparsity
from layers import BBBLinear, sampling, weight_posteriors
from models import Description, build, load_network, read_checkpoint, save_network, write_checkpoint
from support import UserError
from training import BayesianSettings


def network() -> nn.Sequential:
    priors = {"posterior_rho_initial": (-2.0, 1.0)}
    return nn.Sequential(BBBLinear(8, 20, priors=priors), nn.ReLU(), BBBLinear(20, 3, priors=priors))


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_weights_of_least_signal_to_noise_go(by_layer: bool) -> None:
    net = network()
    ratios = signal_to_noise(net)
    for name, mean, posterior in weight_posteriors(net):
        torch.testing.assert_close(ratios[name], (mean.abs() / posterior.std(mean)).detach())
    smaller = pruned(net, 0.3, by_layer)
    gone = {name: mean == 0 for name, mean, _ in weight_posteriors(smaller)}
    assert sparsity(smaller) == pytest.approx(0.3, abs=0.005) and sparsity(net) == 0
    if by_layer:
        for name, ratio in ratios.items():
            assert gone[name].sum() == round(0.3 * ratio.numel())
            assert not gone[name].any() or ratio[gone[name]].max() < ratio[~gone[name]].min()
    else:
        every = torch.cat([ratio.flatten() for ratio in ratios.values()])
        where = torch.cat([g.flatten() for g in gone.values()])
        assert every[where].max() < every[~where].min()


def test_what_is_pruned_has_no_variance_and_the_rest_is_as_it_was() -> None:
    net = network()
    smaller = pruned(net, 0.5)
    for (_, mean, posterior), (_, was, before) in zip(weight_posteriors(smaller), weight_posteriors(net), strict=True):
        kept = mean != 0
        assert torch.equal(mean[kept], was[kept])
        assert torch.equal(posterior.std(mean)[kept], before.std(was)[kept])
        assert (posterior.std(mean)[~kept] < 1e-30).all()
        assert (posterior.sample(mean)[~kept].abs() < 1e-30).all()
    features = torch.randn(4, 8)
    everything = pruned(net, 1.0)
    assert (everything(features).abs() < 1e-15).all()  # lrt's noise has a floor
    nothing = pruned(net, 0.0)
    with sampling(net, False), sampling(nothing, False):
        assert torch.equal(nothing(features), net(features))


def test_the_alpha_posterior_loses_what_is_noise() -> None:
    net = BBBLinear(6, 4, bias=False, alpha_shape=(4, 6))
    with torch.no_grad():
        net.posterior["weight"].log_alpha[:] = torch.linspace(-5, 5, 24).view(4, 6)
    smaller = pruned(net)
    log_alpha = net.posterior["weight"].log_alpha
    assert torch.equal(smaller.weight == 0, log_alpha > 3)
    torch.testing.assert_close(signal_to_noise(net)["weight"], (-0.5 * log_alpha).exp().detach())


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction must be from 0 to 1, got 1.5"):
        pruned(network(), 1.5)
    with pytest.raises(ValueError, match="no Bayesian layer"):
        pruned(nn.Linear(2, 2), 0.5)


def test_the_command_prunes_a_checkpoint(script: Script, pictures: Path, tmp_path: Path) -> None:
    places = ("--dataset", pictures, "--checkpoint_dir", tmp_path)
    script("main_bayesian.py", *places, "--n_epochs", 4, "--batch_size", 20, "--lr_start", "3e-3", "--test_ens", 2)
    weights = tmp_path / "bars" / "bayesian" / "model_lenet.pt"
    answer = script("-m", "inference.prune", "--weights_path", weights, "--num_samples", 3, fresh=True)
    report = json.loads(weights.with_suffix(".pruned.json").read_text())
    net, _, content = load_network(weights.with_suffix(".pruned.pt"))
    assert sparsity(net) == pytest.approx(report["sparsity"]) and content["pruned"] == report["chosen"]
    assert report["sparsity"] == pytest.approx(report["chosen"], abs=1e-4)
    accuracies = {row["fraction"]: row["accuracy"] for row in report["curve"]}
    fits = [fraction for fraction, accuracy in accuracies.items() if accuracy >= accuracies[0.0] - 0.003]
    assert report["chosen"] == max(fits)
    assert f"{report['test']['after']['accuracy']:.2%}" in answer.stdout
    assert matplotlib.image.imread(weights.with_suffix(".pruned.png")).std() > 0.05
    assert posterior_predictive(net, torch.zeros(1, 1, 32, 32), 2).probs.isfinite().all()
    refused = script("-m", "inference.prune", "--weights_path", weights, "--fraction", 2, expect=2)
    assert refused.stderr == "error: --fraction must be from 0 to 1, got 2.0\n"


def test_weights_that_are_not_finite_have_no_ratio() -> None:
    net = network()
    with torch.no_grad():
        net[2].bias[1] = math.nan  # type: ignore[index, operator, union-attr]
    for refused in (lambda: pruned(net, 0.5), lambda: signal_to_noise(net)):
        with pytest.raises(UserError, match=r"the network has weights that are not finite \(2.bias\)"):
            refused()


def test_foreign_and_broken_checkpoints_are_refused_in_one_line(
    finished_run: BayesianSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = shutil.copy(run_files(finished_run).best, tmp_path / "model.pt")
    content = read_checkpoint(weights)
    before = weights.read_bytes()

    def changed(name: str, **changes: object) -> Path:
        write_checkpoint(tmp_path / name, {**content, **changes})
        return tmp_path / name

    key = next(key for key, value in content["weights"].items() if key.endswith("conv1.weight"))
    broken = changed("broken.pt", weights={**content["weights"], key: content["weights"][key] * math.nan})
    bare = tmp_path / "bare.pt"
    description = Description(**content["description"])
    save_network(bare, description.build(), description)
    other = changed("other.pt", settings={**content["settings"], "dataset": "MNIST5k"})
    odd = changed("odd.pt", settings={**content["settings"], "valid_size": "much"})
    twin = tmp_path / "twin.pt"
    save_network(
        twin, build("lenet", False, 10, 1), Description("lenet", False, {}, tuple("abcdefghij"), (0.3,), (0.2,))
    )
    check = ["--check", "2", "--num_samples", "1"]
    for script, path, flags, message in (
        (prune, broken, [], f"{broken} has weights that are not finite ({key})"),
        (export, broken, [], f"{broken} has weights that are not finite ({key})"),
        (prune, bare, [], "does not say what data it was trained on"),
        (prune, odd, [], "does not say what data it was trained on"),
        (prune, other, [], "was trained on other MNIST5k images than those here"),
        (prune, twin, [], "holds a frequentist network"),
        (
            prune,
            weights,
            ["--save_path", tmp_path / "." / "model.pt"],
            "is the file to prune: give another --save_path",
        ),
        (prune, weights, ["--save_path", tmp_path / "pruned.json"], "where its report goes"),
        (prune, weights, ["--max_loss", "nan"], "--max_loss: expected a number ≥ 0 and ≤ 1, got 'nan'"),
        (export, other, check, "was trained on other MNIST5k images than those here"),
    ):
        with pytest.raises(SystemExit) as stopped:
            script.main(["--weights_path", str(path), *map(str, flags)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
    assert weights.read_bytes() == before
    monkeypatch.setattr("inference.pruning.FRACTIONS", (0.0,))  # a short curve
    prune.main(["--weights_path", str(weights), "--save_path", str(weights), "--overwrite", "--fraction", "0.5",
                "--num_samples", "1"])  # fmt: skip
    assert sparsity(load_network(weights).net) == pytest.approx(0.5, abs=1e-3)
