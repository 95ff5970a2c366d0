"""Yesterday's posterior as today's prior: in closed form, in training runs, and over tasks in sequence."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch
from conftest import ROOT, Script, bayesian_settings, draw_pictures, frequentist_settings, run_files, same, weights
from sklearn.datasets import load_digits
from test_readme import blocks, commands
from torch import Tensor, distributions, nn

from examples import continual
from images import Split
from inference import posterior_predictive
from inference.evaluation import load_training_data
from layers import (
    BBBConv2d,
    BBBLinear,
    FlattenLayer,
    GaussianPosterior,
    GaussianPrior,
    ModuleWrapper,
    kl_divergence,
    posterior_as_prior,
    weight_posteriors,
)
from likelihoods import accuracy, nll
from models import load_network
from support import UserError
from tests.processes import run_together
from training import (
    Alarms,
    BayesianSettings,
    fit_jointly,
    fit_task,
    fitted_to_coreset,
    initial_state,
    join_tasks,
    k_center_coreset,
    prepare,
    random_coreset,
    run,
)


def gaussian(posterior: object) -> GaussianPosterior:
    assert isinstance(posterior, GaussianPosterior)
    return posterior


def prior_of(posterior: object) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of a prior that was a posterior."""
    prior = gaussian(posterior).prior
    assert isinstance(prior, GaussianPrior) and isinstance(prior.mean, Tensor) and isinstance(prior.std, Tensor)
    return prior.mean, prior.std


def small_net(priors: dict[str, object] | None = None) -> ModuleWrapper:
    priors = {"posterior_rho_initial": (-2.0, 1.0), **(priors or {})}
    return ModuleWrapper(
        BBBConv2d(1, 3, 3, priors=priors), nn.ReLU(), FlattenLayer(12), BBBLinear(12, 2, priors=priors)
    )


@pytest.mark.parametrize(
    "priors",
    [{}, {"learn_prior_sigma": True}, {"prior": distributions.Laplace(0.0, 1.0)}],
    ids=["Gaussian", "learned", "Laplace"],
)
def test_the_posterior_becomes_the_prior_of_every_weight(priors: dict[str, object]) -> None:
    """Whatever the prior was before, the KL is 0 then, and afterwards that of two normals."""
    net = small_net(priors)
    assert net.kl() > 1
    before = [
        distributions.Normal(mean.detach().clone(), posterior.std(mean).detach().clone())
        for _, mean, posterior in weight_posteriors(net)
    ]
    posterior_as_prior(net)
    assert net.kl() == 0
    net.kl().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = [distributions.Normal(mean, posterior.std(mean)) for _, mean, posterior in weight_posteriors(net)]
    kl = torch.stack([distributions.kl_divergence(q, p).sum() for q, p in zip(after, before, strict=True)]).sum()
    torch.testing.assert_close(net.kl(), kl)


