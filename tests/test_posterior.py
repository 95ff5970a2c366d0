"""Posteriors against torch.distributions and closed forms."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from conftest import ROOT
from torch import distributions

from layers import (
    AlphaPosterior,
    BBBConv2d,
    BBBLinear,
    GaussianPosterior,
    GaussianPrior,
    Prior,
    Priors,
    kl_divergence,
    scale_mixture,
    to_bayesian,
)
from layers.priors import as_distribution, as_plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_kl_is_that_of_torch_distributions(dtype: torch.dtype) -> None:
    mean = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    priors = Priors(prior_mu=0.3, prior_sigma=0.7, posterior_rho_initial=(-2.0, 1.5))
    posterior = GaussianPosterior(mean, priors)
    q = distributions.Normal(mean, posterior.std(mean))
    expected = distributions.kl_divergence(q, distributions.Normal(0.3, 0.7)).sum()
    kl = posterior.kl(mean)
    torch.testing.assert_close(kl, expected, rtol=2e-6, atol=0)
    for parameter in (mean, posterior.rho):
        torch.testing.assert_close(
            torch.autograd.grad(kl, parameter, retain_graph=True),
            torch.autograd.grad(expected, parameter, retain_graph=True),
            rtol=1e-5,
            atol=1e-6,
        )


def test_gaussian_kl_is_zero_at_the_prior_alone() -> None:
    mean = torch.full((4, 4), 0.1, dtype=torch.float64)
    rho = math.log(math.expm1(0.5))  # softplus(ρ) = 0.5
    posterior = GaussianPosterior(mean, Priors(prior_mu=0.1, prior_sigma=0.5, posterior_rho_initial=(rho, 0.0)))
    assert posterior.kl(mean).item() == pytest.approx(0, abs=1e-12)
    assert posterior.kl(mean + 0.01).item() > 0


@pytest.mark.parametrize("rho", [-100.0, -30.0, -20.0, 20.0, 100.0])
def test_gaussian_kl_and_its_gradient_are_right_where_softplus_leaves_float32(rho: float) -> None:
    mean = torch.zeros(3)
    posterior = GaussianPosterior(mean, Priors(prior_sigma=1.0, posterior_rho_initial=(rho, 0.0)))
    kl = posterior.kl(mean)
    kl.backward()
    sigma = math.log1p(math.exp(max(rho, -80))) if rho < 50 else rho  # σ has a floor where float32 would lose it
    assert kl.item() == pytest.approx(3 * (-math.log(sigma) + sigma**2 / 2 - 0.5), rel=1e-5)
    slope = (sigma - 1 / sigma) / (1 + math.exp(-max(rho, -80)))
    torch.testing.assert_close(posterior.rho.grad, torch.full((3,), slope), rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha_shape", [(1,), (1, 1), (6, 1), (6, 4)])
def test_alpha_kl_is_the_least_over_the_width_of_the_prior(alpha_shape: tuple[int, ...]) -> None:
    mean = torch.randn(6, 4, dtype=torch.float64)
    posterior = AlphaPosterior(mean, alpha_shape, Priors())
    torch.nn.init.normal_(posterior.log_alpha, -1, 2)
    std = posterior.std(mean)
    torch.testing.assert_close(std.square(), posterior.log_alpha.exp() * mean.square())
    width = (mean.square() + std.square()).sqrt()

    def kl_to(scale: float) -> torch.Tensor:
        return distributions.kl_divergence(
            distributions.Normal(mean, std), distributions.Normal(0, scale * width)
        ).sum()

    torch.testing.assert_close(posterior.kl(mean), kl_to(1.0))
    assert min(kl_to(0.99), kl_to(1.01)) > posterior.kl(mean)


@pytest.mark.parametrize("alpha_shape", [(2, 1), (6, 4, 1), (1, 6, 4), (0, 4)])
def test_an_alpha_shape_that_does_not_broadcast_is_refused(alpha_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not broadcast to the weight's shape \(6, 4\)"):
        AlphaPosterior(torch.randn(6, 4), alpha_shape, Priors())


@pytest.mark.parametrize(("alpha_shape", "bias_shape"), [((1, 1), (1,)), ((3, 1), (3,)), ((1, 3), (1,)), ((3,), (1,))])
def test_a_bias_shares_the_alpha_of_its_output_and_no_other(
    alpha_shape: tuple[int, ...], bias_shape: tuple[int, ...]
) -> None:
    layer = BBBLinear(3, 3, alpha_shape=alpha_shape)
    shapes = [tuple(layer.posterior[name].log_alpha.shape) for name in ("weight", "bias")]
    assert shapes == [alpha_shape, bias_shape]


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
def test_draws_have_the_mean_and_the_variance_of_the_posterior(alpha_shape: tuple[int, ...] | None) -> None:
    mean = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    priors = Priors(posterior_rho_initial=(-1.0, 0.5), posterior_log_alpha_initial=-1.0)
    posterior = GaussianPosterior(mean, priors) if alpha_shape is None else AlphaPosterior(mean, alpha_shape, priors)
    draws = torch.stack([posterior.sample(mean).detach() for _ in range(20_000)])
    std = posterior.std(mean).detach()
    assert ((draws.mean(0) - mean).abs() < 5 * std / math.sqrt(20_000)).all()
    torch.testing.assert_close(draws.var(0), posterior.variance(mean).detach(), rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"prior_sgma": 1.0}, "did you mean 'prior_sigma'"),
        ({"prior_sigma": 0.0}, "prior_sigma must be above 0, got 0.0"),
        ({"prior_mu": math.nan}, "prior_mu must be finite"),
        ({"prior_sigma": "wide"}, "prior_sigma must be a number, got 'wide'"),
        ({"posterior_rho_initial": -3}, "posterior_rho_initial must be a pair"),
        ({"posterior_rho_initial": None}, "posterior_rho_initial must be a pair"),
        ({"posterior_mu_initial": (0, -1)}, "posterior_mu_initial must have a std of at least 0"),
        ([0, 1], "priors must be a dict"),
        ({"learn_prior_sigma": 1}, "learn_prior_sigma must be True, False or 'channel', got 1"),
        ({"prior": 3}, "prior must be of torch.distributions, got 3"),
        ({"prior": {"family": "Lapalce"}}, "unknown family 'Lapalce'"),
        ({"prior": {"family": "Laplace", "loc": 0.0}}, "cannot be made: .*scale"),
        ({"prior": {"family": "Laplace", "loc": 0.0, "scale": -1.0}}, "cannot be made: "),
        ({"prior": {"family": "ScaleMixture", "pi": 0.5}}, "needs pi, sigma1 and sigma2"),
        ({"prior": scale_mixture(0.5, 1, 0.1), "prior_sigma": 0.5}, "prior replaces prior_mu"),
    ],
)
def test_bad_priors_are_refused_by_name(priors: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Priors.parse(priors)  # type: ignore[arg-type]


PRIORS = {
    "a Laplace, whose divergence is closed": distributions.Laplace(0.1, 0.7),
    "a Student t": distributions.StudentT(3.0, 0.0, 0.5),
    "a scale mixture": scale_mixture(0.3, 1.0, 0.1),
    "one a column": distributions.Normal(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])),
    "one of whole rows": distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_the_kl_to_any_prior_is_that_of_many_draws_and_of_its_own_mean(kind: str) -> None:
    prior = PRIORS[kind]
    mean = torch.randn(2, 3, dtype=torch.float64)
    posterior = GaussianPosterior(mean, Priors(prior=prior, posterior_rho_initial=(-1.0, 0.3)))
    q = distributions.Normal(mean, posterior.std(mean).detach())
    draws = q.sample((100_000,))
    ratios = q.log_prob(draws).sum((1, 2)) - prior.log_prob(draws.float()).double().flatten(1).sum(1)
    found = torch.stack([posterior.kl(mean).detach() for _ in range(4000)])
    noise = math.hypot(float(ratios.std()) / math.sqrt(100_000), float(found.std()) / math.sqrt(4000))
    assert found.mean().item() == pytest.approx(ratios.mean().item(), abs=5 * noise + 1e-5)
    assert (found.std() < 1e-9) == (kind in ("a Laplace, whose divergence is closed", "one a column"))


def test_the_gradient_of_an_estimated_kl_is_unbiased() -> None:
    """A Gaussian prior written as a mixture of itself has no closed form in torch, but it has one here."""
    mean = torch.randn(200, 100, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    estimated = GaussianPosterior(mean, Priors(prior=scale_mixture(0.5, 0.8, 0.8), posterior_rho_initial=(-1.0, 0.0)))
    closed = GaussianPosterior(mean, Priors(prior_sigma=0.8, posterior_rho_initial=(-1.0, 0.0)))
    for parameter, other in ((mean, mean), (estimated.rho, closed.rho)):
        found = torch.autograd.grad(estimated.kl(mean), parameter)[0]
        expected = torch.autograd.grad(closed.kl(mean), other)[0]
        error = (found - expected) / math.sqrt(found.numel())
        assert abs(error.sum().item()) < 5 * found.std().item()
        slope = (found * expected).sum() / expected.square().sum()
        assert slope.item() == pytest.approx(1, abs=0.05)


def test_a_scale_mixture_is_that_of_blundell() -> None:
    weights = torch.linspace(-2, 2, 9, dtype=torch.float64)
    one, two = (distributions.Normal(0.0, sigma).log_prob(weights).exp() for sigma in (1.5, 0.05))
    prior = as_distribution({"family": "ScaleMixture", "pi": 0.25, "sigma1": 1.5, "sigma2": 0.05}, like=weights)
    torch.testing.assert_close(prior.log_prob(weights).exp(), 0.25 * one + 0.75 * two)
    with pytest.raises(ValueError, match="expected 0 < pi < 1"):
        scale_mixture(1.0, 1.0, 0.1)


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_survives_its_description(kind: str) -> None:
    plain = as_plain(PRIORS[kind])
    assert as_plain(as_distribution(plain)) == plain
    weights = torch.randn(2, 3)
    torch.testing.assert_close(as_distribution(plain).log_prob(weights), PRIORS[kind].log_prob(weights))
    layer, other = BBBLinear(3, 2, False, priors={"prior": PRIORS[kind]}), BBBLinear(3, 2, False)
    other.load_state_dict(layer.state_dict())
    kls = []
    for each in (layer, other):
        torch.manual_seed(2)
        kls.append(each.kl())
    assert torch.equal(*kls)


def test_a_prior_that_does_not_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a prior of shape \(2,\) does not broadcast to weights \(4, 3\)"):
        BBBLinear(3, 4, priors={"prior": distributions.Normal(torch.zeros(2), 1.0)})


@pytest.mark.parametrize("center", [0.1, torch.linspace(-0.5, 0.5, 20, dtype=torch.float64)])
def test_a_learnt_prior_has_the_width_that_is_best(center: float | torch.Tensor) -> None:
    """Its KL is the least of all fixed widths, and has the slopes of the fixed prior of that width."""
    mean = (torch.randn(30, 20, dtype=torch.float64) * 0.3).requires_grad_()
    posterior = GaussianPosterior(mean, Priors(prior=GaussianPrior(center, None)))
    with torch.no_grad():
        width = (posterior.variance(mean) + (mean - center).square()).mean().sqrt()
    fixed = {factor: GaussianPrior(center, float(factor * width)) for factor in (1.0, 0.99, 1.01)}
    kls = {factor: prior.kl(mean, posterior.std(mean)) for factor, prior in fixed.items()}
    learned = posterior.kl(mean)
    torch.testing.assert_close(learned, kls[1.0])
    assert learned < min(kls[0.99], kls[1.01])
    slopes = [torch.autograd.grad(kl, [mean, posterior.rho]) for kl in (learned, kls[1.0])]
    torch.testing.assert_close(*slopes)
    std = posterior.std(mean)
    for one, other in zip(posterior.prior.pull(mean, std), fixed[1.0].pull(mean, std), strict=True):
        torch.testing.assert_close(one, torch.as_tensor(other, dtype=torch.float64))
    layer = BBBLinear(20, 30, dtype=torch.float64, priors={"learn_prior_sigma": True, "prior_mu": 0.1})
    torch.testing.assert_close(
        layer.posterior["weight"].kl(mean), GaussianPrior(0.1, None).kl(mean, layer.posterior["weight"].std(mean))
    )
    with pytest.raises(ValueError, match="the alpha posterior has a prior of its own"):
        AlphaPosterior(mean, (1, 1), Priors(learn_prior_sigma=True))


def test_a_prior_centered_at_the_weights_moves_and_is_saved() -> None:
    layer = BBBLinear(6, 4, priors={"prior_sigma": 0.5})
    with torch.no_grad():
        for key, posterior in layer.posterior.items():
            posterior.center_prior(getattr(layer, key))
    centered = layer.kl().item()
    std = torch.cat([layer.posterior[key].std(getattr(layer, key)).flatten() for key in ("weight", "bias")])
    expected = distributions.kl_divergence(distributions.Normal(0, std), distributions.Normal(0, 0.5)).sum()
    assert centered == pytest.approx(expected.item(), rel=1e-5)
    other = BBBLinear(6, 4)
    other.load_state_dict(layer.state_dict())
    assert other.kl().item() == centered and other.double().kl().dtype == torch.float64
    other.load_state_dict(BBBLinear(6, 4, priors={"prior_mu": 0.25}).state_dict())
    assert other.posterior["weight"].prior.mean == 0.25


def test_the_best_prior_per_output_channel_is_the_fixed_one_of_these_deviations_and_is_saved() -> None:
    layer = BBBConv2d(3, 5, 2, dtype=torch.float64, priors={"learn_prior_sigma": "channel", "prior_mu": 0.1})
    weight, bias = layer.posterior["weight"], layer.posterior["bias"]
    with torch.no_grad():
        layer.weight *= torch.arange(1.0, 6.0)[:, None, None, None]
        squares = weight.variance(layer.weight) + (layer.weight - 0.1).square()
    widths = squares.mean((1, 2, 3), keepdim=True).sqrt()
    fixed, std = GaussianPrior(0.1, widths), weight.std(layer.weight)
    kls = [prior.kl(layer.weight, std) for prior in (weight.prior, fixed)]
    torch.testing.assert_close(*kls)
    torch.testing.assert_close(*(torch.autograd.grad(kl, [layer.weight, weight.rho], retain_graph=True) for kl in kls))
    for one, other in zip(weight.prior.pull(layer.weight, std), fixed.pull(layer.weight, std), strict=True):
        torch.testing.assert_close(one, other)
    assert kls[0] < min(GaussianPrior(0.1, factor * widths).kl(layer.weight, std) for factor in (0.99, 1.01))
    assert kls[0] < GaussianPrior(0.1, None).kl(layer.weight, std) - 1
    torch.testing.assert_close(  # a channel has one number of the bias
        bias.kl(layer.bias), GaussianPrior(0.1, None).kl(layer.bias, bias.std(layer.bias))
    )
    other = BBBConv2d(3, 5, 2, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"per_channel=True\), replaces"):
        other.load_state_dict(layer.state_dict())
    assert other.kl() == layer.kl() and copy.deepcopy(other).kl() == layer.kl()


@pytest.mark.parametrize("ratio", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
def test_a_spread_in_proportion_to_the_weights(alpha_shape: tuple[int, ...] | None, ratio: float) -> None:
    mean = torch.randn(5, 4, dtype=torch.float64)
    posterior = (
        GaussianPosterior(mean, Priors()) if alpha_shape is None else AlphaPosterior(mean, alpha_shape, Priors())
    )
    posterior.set_std_in_proportion(mean, ratio)
    torch.testing.assert_close(posterior.std(mean), ratio * mean.abs())


@pytest.mark.parametrize(
    "prior", [distributions.Bernoulli(0.3), distributions.HalfNormal(1.0), distributions.Uniform(-1.0, 1.0),
              distributions.LogNormal(0.0, 1.0), {"family": "Poisson", "rate": 1.0}]
)  # fmt: skip
def test_a_prior_that_does_not_hold_every_real_number_is_refused(prior: object) -> None:
    with pytest.raises(ValueError, match="a weight may be any real number"):
        Priors(prior=prior)  # type: ignore[arg-type]


def test_a_centered_prior_stays_when_the_weights_of_a_plain_network_are_loaded() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(4, 3))
    net = to_bayesian(plain, prior_at_means=True)
    before = kl_divergence(net).item()
    net.load_state_dict(plain.state_dict(), strict=False)
    assert kl_divergence(net).item() == before


def test_in_half_precision_the_kl_of_a_tiny_spread_is_finite() -> None:
    layer = BBBLinear(4, 3, priors={"posterior_rho_initial": (-20.0, 0.0)}).half()
    layer.kl().backward()
    assert layer.kl().isfinite() and layer.posterior["weight"].rho.grad.isfinite().all()


SHAPED = {
    "a mean per row": {"mean": torch.randn(4, 1)},
    "a standard deviation per weight": {"std": torch.rand(4, 3) + 0.5},
    "both, and other numbers": {"mean": torch.randn(3), "std": torch.rand(4, 1) + 0.5},
}


@pytest.mark.parametrize("arguments", SHAPED.values(), ids=SHAPED)
def test_a_gaussian_prior_of_tensors_has_the_kl_of_torch_distributions(arguments: dict[str, torch.Tensor]) -> None:
    layer = BBBLinear(3, 4, bias=False, priors={"prior": GaussianPrior(**arguments)})
    posterior = layer.posterior["weight"]
    assert isinstance(posterior, GaussianPosterior)
    q = distributions.Normal(layer.weight, posterior.std(layer.weight))
    p = distributions.Normal(arguments.get("mean", 0.0), arguments.get("std", 1.0))
    expected = distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(layer.kl(), expected)
    slopes = [torch.autograd.grad(kl, [layer.weight, posterior.rho]) for kl in (layer.kl(), expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
    other = BBBLinear(3, 4, bias=False)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.kl(), layer.kl())
    assert other.double().kl().dtype == torch.float64


def test_states_hold_tensors_alone_unless_a_prior_has_a_family() -> None:
    for settings in ({}, {"learn_prior_sigma": True}, {"prior": GaussianPrior(torch.zeros(3), 0.5)}):
        state = BBBLinear(3, 3, priors=settings).state_dict()
        assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_prior_of_ones_own_is_used_by_every_weight_and_kept_when_weights_are_loaded() -> None:
    """Written as a sum over its own formula, the Gaussian prior again."""

    class Unit(Prior):
        def kl(self, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
            return (0.5 * (std.square() + mean.square() - 1) - std.log()).sum()

    layer, plain = BBBLinear(5, 3, priors={"prior": Unit()}), BBBLinear(5, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert isinstance(layer.posterior["bias"].prior, GaussianPrior)  # the file's prior comes with its weights
    again = BBBLinear(5, 3, priors={"prior": Unit()})
    again.load_state_dict({name: value for name, value in plain.state_dict().items() if "prior" not in name})
    assert isinstance(again.posterior["bias"].prior, Unit)
    torch.testing.assert_close(again.kl(), plain.kl())


def test_priors_of_one_kind_are_summed_together_and_others_apart() -> None:
    layers = [BBBLinear(4, 3, priors={"prior_sigma": sigma}) for sigma in (0.5, 0.5, 2.0)]
    layers.append(BBBLinear(4, 3, priors={"prior": distributions.Laplace(0.0, 1.0)}))
    layers.append(BBBLinear(4, 3, priors={"learn_prior_sigma": True}))
    net = torch.nn.ModuleList(layers)
    torch.testing.assert_close(kl_divergence(net), torch.stack([layer.kl() for layer in layers]).sum())


def test_states_of_before_priors_were_modules_load_with_the_kl_that_they_had() -> None:
    entries = torch.load(ROOT / "tests" / "data" / "layers_version_1.pt", weights_only=True)
    assert set(entries) == {"gaussian", "learnt", "laplace", "mixture", "alpha", "centered"}
    for kind, entry in entries.items():
        learned = {"priors": {"learn_prior_sigma": kind == "learnt"}}
        layer = BBBLinear(3, 2, **({"alpha_shape": (1, 1)} if kind == "alpha" else learned))
        before = dict(entry["state"])
        layer.load_state_dict(entry["state"])
        assert entry["state"].keys() == before.keys()  # the caller's dict is left as it was
        torch.manual_seed(0)
        kl = layer.kl().item()
        if kind == "learnt":  # by gradient then, so not quite the best deviations
            assert 0.9 * entry["kl"] < kl < entry["kl"]
        else:
            assert kl == pytest.approx(entry["kl"], rel=1e-6)
        again = BBBLinear(3, 2, **({"alpha_shape": (1, 1)} if kind == "alpha" else learned))
        again.load_state_dict(layer.state_dict())
        torch.manual_seed(0)
        assert again.kl().item() == pytest.approx(kl, rel=1e-6)


def test_a_prior_that_loading_replaces_is_reported_and_one_that_stays_is_not() -> None:
    narrow, wide = BBBLinear(3, 2, priors={"prior_sigma": 0.1}), BBBLinear(3, 2)
    laplace = BBBLinear(3, 2, priors={"prior": distributions.Laplace(0.0, 1.0)})
    with pytest.warns(
        UserWarning, match=r"GaussianPrior\(mean=0.0, std=0.1\), replaces GaussianPrior\(mean=0.0, std=1.0"
    ):
        wide.load_state_dict(narrow.state_dict())
    with pytest.warns(UserWarning, match="family=Laplace, loc=0.0, scale=1.0.*replaces GaussianPrior"):
        wide.load_state_dict(laplace.state_dict())
    centered = BBBLinear(3, 2, priors={"prior_sigma": 0.1})
    with torch.no_grad():
        for key, posterior in centered.posterior.items():
            posterior.center_prior(getattr(centered, key))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow.load_state_dict(narrow.state_dict())
        narrow.load_state_dict(centered.state_dict())  # as a run that starts at trained weights is read back
