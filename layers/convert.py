"""From plain `torch.nn` layers to Bayesian ones, anywhere in a network, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from layers.base import BAYESIAN_FORMS, BayesianLayer, bayesian_form, weight_posteriors
from layers.posterior import GaussianPosterior, Posterior
from layers.priors import Priors

Network = TypeVar("Network", bound=nn.Module)
Chosen = str | Sequence[str] | Callable[[str, nn.Module], bool]


def to_bayesian(
    module: Network,
    layers: Chosen = "all",
    *,
    layer_type: str = "lrt",
    alpha_shape: Sequence[int] | None = None,
    priors: Priors | Mapping[str, Any] | None = None,
    moped: float | None = None,
    prior_at_means: bool = False,
    inplace: bool = False,
) -> Network:
    """`module` with Bayesian layers in the place of plain ones; its weights are the posterior means, its forward stays.

    `kl_divergence(module)` is the KL of it all; `ModuleWrapper(module)` is a network whose call returns
    (output, kl). Dotted names of parameters stay, modules and tensors that were shared stay shared, and a shared
    tensor has one posterior. What has no Bayesian form (batch norm, say) stays as it is:
    `deterministic_layers(module)` lists it.

    Args:
        layers: which layers become Bayesian: 'all', 'last' (the last in the order of their making), a pattern of
            dotted names such as 'layer4.*', several of them, or a function of (dotted name, layer).
        layer_type: the estimator; a layer that only works with 'bbb' (recurrent, attention) has that one.
        alpha_shape, priors: as for `BBBLinear`.
        moped: δ sets every σ to δ|w|, and 'posterior_rho_initial' has no effect (Krishnan et al. 2020).
        prior_at_means: centre the Gaussian prior of every weight at its value now, also as in MOPED.
        inplace: change `module` itself rather than a copy.

    Raises:
        ValueError: no layer is chosen, or settings that a layer refuses.
    """
    priors = Priors.parse(priors)
    if priors.posterior_mu_initial is not None:
        raise ValueError("posterior_mu_initial has no place here: the weights of the module are the posterior means")
    net = module if inplace else copy.deepcopy(module)
    forms: dict[nn.Module, nn.Module] = {}
    for name, layer in _chosen(net, layers).items():
        kind = BAYESIAN_FORMS[type(layer)]
        estimator = layer_type if layer_type in kind.estimators or layer_type not in BayesianLayer.estimators else "bbb"
        forms[layer] = bayesian_form(layer, kind, alpha_shape, priors, estimator, name or None)
    net = _replaced(net, forms)
    _share_posteriors(net)
    start_at_means(net, moped, prior_at_means)
    for parent in net.modules():
        # In evaluation it would hand its children's weights to a fused kernel, past their forward, and pack
        # what is not padding into a nested tensor, which few operations take.
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False
    return net


def start_at_means(module: nn.Module, moped: float | None = None, prior_at_means: bool = False) -> None:
    """MOPED (Krishnan et al. 2020), of every Bayesian weight anywhere in `module`.

    Args:
        moped: δ sets every σ to δ|μ|; None leaves it.
        prior_at_means: centre the Gaussian prior of every weight at μ.

    Raises:
        ValueError: δ is not above 0, or a prior cannot be centred.
    """
    if moped is not None and not 0 < moped < float("inf"):
        raise ValueError(f"moped must be above 0 and finite, got {moped}")
    for _, mean, posterior in weight_posteriors(module):
        if moped is not None:
            posterior.set_std_in_proportion(mean, moped)
        if prior_at_means:
            if not isinstance(posterior, GaussianPosterior):
                raise ValueError("only the Gaussian posterior has a prior that can be centred: leave out alpha_shape")
            posterior.center_prior(mean)


def to_deterministic(module: Network, sample: bool = False) -> Network:
    """A copy of `module` in which every Bayesian layer is the `torch.nn` layer it extends.

    Parameters keep their dotted names, and modules and tensors that were shared stay shared. The KL of
    the copy is 0.

    Args:
        sample: one draw of all weights rather than their posterior means; for many see
            `inference.prediction.posterior_draws`.
    """
    twin = copy.deepcopy(module)
    if sample:
        with torch.no_grad():
            for _, mean, posterior in weight_posteriors(twin):
                mean.copy_(posterior.sample(mean))
    return _replaced(twin, {layer: layer.plain() for layer in twin.modules() if isinstance(layer, BayesianLayer)})


def deterministic_layers(module: nn.Module) -> list[str]:
    """Dotted names of the layers of `module` that have weights of their own and no posterior over them."""
    posteriors = {id(posterior) for _, _, posterior in weight_posteriors(module)}
    return [
        f"{name} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if not isinstance(layer, BayesianLayer)
        and id(layer) not in posteriors
        and not isinstance(layer, Posterior)
        and any(True for _ in layer.parameters(recurse=False))
    ]


def _chosen(net: nn.Module, layers: Chosen) -> dict[str, nn.Module]:
    """The layers that are to become Bayesian, by dotted name; none of them is within another."""
    able: dict[str, nn.Module] = {}
    for name, layer in net.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in able)
        kind = BAYESIAN_FORMS.get(type(layer))
        if kind and not inner and not kind.refusal(layer):
            able[name] = layer
    if callable(layers):
        found = {name: layer for name, layer in able.items() if layers(name, layer)}
    elif layers == "all":
        found = able
    elif layers == "last":
        found = dict(list(able.items())[-1:])
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        found = {name: layer for name, layer in able.items() if any(fnmatchcase(name, p) for p in patterns)}
    if not found:
        raise ValueError(f"layers={layers!r} chooses none of {', '.join(able) or 'no layer with a Bayesian form'}")
    return found


def _replaced(net: Network, forms: Mapping[nn.Module, nn.Module]) -> Network:
    for parent in [*net.modules(), *forms.values()]:
        for name, child in parent._modules.items():
            if child is not None and child in forms:
                parent._modules[name] = forms[child]
    return forms.get(net, net)  # type: ignore[return-value]


def _share_posteriors(net: nn.Module) -> None:
    """One posterior a tensor, also where several layers use it."""
    known: list[tuple[Tensor, nn.Module]] = []
    for layer in [layer for layer in net.modules() if isinstance(layer, BayesianLayer)]:
        for key, posterior in list(layer.posterior.items()):
            mean = getattr(layer, key)
            first = next((other for tensor, other in known if tensor is mean), None)
            if first is None:
                known.append((mean, posterior))
            else:
                layer.posterior[key] = first