def test_a_prior_that_was_a_posterior_is_saved_copied_and_moved_with_the_weights() -> None:
    net = small_net()
    posterior_as_prior(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    loaded = small_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no prior of the user's own is replaced
        loaded.load_state_dict(torch.load(stream, weights_only=True))
    assert net.kl() > 0.1
    for other in (loaded, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.kl(), net.kl())
    wide = copy.deepcopy(net).double()
    assert wide.kl().dtype == torch.float64
    torch.testing.assert_close(wide.kl().float(), net.kl())


def test_a_network_without_a_gaussian_posterior_is_refused_unchanged() -> None:
    net = ModuleWrapper(BBBLinear(3, 3), BBBLinear(3, 2, alpha_shape=(1, 1)))
    before = net.kl()
    with pytest.raises(ValueError, match="the alpha posterior has a prior of its own.*: train without alpha_shape"):
        posterior_as_prior(net)
    assert torch.equal(net.kl(), before)
    with pytest.raises(ValueError, match="no Bayesian layers, so it has no posterior"):
        posterior_as_prior(nn.Linear(2, 2))


@pytest.mark.parametrize("orthogonal", [True, False])
def test_linear_regression_in_parts(orthogonal: bool) -> None:
    """y = Xw + noise of known s, prior N(0, σ_p²). The best factorized normal after data has precisions
    λ_i = λ_i⁰ + (XᵀX)_ii/s² and a mean that solves (diag λ⁰ + XᵀX/s²) μ = λ⁰ μ⁰ + Xᵀy/s² (Bishop 2006, 10.1.2).
    Precisions add up over parts, so the standard deviations after ten parts are those of all data at once, always. With
    features that are orthogonal in each part the mean solves one equation per weight, which add up as well."""
    count, parts, noise, sigma = 6, 10, 0.3, 0.8
    features = torch.randn(parts, 20, count, dtype=torch.float64)
    if orthogonal:
        features = torch.linalg.qr(features).Q * torch.rand(parts, 1, count, dtype=torch.float64).mul(3)
    targets = features @ torch.randn(count, 1, dtype=torch.float64) + noise * torch.randn(parts, 20, 1).double()

    def learn(layer: BBBLinear, x: Tensor, y: Tensor) -> None:
        """Put the posterior at its optimum, prove by the gradient of the negative ELBO that it is there, go on."""
        posterior = layer.posterior["weight"]
        pull = gaussian(posterior).prior.pull(torch.zeros(1, count).double(), torch.ones(1, count).double())
        prior = torch.as_tensor(pull[1]).double().expand(1, count)[0]
        gram = x.T @ x / noise**2
        mean = torch.linalg.solve(prior.diag() + gram, (x.T @ y / noise**2)[:, 0] - pull[0][0])
        std = (prior + gram.diagonal()).rsqrt()
        with torch.no_grad():
            layer.weight.copy_(mean)
            posterior.rho.copy_(std + torch.log(-torch.expm1(-std)))
        errors = (y - x @ layer.weight.T).square().sum() + (x.square() @ posterior.variance(layer.weight).T).sum()
        slopes = torch.autograd.grad(errors / (2 * noise**2) + layer.kl(), [layer.weight, posterior.rho])
        assert all(slope.abs().max() < 1e-9 for slope in slopes)
        posterior_as_prior(layer)

    def fresh() -> BBBLinear:
        return BBBLinear(count, 1, bias=False, dtype=torch.float64, priors={"prior_sigma": sigma})

    in_parts, at_once = fresh(), fresh()
    for x, y in zip(features, targets, strict=True):
        learn(in_parts, x, y)
    learn(at_once, features.flatten(0, 1), targets.flatten(0, 1))
    (mean, std), (batch_mean, batch_std) = (prior_of(layer.posterior["weight"]) for layer in (in_parts, at_once))
    torch.testing.assert_close(std, batch_std)
    distance = ((mean - batch_mean) / batch_std).abs().max()
    assert distance < 1e-9 if orthogonal else distance > 0.1


class Standardized(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 16


def digits(permutations: int) -> list[tuple[Split, Split]]:
    """scikit-learn's 8×8 digits, and the same with permuted pixels: a training and a test split each."""
    data = load_digits()
    pixels, labels = torch.tensor(data.images, dtype=torch.uint8).flatten(1), torch.tensor(data.target)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(labels), generator=generator)
    return [
        tuple(Split(pixels[half][:, pixel_order], labels[half]) for half in order.split(1200))
        for pixel_order in (torch.randperm(64, generator=generator) for _ in range(permutations))
    ]


def linear(layer: Callable[[int, int], nn.Module]) -> ModuleWrapper:
    return ModuleWrapper(Standardized(), layer(64, 10))


def bayesian_layer(inputs: int, outputs: int) -> BBBLinear:
    return BBBLinear(inputs, outputs, priors={"posterior_rho_initial": (-4.0, 0.0)})


def test_the_twin_forgets_what_the_bayesian_network_knows() -> None:
    """A linear classifier of permuted digits: the twin ends where the last task alone would put it."""
    tasks, final = digits(3), []
    for layer in (bayesian_layer, nn.Linear):
        net = linear(layer)
        for task, _ in tasks:
            fit_task(net, task, 15, batch_size=100, lr=1e-2)
            if layer is bayesian_layer:
                posterior_as_prior(net)
        final.append([accuracy(posterior_predictive(net, t.images, 10).probs, t.labels) for _, t in tasks])
    knows, forgets = final
    assert min(knows) > 0.65 and forgets[2] > knows[2]
    assert knows[0] > forgets[0] + 0.15 and sum(knows) > sum(forgets) + 0.2


def test_a_stream_in_parts_predicts_as_all_data_at_once() -> None:
    """The NLL of the predictive to 10 %, and half way through it is worse."""
    ((task, test),) = digits(1)

    def learn(*parts: Split) -> float:
        net = linear(bayesian_layer)
        for part in parts:
            fit_task(net, part, 20, batch_size=60, lr=1e-2)
            posterior_as_prior(net)
        return nll(posterior_predictive(net, test.images, 25), test.labels)

    parts = [task.subset(part) for part in torch.arange(len(task)).tensor_split(4)]
    at_once = learn(task)
    assert learn(*parts) == pytest.approx(at_once, rel=0.1)
    assert learn(*parts[:2]) > 1.1 * at_once


def test_with_beta_every_image_counts_as_many() -> None:
    """β = ¼ on a task is β = 1 on four copies of it, by a posterior that is too narrow for its noise to be seen."""
    ((task, _),) = digits(1)
    few = task.subset(torch.arange(40))
    start = linear(lambda *size: BBBLinear(*size, priors={"prior_sigma": 0.1, "posterior_rho_initial": (-16.0, 0.0)}))
    fitted = []
    for beta, copies in ((0.25, 1), (1.0, 4), (1.0, 1)):
        net = copy.deepcopy(start)
        fit_task(net, join_tasks([few] * copies), 30, batch_size=160, lr=1e-2, lr_spread_factor=1e-9, beta=beta)
        fitted.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(fitted[0], fitted[1], rtol=0, atol=1e-4)
    assert (fitted[0] - fitted[2]).abs().max() > 1e-2


def test_heads_share_a_body_and_only_those_that_have_learnt_are_in_the_kl() -> None:
    (task, _), (other, _) = digits(2)
    body = BBBLinear(64, 8)
    nets = [ModuleWrapper(Standardized(), body, nn.ReLU(), BBBLinear(8, 10)) for _ in range(2)]
    untouched = copy.deepcopy(nets[1].state_dict())
    fit_task(nets[0], task, 1, batch_size=400)
    posterior_as_prior(nets[0])
    now = nets[1].state_dict()
    assert not torch.equal(now["1.weight"], untouched["1.weight"])
    assert all(torch.equal(now[name], untouched[name]) for name in untouched if name.startswith("3."))
    assert nets[0].kl() == 0 and nets[1].kl() > 0
    torch.testing.assert_close(kl_divergence(nn.ModuleList(nets)), kl_divergence(nets[1]))
    before = [head.state_dict()["3.weight"].clone() for head in nets]
    fit_jointly(nets, [task, other], 1, batch_size=400)
    assert not any(torch.equal(old, net.state_dict()["3.weight"]) for old, net in zip(before, nets, strict=True))


def test_learning_jointly_needs_no_memory_of_tasks() -> None:
    """The same image has another label in the other task, which a head per task can learn and one head cannot."""
    (task, test), *_ = digits(1)
    reversed_labels = Split(task.images, 9 - task.labels)
    body = nn.Linear(64, 32)
    nets = [ModuleWrapper(Standardized(), body, nn.ReLU(), nn.Linear(32, 10)) for _ in range(2)]
    fit_jointly(nets, [task, reversed_labels], 15, batch_size=100, lr=1e-2)
    for net, labels in zip(nets, (test.labels, 9 - test.labels), strict=True):
        assert accuracy(posterior_predictive(net, test.images).probs, labels) > 0.9


def test_a_coreset_is_learnt_by_a_copy() -> None:
    (task, _), (other, test) = digits(2)
    net = ModuleWrapper(Standardized(), BBBLinear(64, 32), nn.ReLU(), BBBLinear(32, 10))
    fit_task(net, task, 10, batch_size=100, lr=5e-3)
    posterior_as_prior(net)
    before = copy.deepcopy(net.state_dict())
    ready = fitted_to_coreset(net, join_tasks([random_coreset(part, 200)[0] for part in (task, other)]), 60, lr=5e-3)
    assert same(net.state_dict(), before) and net.kl() == 0 and ready.kl() > 0
    accuracies = [accuracy(posterior_predictive(each, test.images, 5).probs, test.labels) for each in (net, ready)]
    assert accuracies[1] > accuracies[0] + 0.2


@pytest.mark.parametrize("choose", [random_coreset, k_center_coreset])
def test_a_coreset_and_the_rest_are_the_task(choose: object) -> None:
    assert callable(choose)
    task = Split(torch.randint(0, 256, (50, 1, 2, 2), dtype=torch.uint8), torch.arange(50))
    task.images[:45] = 7  # mostly the same image
    coreset, rest = choose(task, 20, seed=3)
    assert len(coreset) == 20 and len(rest) == 30
    assert sorted([*coreset.labels.tolist(), *rest.labels.tolist()]) == list(range(50))
    for part in (coreset, rest):
        assert torch.equal(part.images, task.images[part.labels])
    again, other = choose(task, 20, seed=3)[0], choose(task, 20, seed=4)[0]
    assert torch.equal(again.labels, coreset.labels) and not torch.equal(other.labels, coreset.labels)
    for size in (0, 50, 51):
        with pytest.raises(UserError, match=f"a coreset of {size} images, from a task of 50: expected from 1 to 49"):
            choose(task, size)


def test_k_centers_cover_the_task_at_most_twice_as_far_as_the_best_ones() -> None:
    """Gonzalez 1985, theorem 2.2; the best ones by trying all."""
    pixels = torch.randint(0, 256, (14, 3), dtype=torch.uint8)
    distances = torch.cdist(pixels.double(), pixels.double())
    best = min(distances[:, list(chosen)].amin(1).max() for chosen in itertools.combinations(range(14), 4))
    for seed in range(14):
        coreset, _ = k_center_coreset(Split(pixels, torch.arange(14)), 4, seed)
        assert distances[:, coreset.labels].amin(1).max() <= 2 * best + 1e-9


def test_a_task_without_images_is_refused() -> None:
    nothing = Split(torch.zeros(0, 64, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="there is no image to learn from"):
        fit_task(ModuleWrapper(BBBLinear(64, 10)), nothing, 1)


# Runs that continue others


@pytest.fixture
def later_pictures(tmp_path: Path) -> Path:
    """Other pictures of the same classes, of another mean."""
    root = tmp_path / "later"
    draw_pictures(root / "train", 60, seed=7)
    draw_pictures(root / "test", 10, seed=8)
    return root


@pytest.fixture
def continued(finished_run: BayesianSettings, later_pictures: Path, tmp_path: Path) -> BayesianSettings:
    """Settings of a run that continues the finished one on the later pictures."""
    return bayesian_settings(
        later_pictures, tmp_path / "runs", n_epochs=2, layer_type="lrt", lr_schedule="constant", beta_type=1.0,
        valid_ens=1, test_ens=2, prior_from=str(run_files(finished_run).best),
    )  # fmt: skip


def best_of(settings: BayesianSettings) -> Path:
    return Path(settings.checkpoint_dir) / "later" / "bayesian" / "model_lenet.pt"


def test_a_run_continues_from_the_posterior_of_another(
    finished_run: BayesianSettings, continued: BayesianSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """It starts there, with that posterior as prior and that normalization, which its own files keep."""
    earlier = load_network(run_files(finished_run).best)
    setup = prepare(continued)
    start = initial_state(setup).net
    assert kl_divergence(start) == 0
    assert setup.description.mean == earlier.description.mean and setup.description.std == earlier.description.std
    posteriors = [(mean, posterior.std(mean)) for _, mean, posterior in weight_posteriors(earlier.net)]
    for (_, mean, posterior), q in zip(weight_posteriors(start), posteriors, strict=True):
        assert same([mean, posterior.std(mean)], list(q)) and same(list(prior_of(posterior)), list(q))

    run(continued)
    assert f"normalized as for {continued.prior_from}" in capsys.readouterr().out
    saved = load_network(best_of(continued))
    assert kl_divergence(saved.net) > 0 and saved.description.mean == earlier.description.mean
    for (_, _, posterior), q in zip(weight_posteriors(saved.net), posteriors, strict=True):
        assert same(list(prior_of(posterior)), list(q))
    load_training_data(saved, best_of(continued), "data")  # its images are normalized by other constants than their own

    last = best_of(continued).with_name("last.pt")
    uninterrupted = weights(last)
    halves = replace(continued, checkpoint_dir=continued.checkpoint_dir + "-halves")
    run(replace(halves, n_epochs=1))
    run(replace(halves, resume=True))
    assert same(weights(best_of(halves).with_name("last.pt")), uninterrupted)
    with pytest.raises(UserError, match=r"is of a run with prior_from .*model_lenet.pt', not None"):
        run(replace(halves, resume=True, prior_from=None))


def test_two_processes_continue_together(continued: BayesianSettings) -> None:
    continued = replace(continued, n_epochs=1)
    flags = [
        word for name in ("dataset", "checkpoint_dir", "n_epochs", "batch_size", "valid_ens", "test_ens", "prior_from")
        for word in (f"--{name}", getattr(continued, name))
    ]  # fmt: skip
    for process in run_together(2, "main_bayesian.py", *flags):
        assert process.returncode == 0, process.stderr
    assert continued.prior_from is not None
    earlier = weights(Path(continued.prior_from))
    saved = weights(best_of(continued))
    means = [name.removesuffix(".rho").replace("posterior.", "") for name in earlier if name.endswith(".rho")]
    assert means
    for name in means:
        layer, key = name.rsplit(".", 1)
        assert torch.equal(saved[f"{layer}.posterior.{key}.prior.mean"], earlier[name])
        assert not torch.equal(saved[name], earlier[name])


def test_a_checkpoint_that_cannot_be_continued_from_is_refused_in_a_line(
    finished_run: BayesianSettings, continued: BayesianSettings, pictures: Path, tmp_path: Path, script: Script
) -> None:
    quick = {"n_epochs": 1, "batch_size": 100}
    twin, alpha = frequentist_settings(pictures, tmp_path, **quick), bayesian_settings(
        pictures, tmp_path, **quick, alpha_shape=(1, 1), valid_ens=1, test_ens=1
    )  # fmt: skip
    for settings in (twin, alpha):
        run(settings)
    pruned = tmp_path / "pruned.pt"
    best = run_files(finished_run).best
    script("-m", "inference.prune", "--weights_path", best, "--num_samples", 1, "--save_path", pruned)
    own = replace(finished_run, prior_from=str(best))
    color = draw_pictures(tmp_path / "color" / "train", 50, "RGB").parent
    for settings, message in (
        (replace(continued, prior_from=str(tmp_path / "none.pt")), "there is no checkpoint .*none.pt"),
        (replace(continued, prior_from=str(run_files(twin).best)), "the network has no Bayesian layers"),
        (replace(continued, prior_from=str(run_files(alpha).best)), "the alpha posterior has a prior of its own"),
        (replace(continued, prior_from=str(pruned)), "is pruned, and its pruned weights would stay 0"),
        (replace(continued, net_type="3conv3fc"), "its net_type is 'lenet', this run needs '3conv3fc'"),
        (replace(continued, activation_type="softplus"), "its architecture is .*relu.*, this run needs .*softplus"),
        (replace(continued, dataset=str(color)), "is for images of 1 channels, and those of color have 3"),
        (own, "is where this run writes its own: give another checkpoint_dir"),
    ):
        with pytest.raises(UserError, match=message) as error:
            initial_state(prepare(settings))
        assert "\n" not in str(error.value)


def test_a_kl_that_grows_from_the_prior_is_no_alarm() -> None:
    history = [{"epoch": float(epoch), "valid_accuracy": 0.9, "train_kl": 100.0 * epoch} for epoch in range(1, 8)]
    net = BBBLinear(2, 2)
    assert Alarms(net, 2, 8, starts_at_prior=True).check(history, 100) == []
    assert len(Alarms(net, 2, 8).check(history, 100)) == 1


# The example


PAGE = (ROOT / "docs" / "continual.md").read_text(encoding="utf-8")


def test_the_example_runs_as_the_page_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one epoch, few tasks and the embedded digits."""
    monkeypatch.chdir(tmp_path)
    quick = "--dataset MNIST5k --tasks 2 --epochs 1 --twin_epochs 1 --coreset_epochs 1 --num_samples 1 --record r.json"
    examples = [words[3:] for words in commands(PAGE) if words[1:3] == ["-m", "examples.continual"]]
    assert {words[0] for words in examples} == set(continual.PROBLEMS)
    for words in [*examples, ["split", "--seeds", "1"]]:
        continual.main([*words, *quick.split(), *([] if "--seeds" in words[1:2] else ["--seeds", "0"])])
    record = json.loads((tmp_path / "r.json").read_text())
    assert set(record) == {f"{name} MNIST5k" for name in continual.PROBLEMS}
    for name, seed in (("permuted", "0"), ("split", "1"), ("incremental", "0")):
        results = record[f"{name} MNIST5k"]["results"][seed]
        assert [[len(row) for row in results[kind]] for kind in continual.SEQUENCES] == 4 * [[1, 2]]
        assert 0 < sum(results[continual.JOINT]) <= 2
    streams = record["streaming MNIST5k"]["results"]["0"]
    assert math.isfinite(streams["in parts"]["nll"]) and math.isfinite(streams["at once"]["nll"])
    assert matplotlib.image.imread(tmp_path / "continual.png").std() > 0.05


def test_seeds_of_the_same_settings_are_recorded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, sigma, expected in (("0", "1", ["0"]), ("1", "1", ["0", "1"]), ("2", "0.5", ["2"])):
        args = continual.parse_arguments(["split", "--seeds", seed, "--prior_sigma", sigma])
        continual.add_to_record(args, ["split"], {seed: {}}, {})
        assert list(json.loads(Path("continual.json").read_text())["split MNIST5k"]["results"]) == expected


@pytest.mark.parametrize("text", ["not JSON", "[1]", '{"split MNIST5k": {"results": 3}}'])
def test_what_is_no_record_is_refused_before_anything_is_learnt(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="record.json is not a record of this script: move it away"):
        continual.main(["split", "--data_dir", "none", "--dataset", "MNIST", "--record", str(tmp_path / "record.json")])
    assert (tmp_path / "record.json").read_text() == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("permuted --coreset 3600", "a coreset of 3600 images, from a task of 3600: expected from 1 to 3599"),
        ("split --tasks 6", "split has at most 5 tasks: give --tasks 5 or fewer"),
        ("permuted --epochs 0", "argument --epochs: expected an integer ≥ 1, got '0'"),
        ("permuted --choose nearest", "argument --choose: invalid choice: 'nearest'"),
    ],
)
def test_the_example_refuses_what_it_cannot_do(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        continual.main(words.split())


def test_the_page_runs_as_written(
    script: Script, later_pictures: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one epoch, with pictures in place of the folders of photographs."""
    photographs = {"photos/monday": str(pictures), "photos/tuesday": str(later_pictures)}
    runs = [words[1:] for words in commands(PAGE) if words[1] == "main_bayesian.py"]
    assert len(runs) == 2 and "--prior_from" in runs[1]
    for words in runs:
        flags = [photographs.get(word, word.replace("checkpoints/monday", f"{tmp_path}/bars")) for word in words]
        script(*flags, "--n_epochs", 1, "--batch_size", 40, "--checkpoint_dir", tmp_path)
    assert (tmp_path / "later" / "bayesian" / "model_lenet.pt").exists()
    (snippet,) = blocks("python", PAGE)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet.replace("epochs=60", "epochs=1"), "continual.md", "exec"), {})
    for name in re.findall(r"images/(\w+\.png)", PAGE):
        assert (ROOT / "docs" / "images" / name).exists(), name
