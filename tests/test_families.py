"""Every family of posteriors beside the Gaussian and the alpha one: what it samples, its KL, and where it goes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import bayesian_settings, draws_of, in_one_graph, run_files
from torch import Tensor, distributions, nn

from inference import Predictor, posterior_predictive, pruned, signal_to_noise
from inference.prediction import posterior_draws
from layers import (
    BBBLSTM,
    FAMILIES,
    BayesianLayer,
    BBBConv2d,
    BBBConvTranspose2d,
    BBBEmbedding,
    BBBLinear,
    Family,
    GaussianPosterior,
    KTiedPosterior,
    LowRankPosterior,
    ModuleWrapper,
    RadialPosterior,
    Rank1Posterior,
    entropy,
    kl_divergence,
    parameter_groups,
    sampling,
    to_bayesian,
    to_deterministic,
    weight_posteriors,
)
from layers.priors import CorrelatedGaussianPrior
from models import Description, build, load_network, save_network
from moments import Moments, known_weights, propagate, weight_moments
from recording import read_recording
from support import UserError
from training import run

WIDE = {"posterior_rho_initial": (-1.5, 0.5), "prior_sigma": 0.7}
STILL = {"posterior_rho_initial": (-200.0, 0.0)}
NAMES = [name for name in FAMILIES if name not in ("gaussian", "alpha")]
WITH_ESTIMATORS = [(name, layer_type) for name in NAMES for layer_type in FAMILIES[name].estimators]
LAYERS: dict[str, tuple[Callable[..., BayesianLayer], tuple[int, ...]]] = {
    "linear": (partial(BBBLinear, 5, 4, dtype=torch.float64), (3, 5)),
    "convolution": (partial(BBBConv2d, 2, 3, 3, stride=2, padding=1, dtype=torch.float64), (2, 2, 5, 4)),
    "transposed": (partial(BBBConvTranspose2d, 2, 3, 2, stride=2, dtype=torch.float64), (2, 2, 3, 2)),
}


@pytest.mark.parametrize(("name", "layer_type"), WITH_ESTIMATORS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_no_variance_is_that_of_torch_nn(kind: str, name: str, layer_type: str) -> None:
    make, shape = LAYERS[kind]
    layer, inputs = make(posterior=name, layer_type=layer_type, priors=STILL), torch.randn(shape, dtype=torch.float64)
    plain = to_deterministic(layer)
    assert not isinstance(plain, BayesianLayer)
    for given in (inputs, inputs[0]):
        torch.testing.assert_close(layer(given), plain(given), rtol=0, atol=1e-12)
    assert f"posterior={name}" in repr(layer)


@pytest.mark.parametrize(("name", "layer_type"), WITH_ESTIMATORS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_have_the_closed_mean_and_variance(kind: str, name: str, layer_type: str) -> None:
    make, shape = LAYERS[kind]
    layer = make(posterior=name, layer_type=layer_type, priors=WIDE)
    inputs = torch.randn(shape, dtype=torch.float64)
    mean, variance = (moment.detach() for moment in layer.output_moments(inputs))
    draws = draws_of(lambda: layer(inputs), 10_000)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 10_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_the_weights_have_the_mean_and_the_variance_of_the_posterior(name: str) -> None:
    layer = BBBLinear(5, 4, posterior=name, layer_type="bbb", dtype=torch.float64, priors=WIDE)
    posterior = layer.posterior["weight"]
    mean, variance = posterior.location(layer.weight).detach(), posterior.variance(layer.weight).detach()
    draws = torch.stack([draw.weight.detach().clone() for draw in posterior_draws(layer, 8000, seed=3)])
    for values in (draws, draws_of(lambda: posterior.sample(layer.weight), 20_000)):
        assert ((values.mean(0) - mean).abs() < 5 * (variance / len(values)).sqrt()).all()
        torch.testing.assert_close(values.var(0), variance, rtol=0.1, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_the_k_tied_posterior_has_the_kl_of_torch_distributions_and_few_parameters(bias: bool) -> None:
    layer = BBBConv2d(3, 6, 3, bias=bias, posterior={"family": "k_tied", "rank": 3}, priors=WIDE)
    posterior = layer.posterior["weight"]
    assert isinstance(posterior, KTiedPosterior) and posterior.rho_columns.shape == (27, 3)
    std = posterior.std(layer.weight)
    assert torch.linalg.matrix_rank(std.detach().flatten(1)) == 3
    expected = distributions.kl_divergence(distributions.Normal(layer.weight, std), distributions.Normal(0, 0.7)).sum()
    torch.testing.assert_close(posterior.kl(layer.weight), expected)
    if bias:
        assert isinstance(layer.posterior["bias"], GaussianPosterior)
    gaussian, k_tied = (build("3conv3fc", True, 10, 3, posterior=name) for name in ("gaussian", "k_tied"))
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (gaussian, k_tied)]
    assert sizes[1] < 0.51 * sizes[0]
    stds = [torch.cat([p.std(m).flatten() for _, m, p in weight_posteriors(net)]).mean() for net in (gaussian, k_tied)]
    torch.testing.assert_close(*stds, rtol=0.02, atol=0)


def test_the_low_rank_posterior_is_that_of_torch_distributions() -> None:
    """Its entropy, its KL to a Gaussian prior, and so that of one tensor beside another."""
    layer = BBBLinear(5, 4, posterior={"family": "low_rank", "rank": 3}, dtype=torch.float64, priors=WIDE)
    posterior = layer.posterior["weight"]
    assert isinstance(posterior, LowRankPosterior) and isinstance(layer.posterior["bias"], GaussianPosterior)
    nn.init.normal_(posterior.factor, std=0.5)
    variance = posterior.independent_variance(layer.weight).flatten()
    q = distributions.LowRankMultivariateNormal(layer.weight.flatten(), posterior.factor.flatten(1).mT, variance)
    torch.testing.assert_close(posterior.variance(layer.weight).flatten(), q.variance)
    torch.testing.assert_close(posterior.entropy(layer.weight), q.entropy())
    p = distributions.MultivariateNormal(
        torch.zeros(20, dtype=torch.float64), 0.49 * torch.eye(20, dtype=torch.float64)
    )
    whole = distributions.MultivariateNormal(q.mean, q.covariance_matrix)
    expected = distributions.kl_divergence(whole, p)
    torch.testing.assert_close(posterior.kl(layer.weight), expected)
    torch.testing.assert_close(layer.kl(), expected + layer.posterior["bias"].kl(layer.bias))
    draws = draws_of(lambda: posterior.sample(layer.weight).flatten(), 20_000)
    torch.testing.assert_close(draws.T.cov(), q.covariance_matrix.detach(), rtol=0.1, atol=0.08)


def test_the_outputs_of_a_low_rank_layer_move_together_as_its_weights_do() -> None:
    """Local reparameterization is exact: it has the covariance of the outputs, as the moments of one pass have."""
    layer = BBBLinear(3, 4, posterior="low_rank", dtype=torch.float64, priors=WIDE)
    factor = nn.init.normal_(layer.posterior["weight"].factor)
    inputs = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        _, covariance = propagate(layer, inputs)
        own = layer.operation(inputs.square(), *layer.variances()).diag_embed()
        moved = torch.einsum("koi,ni->nko", factor, inputs)
        torch.testing.assert_close(covariance, own + moved.mT @ moved)
    draws = draws_of(lambda: layer(inputs).flatten(), 20_000).T.cov().view(2, 4, 2, 4)
    for one in range(2):
        for other in range(2):
            expected = covariance[one] if one == other else torch.zeros(4, 4, dtype=torch.float64)
            torch.testing.assert_close(draws[one, :, other], expected, rtol=0.1, atol=0.25)
    hidden = nn.Sequential(nn.Linear(3, 3), layer).double()
    hidden[0] = BBBLinear(3, 3, dtype=torch.float64, priors=WIDE)
    with torch.no_grad():
        _, covariance = propagate(hidden, inputs)
        sampled = torch.stack([draw(inputs) for draw in posterior_draws(hidden, 8000, seed=1)])
    torch.testing.assert_close(covariance[0], sampled[:, 0].T.cov(), rtol=0.12, atol=0.12 * float(covariance[0].max()))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_radial_posterior_has_the_entropy_and_the_kl_of_many_draws(size: int) -> None:
    """Of radius r and direction: q(w) = p(r) / (S r^(D−1) Π σ), with S the surface of the unit sphere."""
    layer = BBBLinear(size, 1, bias=False, posterior="radial", layer_type="bbb", dtype=torch.float64, priors=WIDE)
    posterior, prior = layer.posterior["weight"], distributions.Normal(0, 0.7)
    assert isinstance(posterior, RadialPosterior)
    sigma = posterior.std(layer.weight).detach().flatten() * math.sqrt(size)
    draws = draws_of(lambda: posterior.sample(layer.weight).flatten(), 200_000)
    radius = ((draws - layer.weight.detach().flatten()) / sigma).norm(dim=1)
    surface = {1: 2.0, 2: 2 * math.pi, 3: 4 * math.pi}[size]
    log_q = distributions.HalfNormal(1.0).log_prob(radius) - (size - 1) * radius.log() - math.log(surface)
    log_q -= sigma.log().sum()
    for found, values in (
        (posterior.entropy(layer.weight), -log_q),
        (posterior.kl(layer.weight), log_q - prior.log_prob(draws).sum(1)),
    ):
        assert found.item() == pytest.approx(values.mean().item(), abs=5 * float(values.std()) / math.sqrt(len(draws)))
    if size == 1:
        gaussian = BBBLinear(1, 1, bias=False, dtype=torch.float64, priors={"prior_sigma": 0.7})
        gaussian.load_state_dict(dict(layer.state_dict()))  # which does not say of which family it is
        torch.testing.assert_close(layer.kl(), gaussian.kl(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["k_tied", "radial", "low_rank"])
def test_linear_regression_recovers_the_analytic_posterior(name: str) -> None:
    """As in test_linear_regression, by the exact ELBO: a covariance of low rank and a diagonal make that of 3 weights.

    Its ELBO is then the log evidence log N(y; 0, s²I + σ_p²XXᵀ); the other families have the best variances 1/A_ii.
    """
    count, noise, prior = 60, 0.5, 0.8
    features = torch.randn(count, 3, dtype=torch.float64)
    features[:, 1] += 0.7 * features[:, 0]
    targets = features @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    targets += noise * torch.randn(count, 1, dtype=torch.float64)
    precision = features.T @ features / noise**2 + torch.eye(3, dtype=torch.float64) / prior**2
    mean = torch.linalg.solve(precision, features.T @ targets / noise**2).T
    priors = {"prior_sigma": prior, "posterior_rho_initial": (-2.0, 0.1)}
    layer = BBBLinear(3, 1, bias=False, dtype=torch.float64, layer_type="bbb", posterior=name, priors=priors)
    posterior = layer.posterior["weight"]
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        first, variance = layer.output_moments(features)
        nll = ((first - targets).square() + variance).sum() / (2 * noise**2) + count * math.log(noise)
        value = nll + 0.5 * count * math.log(2 * math.pi) + layer.kl()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    torch.testing.assert_close(layer.weight, mean, rtol=1e-4, atol=0)
    if name != "low_rank":
        torch.testing.assert_close(posterior.std(layer.weight), precision.diagonal().rsqrt()[None], rtol=1e-4, atol=0)
        return
    covariance = posterior.independent_variance(layer.weight).flatten().diag() + torch.einsum(
        "koi,koj->ij", posterior.factor, posterior.factor
    )
    torch.testing.assert_close(covariance, torch.linalg.inv(precision), rtol=1e-3, atol=1e-6)
    of_targets = noise**2 * torch.eye(count, dtype=torch.float64) + prior**2 * features @ features.T
    evidence = distributions.MultivariateNormal(torch.zeros(count, dtype=torch.float64), of_targets)
    assert -loss().item() == pytest.approx(evidence.log_prob(targets.flatten()).item(), rel=1e-6)


def test_a_prior_whose_kl_a_family_does_not_know_is_one_line() -> None:
    laplace = {"prior": {"family": "Laplace", "loc": 0.0, "scale": 1.0}}
    correlated = {"prior": CorrelatedGaussianPrior(torch.eye(4) + 0.5)}
    for name, priors in (("radial", laplace), ("low_rank", laplace), ("low_rank", correlated)):
        with pytest.raises(ValueError, match=f"the {name} posterior needs a Gaussian prior, got"):
            BBBConv2d(1, 2, 2, posterior=name, layer_type="bbb", priors=priors)
    assert BBBConv2d(1, 2, 2, posterior="radial", priors=correlated).kl().isfinite()


def test_an_estimator_that_a_family_does_not_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer_type 'lrt' does not work with the radial posterior: give bbb or flip"):
        BBBLinear(2, 2, posterior="radial", layer_type="lrt")
    with pytest.raises(ValueError, match="layer_type 'flipout' does not work with the low_rank posterior: give lrt or"):
        BBBLinear(2, 2, posterior="low_rank").layer_type = "flipout"
    with pytest.raises(UserError, match="lenet cannot be built with these settings: layer_type 'lrt' does not work"):
        run(bayesian_settings(Path("MNIST5k"), tmp_path, posterior="radial", layer_type="lrt"))
    assert BBBLinear(2, 2, posterior="radial").layer_type == "bbb"


def test_directions_learn_as_means_do_and_do_not_decay() -> None:
    net = nn.Sequential(BBBLinear(3, 2, posterior="low_rank"), nn.BatchNorm1d(2))
    pulled, decaying, deviations = parameter_groups(net, 1e-3, 10.0, weight_decay=0.1)
    layer = net[0]
    assert {id(p) for p in pulled["params"]} == {
        id(p) for p in (layer.weight, layer.bias, layer.posterior["weight"].factor)
    }
    assert (pulled["weight_decay"], decaying["weight_decay"], deviations["lr"]) == (0.0, 0.1, 1e-2)
    assert len(deviations["params"]) == 2 and len(decaying["params"]) == 2


@pytest.mark.parametrize(("name", "layer_type"), WITH_ESTIMATORS)
def test_gradients_are_those_of_finite_differences(name: str, layer_type: str) -> None:
    layer = BBBConv2d(1, 2, 2, dtype=torch.float64, layer_type=layer_type, posterior=name, priors=WIDE)
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(images), self.layer.kl()

    def outputs(images: Tensor, *parameters: Tensor) -> Any:
        torch.manual_seed(3)
        weights = {f"layer.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Both(), weights, (images,))

    assert torch.autograd.gradcheck(outputs, (images, *parameters))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_survives_copy_pickle_state_and_casts(name: str) -> None:
    make = partial(BBBConv2d, 2, 3, 3, posterior=name)
    layer, images = make(priors=WIDE), torch.randn(2, 2, 5, 5)
    kl = layer.kl()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = make(priors={"prior_sigma": 0.7})
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin.kl(), kl)
        outputs = []
        for each in (layer, twin):
            torch.manual_seed(2)
            outputs.append(each(images))
        assert torch.equal(*outputs)
    double = copy.deepcopy(layer).double()
    torch.testing.assert_close(double.kl().float(), kl)
    assert double(images.double()).dtype == torch.float64
    half = layer.to(torch.bfloat16)
    assert half(images.bfloat16()).isfinite().all() and half.kl().item() == pytest.approx(kl.item(), rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_family_is_one_line(name: str) -> None:
    """By what the state says of itself; one that does not, such as a dict of tensors alone, by its names."""
    layer, gaussian = BBBLinear(3, 2, posterior=name), BBBLinear(3, 2)
    for one, other in ((layer, gaussian), (gaussian, layer)):
        families = [each.posterior["weight"].family for each in (one, other)]
        if families[0] != families[1]:
            message = f"the state of posterior.weight is of the {families[0]} family, and not of {families[1]}"
            with pytest.raises(ValueError, match=message):
                other.load_state_dict(one.state_dict())
        if set(dict(layer.named_parameters())) != set(dict(gaussian.named_parameters())):
            with pytest.raises(ValueError, match=f"is of another family than {families[1]}: it has"):
                other.load_state_dict(dict(one.state_dict()))
    layer.load_state_dict(copy.deepcopy(layer).state_dict())


def test_factors_of_another_kind_are_one_line() -> None:
    normal, cauchy = (
        BBBLinear(3, 2, posterior={"family": "rank1", "factors": factors}) for factors in ("gaussian", "cauchy")
    )
    with pytest.raises(ValueError, match="is of the gaussian factor family, and not of cauchy factor"):
        cauchy.load_state_dict(normal.state_dict())


@in_one_graph
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_compiles_in_one_graph(name: str) -> None:
    layer = BBBConv2d(1, 2, 3, posterior=name, priors=STILL)
    images = torch.randn(3, 1, 6, 6)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        return layer(images), kl_divergence(layer)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), both(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_network_goes_back(name: str) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    net = to_bayesian(plain, posterior=name, layer_type=next(iter(FAMILIES[name].estimators)))
    images = torch.randn(4, 1, 6, 6)
    with sampling(net, False):
        torch.testing.assert_close(to_deterministic(net)(images), net(images))
    drawn = to_deterministic(net, sample=True)
    assert [key for key, _ in drawn.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert not torch.equal(drawn(images), to_deterministic(net, sample=True)(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_alone_rebuilds_the_network(name: str, tmp_path: Path) -> None:
    architecture = {"posterior": name, "layer_type": "bbb", "priors": {"posterior_rho_initial": (-3.0, 0.2)}}
    description = Description("lenet", True, architecture, tuple("01234"), (0.5,), (0.5,))
    net, images = description.build().eval(), torch.randn(3, 1, 32, 32)
    save_network(tmp_path / "net.pt", net, description)
    loaded = load_network(tmp_path / "net.pt").net
    assert torch.equal(kl_divergence(loaded), kl_divergence(net))
    expected = posterior_predictive(net, images, 4)
    assert torch.equal(posterior_predictive(loaded, images, 4).probs, expected.probs)
    assert (expected.mutual_information > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_is_recorded_and_resumed(name: str, pictures: Path, tmp_path: Path) -> None:
    settings = partial(
        bayesian_settings, pictures, tmp_path, layer_type="bbb", posterior=name, record_mean_var=True,
        record_layers=["fc3"], train_ens=1,
    )  # fmt: skip
    assert run(settings(n_epochs=3))["test"]["nll"] < math.log(2)
    best = run_files(settings()).best
    assert load_network(best).description.architecture["posterior"] == name
    recorded = read_recording(run_files(settings()).reports / "fc3.sqlite")
    assert recorded.variance.shape[0] == 9 and (recorded.variance > 0).all() and recorded.weights["weight"].std.all()
    with pytest.raises(UserError, match=f"is of a run with posterior '{name}', not 'gaussian'"):
        run(settings(posterior="gaussian", resume=True, n_epochs=4))
    run(settings(n_epochs=4, resume=True))
    assert len(read_recording(run_files(settings()).reports / "fc3.sqlite").epoch) == 12


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("k_tied", "radial", "low_rank")])
def test_what_is_pruned_has_no_variance(name: str) -> None:
    net = nn.Sequential(BBBLinear(8, 20, posterior=name, layer_type="bbb", priors=WIDE))
    ratios = signal_to_noise(net)["0.weight"]
    smaller = pruned(net, 0.5, by_layer=True)
    gone = smaller[0].weight == 0
    assert ratios[gone].max() < ratios[~gone].min()
    std, before = (each[0].posterior["weight"].std(each[0].weight) for each in (smaller, net))
    assert torch.equal(std[~gone], before[~gone]) and (std[gone] < 1e-30).all() and smaller[0].kl().isfinite()
    other = copy.deepcopy(net)
    other.load_state_dict(smaller.state_dict())
    assert torch.equal(other[0].kl(), smaller[0].kl())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[0].kl(), net[0].kl())


def factors(layer: nn.Module) -> tuple[Any, Any]:
    posterior = layer.posterior["weight"]  # type: ignore[index]
    assert isinstance(posterior, Rank1Posterior)
    return posterior.outputs, posterior.inputs


def test_the_rank1_posterior_has_the_mean_kl_of_its_components_and_few_parameters() -> None:
    layer = BBBLinear(5, 4, posterior={"family": "rank1", "components": 3}, dtype=torch.float64, priors=WIDE)
    expected = 0.0
    for factor in factors(layer):
        signs = factor.mean.detach().clone()
        assert (signs.abs() == 1).all() and (signs[0] == 1).all() and (signs < 0).any()
        nn.init.normal_(factor.mean)
        q, p = distributions.Normal(factor.mean, factor.deviation), distributions.Normal(signs, 0.7)
        expected = expected + distributions.kl_divergence(q, p).sum() / 3
        entropy = q.entropy().sum() / 3
        torch.testing.assert_close(factor.total_entropy() / 3, entropy)
    torch.testing.assert_close(layer.kl(), expected)
    plain, rank1 = build("3conv3fc", False, 10, 3), build("3conv3fc", True, 10, 3, posterior="rank1")
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (plain, rank1)]
    assert 1.0 < sizes[1] / sizes[0] < 1.01


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("layer_type", ["lrt", "bbb"])
def test_outputs_of_a_mixture_have_its_mean_and_variance(layer_type: str, kind: str) -> None:
    make, shape = LAYERS[kind]
    layer = make(posterior={"family": "rank1", "components": 3}, layer_type=layer_type, priors=WIDE)
    inputs = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for factor in factors(layer):
            factor.mean.add_(0.5 * torch.randn_like(factor.mean))
        mean, variance = layer.output_moments(inputs)
    draws = draws_of(lambda: layer(inputs), 10_000)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 10_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.12, atol=1e-9)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_pass_through_random_factors_has_the_moments_of_the_mixture(kind: str) -> None:
    """Also of random inputs, which add op(v, W²(μ_s² + σ_s²))(μ_r² + σ_r²) to the variance of a component."""
    make, shape = LAYERS[kind]
    layer = make(posterior={"family": "rank1", "components": 3}, priors=WIDE)
    inputs, variance = torch.randn(2, *shape, dtype=torch.float64).abs().unbind()
    with torch.no_grad():
        for factor in factors(layer):
            factor.mean.add_(0.5 * torch.randn_like(factor.mean))
        mean, expected = layer.output_moments(inputs)
        one, total = propagate(layer, inputs)
        torch.testing.assert_close(one, mean)
        torch.testing.assert_close(total.diagonal(dim1=-2, dim2=-1).movedim(-1, 1), expected)
        twin = to_deterministic(layer)
        twin.weight.copy_(layer.weight)
        added = torch.zeros_like(mean)
        for component in range(3):
            known = weight_moments(layer, component)
            with known_weights({id(twin.weight): known[id(layer.weight)]}):
                certain, random = twin(Moments(inputs)), twin(Moments(inputs, variance))
            second = [(f.mean[component].square() + f.deviation[component].square()) for f in factors(layer)]
            second = [each.view(-1, *[1] * (inputs.dim() - 2)) for each in second]
            inherited = layer.operation(variance * second[1], layer.weight.square(), None) * second[0]
            torch.testing.assert_close(random.variance, certain.variance + inherited)
            added += inherited
        assert (added > 0).all()


def test_a_linear_network_of_random_factors_has_the_covariance_of_the_closed_form() -> None:
    """Cov(s ⊙ x) = μ_s μ_sᵀ ⊙ Cov(x) + diag(σ_s² E[x²]), and the same for r."""
    layer = BBBLinear(3, 4, posterior="rank1", priors=WIDE, dtype=torch.float64)
    last = nn.Linear(4, 5, dtype=torch.float64)
    inputs = mean = torch.randn(1, 3, dtype=torch.float64)
    covariance = torch.zeros(3, 3, dtype=torch.float64)
    outputs, into = factors(layer)
    with torch.no_grad():
        for factor in (into, outputs):
            nn.init.normal_(factor.mean)
            scale, second = factor.mean[0], mean[0].square() + covariance.diag()
            mean, covariance = mean * scale, scale.outer(scale) * covariance
            covariance = covariance + (factor.deviation[0].square() * second).diag()
            if factor is into:
                mean, covariance = mean @ layer.weight.T, layer.weight @ covariance @ layer.weight.T
        expected = last(mean + layer.bias), (last.weight @ covariance @ last.weight.T)[None]
        propagated = propagate(nn.Sequential(layer, last), inputs)
    torch.testing.assert_close(propagated, expected)


def test_one_pass_per_component_of_a_batch_ensemble_is_the_ensemble() -> None:
    net = build("lenet", True, 5, 1, posterior={"family": "rank1", "components": 3, "factors": "point"}).eval()
    images = torch.randn(4, 1, 32, 32)
    draws, moments = posterior_predictive(net, images, 3), posterior_predictive(net, images, method="moments")
    torch.testing.assert_close(moments.probs, draws.probs, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(moments.mutual_information, draws.mutual_information, atol=1e-5, rtol=1e-3)


def test_the_cauchy_factors_have_the_kl_of_the_integral_and_the_quartiles_of_the_scale() -> None:
    layer = BBBLinear(1, 1, False, posterior={"family": "rank1", "factors": "cauchy"}, dtype=torch.float64, priors=WIDE)
    factor, _ = factors(layer)
    with torch.no_grad():
        factor.mean.fill_(0.3)
    q = distributions.Cauchy(factor.mean.detach(), factor.deviation.detach())
    p = distributions.Cauchy(torch.ones(1, 1, dtype=torch.float64), 0.7)
    at = q.icdf((torch.arange(200_000, dtype=torch.float64)[:, None] + 0.5) / 200_000)
    integral = (q.log_prob(at) - p.log_prob(at)).mean()
    torch.testing.assert_close(factor.total_kl(), integral, rtol=1e-4, atol=0)
    torch.testing.assert_close(factor.total_entropy(), q.entropy().sum())
    draws = factor.draw(torch.zeros(100_000, dtype=torch.int64), torch.randn_like).detach().flatten()
    quartiles = draws.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    expected = q.icdf(torch.tensor([[0.25], [0.5], [0.75]], dtype=torch.float64)).flatten()
    torch.testing.assert_close(quartiles, expected, rtol=0, atol=0.02 * factor.deviation.item())
    with pytest.raises(ValueError, match="Cauchy factors need a fixed prior_sigma"):
        BBBLinear(2, 2, posterior={"family": "rank1", "factors": "cauchy"}, priors={"learn_prior_sigma": True})
    with pytest.raises(ValueError, match="learns one prior_sigma per factor: give learn_prior_sigma True"):
        BBBLinear(2, 2, posterior="rank1", priors={"learn_prior_sigma": "channel"})


def test_batch_ensemble_is_as_many_networks_as_it_has_components_and_a_pass_mixes_them() -> None:
    """All layers of a pass, and of a draw, take the same component: y is that of one network of the K."""
    posterior = {"family": "rank1", "components": 4, "factors": "point"}
    net = ModuleWrapper(BBBLinear(3, 20, posterior=posterior), nn.Tanh(), BBBLinear(20, 2, posterior=posterior))
    assert net.kl().item() == 0
    inputs = torch.randn(1, 3)
    with torch.no_grad():
        members = torch.cat([draw(inputs)[0] for draw in posterior_draws(net, 4, seed=0)])
        again = torch.cat([draw(inputs)[0] for draw in posterior_draws(net, 8, seed=5)])
        assert torch.equal(again, members.repeat(2, 1)) and len(members.unique(dim=0)) == 4
        per_example = net(inputs.expand(200, 3))[0]
        net.set_flag("layer_type", "bbb")
        per_pass = torch.cat([net(inputs)[0] for _ in range(60)])
        sampled = torch.cat([to_deterministic(net, sample=True)(inputs)[0] for _ in range(40)])
        with sampling(net, False):
            torch.testing.assert_close(net(inputs)[0], members[:1])
    for outputs, count in ((per_example, 200), (per_pass, 60), (sampled, 40)):
        distances, chosen = (outputs[:, None] - members).abs().sum(-1).min(1)
        assert (distances < 1e-5).all() and chosen.bincount(minlength=4).min() > count / 20


def test_the_matrix_of_a_rank1_posterior_decays_and_its_factors_do_not(pictures: Path, tmp_path: Path) -> None:
    net = nn.Sequential(BBBLinear(3, 2, posterior="rank1"))
    pulled, decaying, deviations = parameter_groups(net, 1e-3, 10.0, weight_decay=0.1)
    assert {id(p) for p in decaying["params"]} == {id(net[0].weight), id(net[0].bias)}
    assert {id(p) for p in pulled["params"]} == {id(factor.mean) for factor in factors(net[0])}
    assert {id(p) for p in deviations["params"]} == {id(factor.rho) for factor in factors(net[0])}
    point = {"family": "rank1", "components": 2, "factors": "point"}
    settings = bayesian_settings(
        pictures, tmp_path, posterior=point, layer_type="lrt", optimizer="sgd", lr_start=0.05, weight_decay=1e-4,
        n_epochs=1, valid_ens=2, test_ens=2,
    )  # fmt: skip
    assert run(settings)["parameters"] < 1.06 * sum(p.numel() for p in build("lenet", False, 2, 1).parameters())


def test_a_rank1_network_starts_as_the_network_that_it_is_made_of() -> None:
    plain, inputs = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), torch.randn(2, 1, 4, 4)
    net = to_bayesian(plain, posterior={"family": "rank1", "components": 3}, moped=0.2)
    with torch.no_grad(), sampling(net, False):
        torch.testing.assert_close(net(inputs), plain(inputs))
    single = to_bayesian(plain, posterior="rank1", moped=0.2)
    for _, weight, posterior in weight_posteriors(single):
        torch.testing.assert_close(posterior.std(weight), 0.2 * weight.abs(), rtol=1e-4, atol=1e-6)
    smaller = pruned(single, 0.5)
    gone = smaller[2].weight == 0  # type: ignore[index]
    assert gone.any() and (smaller[2].posterior["weight"].std(smaller[2].weight)[gone] == 0).all()  # type: ignore[index]


def test_what_the_rank1_posterior_does_not_support_is_one_line() -> None:
    for make in (
        lambda: BBBEmbedding(3, 2, posterior="rank1"),
        lambda: BBBLSTM(3, 2, posterior="rank1"),
        lambda: BBBConv2d(2, 2, 3, groups=2, posterior="rank1"),
    ):
        with pytest.raises(ValueError, match="is for linear layers and convolutions without groups, not for this BBB"):
            make()
    with pytest.raises(ValueError, match="the rank1 posterior has a prior around 1 of its own"):
        BBBLinear(2, 2, posterior="rank1", priors={"prior_mu": 0.5})
    with pytest.raises(ValueError, match="layer_type 'flipout' does not work with the rank1 posterior: give lrt"):
        BBBLinear(2, 2, posterior="rank1", layer_type="flipout")
    net = build("lenet", True, 5, 1, posterior={"family": "rank1", "factors": "cauchy"}).eval()
    with pytest.raises(UserError, match="moments cannot pass through the rank1 posterior of conv1.weight: predict by"):
        propagate(net, torch.zeros(1, 1, 32, 32))
    layers = [BBBLinear(2, 2, posterior={"family": "rank1", "components": count}) for count in (2, 3)]
    with pytest.raises(UserError, match="moments cannot pass through layers of 2 and 3 components together"):
        propagate(nn.Sequential(*layers), torch.zeros(1, 2))
    with pytest.raises(UserError, match="a posterior of several components cannot be fitted to draws"):
        Predictor(layers[0], method="moments", fit_to=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="the prior of the rank1 posterior cannot be centered"):
        to_bayesian(nn.Linear(2, 2), posterior="rank1", prior_at_means=True)
    with pytest.raises(ValueError, match="point factors have no standard deviation: leave out moped"):
        to_bayesian(nn.Linear(2, 2), posterior={"family": "rank1", "factors": "point"}, moped=0.1)


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        ("gausian", "unknown posterior 'gausian': did you mean 'gaussian'"),
        (3, "posterior must be the name of a family, or a dict of it and its options: 3"),
        ({}, "unknown posterior ''"),
        (
            {"family": "k_tied", "components": 2},
            "unknown option 'components': the k_tied posterior has the options rank",
        ),
        ({"family": "gaussian", "rank": 2}, "unknown option 'rank': the gaussian posterior has no options"),
        ({"family": "k_tied", "rank": 0}, "rank of the k_tied posterior: expected an integer ≥ 1, got 0"),
        ({"family": "rank1", "factors": "laplace"}, "factors of the rank1 posterior: expected one of gaussian, cauchy"),
        ({"family": "rank1", "components": 0}, "components of the rank1 posterior: expected an integer ≥ 1, got 0"),
        ({"family": "k_tied", "rank": 2.0}, "rank of the k_tied posterior: expected an integer ≥ 1, got 2.0"),
    ],
)
def test_a_posterior_that_does_not_exist_is_one_line(posterior: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BBBLinear(2, 2, posterior=posterior)
    with pytest.raises(UserError, match=message) as error:
        bayesian_settings(tmp_path, tmp_path, posterior=posterior)
    assert "\n" not in str(error.value)


def test_a_posterior_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alpha_shape is of the alpha posterior, and posterior is 'k_tied': give one"):
        BBBLinear(2, 2, posterior="k_tied", alpha_shape=(1, 1))
    with pytest.raises(UserError, match="alpha_shape is of the alpha posterior"):
        bayesian_settings(tmp_path, tmp_path, posterior="k_tied", alpha_shape=(1, 1))
    assert BBBLinear(2, 2, posterior="alpha").posterior["weight"].log_alpha.shape == (1, 1)
    assert Family.parse("gaussian", (2, 1)) == Family.parse({"family": "alpha", "alpha_shape": (2, 1)})


def test_a_sigma_in_proportion_to_the_weights_has_the_averages_that_factors_can_have() -> None:
    net = to_bayesian(nn.Linear(30, 20), posterior="k_tied", moped=0.1)
    std, target = net.posterior["weight"].std(net.weight), 0.1 * net.weight.abs()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(std.mean(0), target.mean(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(std.mean(1), target.mean(1), rtol=1e-3, atol=0)


def test_directions_keep_their_share_of_a_sigma_in_proportion_to_the_weights() -> None:
    layer = BBBLinear(6, 4, posterior="low_rank")
    net = to_bayesian(nn.Linear(6, 4), posterior="low_rank")
    for each in (layer, net):
        posterior = each.posterior["weight"]  # type: ignore[index]
        share = (posterior.factor / posterior.std(each.weight)).detach()  # type: ignore[arg-type]
        posterior.set_std_in_proportion(each.weight, 0.1)  # type: ignore[arg-type]
        std = posterior.std(each.weight).detach()  # type: ignore[arg-type]
        torch.testing.assert_close(std, 0.1 * each.weight.abs().clamp_min(1e-5), rtol=1e-5, atol=0)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(posterior.factor / std, share, rtol=1e-5, atol=0)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("rho", [-5.0, -9.0, -12.0])
def test_small_factors_have_in_float32_the_variances_of_float64(rho: float, components: int) -> None:
    family = {"family": "rank1", "components": components}
    layer = BBBLinear(8, 4, posterior=family, priors={"posterior_rho_initial": (rho, 0.0)}).requires_grad_(False)
    if components > 1:  # nearly equal, so that what is between them does not hide what is within
        for factor in factors(layer):
            factor.mean.copy_(1 + 1e-5 * torch.randn_like(factor.mean))
    wide, inputs = copy.deepcopy(layer).double(), 10 + torch.randn(3, 8)
    std, exact = (each.posterior["weight"].std(each.weight) for each in (layer, wide))
    torch.testing.assert_close(std.double(), exact, rtol=1e-2, atol=0)
    _, variance = layer.output_moments(inputs)
    torch.testing.assert_close(variance.double(), wide.output_moments(inputs.double())[1], rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_pruned_twice_as_it_is_once(name: str) -> None:
    net = nn.Sequential(BBBLinear(20, 10, posterior=name))
    once = pruned(net, 0.5)
    assert torch.equal(pruned(once, 0.5)[0].weight, once[0].weight)  # type: ignore[index]


def test_what_the_k_tied_posterior_has_silenced_stays_silent() -> None:
    """After a load of other tensors, on another device, and in half precision."""
    layer, mask = BBBLinear(3, 2, posterior="k_tied"), torch.tensor([[True, False, True], [False, False, True]])
    layer.posterior["weight"].silence(mask)
    layer.load_state_dict({"weight": torch.zeros(2, 3)}, strict=False)
    assert torch.equal(layer.posterior["weight"].silent, mask)  # type: ignore[arg-type]
    assert layer.half().kl().isfinite()
    elsewhere = BBBLinear(3, 2, posterior="k_tied", device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of copying into a tensor without values
        elsewhere.load_state_dict(layer.state_dict())
    assert elsewhere.posterior["weight"].silent.device.type == "meta"  # type: ignore[union-attr]


def test_the_prior_of_factors_comes_with_the_weights() -> None:
    fixed, learned = {"prior_sigma": 0.1}, {"learn_prior_sigma": True}
    for saved, own in ((fixed, learned), (learned, fixed), (fixed, {"prior_sigma": 0.3})):
        source, layer = (BBBLinear(3, 2, posterior="rank1", priors=priors) for priors in (saved, own))
        changes = saved.keys() != own.keys()
        with pytest.warns(UserWarning, match="the prior of the loaded weights") if changes else nullcontext():
            layer.load_state_dict(source.state_dict())
        assert torch.equal(layer.kl(), source.kl()) and layer.posterior["weight"].prior_follows == (
            "learn_prior_sigma" in saved
        )
        assert layer.state_dict().keys() == source.state_dict().keys()
    cauchy = BBBLinear(3, 2, posterior={"family": "rank1", "factors": "cauchy"})
    with pytest.raises(ValueError, match=r"Cauchy factors need a fixed prior_sigma"):
        cauchy.load_state_dict(BBBLinear(3, 2, posterior="rank1", priors=learned).state_dict())


@pytest.mark.parametrize("name", ["k_tied", "low_rank", "correlated"])
def test_the_kl_and_the_entropy_under_autocast_are_in_full_precision(name: str) -> None:
    if name == "correlated":
        layer: nn.Module = BBBConv2d(1, 3, 3, priors={"prior": CorrelatedGaussianPrior(torch.eye(9) + 0.9)})
    else:
        layer = BBBLinear(20, 10, posterior=name)
    kl, of_q = kl_divergence(layer), entropy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kl_divergence(layer), kl) and torch.equal(entropy(layer), of_q)


def test_the_kl_of_a_radial_posterior_in_double_precision_has_all_of_it() -> None:
    layer = BBBLinear(300, 300, posterior="radial", dtype=torch.float64)
    posterior = layer.posterior["weight"]
    assert isinstance(posterior, RadialPosterior) and posterior.dependence(layer.weight).dtype == torch.float64


def test_the_entropy_of_a_network_without_posteriors_is_on_its_device() -> None:
    net = nn.Linear(2, 2, device="meta")
    assert entropy(net).device == kl_divergence(net).device == net.weight.device
