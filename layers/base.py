"""What every Bayesian layer is: a deterministic operation, a posterior for each weight, an estimator."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from layers.estimators import ESTIMATORS, Weights, signs
from layers.kernels import rhos_to_stds, squares
from layers.posterior import AlphaPosterior, GaussianPosterior, Posterior
from layers.priors import Priors


class BayesianLayer(nn.Module):
    """Mixed in before a `torch.nn` layer, makes its parameters posterior means.

    The layer below it in the method resolution order makes the parameters; each then has a posterior, in
    `self.posterior`, under the parameter's own name. A concrete layer adds its `operation` and its
    `feature_axis` (see `layers.estimators`); every argument of the `torch.nn` layer means what it means there.

    Args:
        alpha_shape: shape of log α for the alpha posterior N(μ, αμ²), broadcast against the weight; None for
            the Gaussian posterior N(μ, softplus(ρ)²).
        priors: a dict with any of the fields of `layers.priors.Priors`.
        layer_type: the estimator, 'lrt', 'bbb' or 'flipout' (see `layers.estimators`); None for the first of
            the layer's `estimators`.
        name: what recordings call the layer.

    Attributes:
        sampling: whether a forward pass samples the posterior (True, in training and evaluation
            alike) or uses its means. Its own switch, apart from `train()` and `eval()`.
        estimators: those that the layer works with.
        outputs_axis: the axis of a weight that runs along the layer's outputs.

    Raises:
        ValueError: what the `torch.nn` layer refuses, and an `alpha_shape`, `priors` or `layer_type` that
            does not fit.
    """

    weight: Tensor
    bias: Any  # Tensor | None, but of a recurrent layer whether it has any
    posterior: nn.ModuleDict
    sampling: bool
    layer_type: str
    name: str | None
    estimators: ClassVar[tuple[str, ...]] = tuple(ESTIMATORS)
    outputs_axis: ClassVar[int] = 0

    def __init__(
        self,
        *arguments: Any,
        alpha_shape: Sequence[int] | None = None,
        priors: Priors | Mapping[str, Any] | None = None,
        layer_type: str | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.make_bayesian(alpha_shape, priors, layer_type, name)

    def __init_subclass__(cls) -> None:
        """Know the layer as the Bayesian form of its `torch.nn` kind, and show the arguments of both in `help`."""
        super().__init_subclass__()
        kind = _plain_kind(cls)
        if kind is None:
            return
        BAYESIAN_FORMS.setdefault(kind, cls)
        original, added = (inspect.signature(function) for function in (kind, BayesianLayer.__init__))
        own = inspect.signature(cls.__init__).parameters.values()
        given = {p.name: p for p in [*added.parameters.values(), *own] if p.kind is p.KEYWORD_ONLY}
        parameters = sorted([*original.parameters.values(), *given.values()], key=lambda p: p.kind)
        cls.__signature__ = original.replace(parameters=parameters)  # type: ignore[attr-defined]

    def make_bayesian(
        self,
        alpha_shape: Sequence[int] | None,
        priors: Priors | Mapping[str, Any] | None,
        layer_type: str | None,
        name: str | None,
    ) -> None:
        """Give every parameter its posterior; called once, at the end of a layer's making."""
        if refusal := self.refusal(self):
            raise ValueError(refusal)
        layer_type = self.estimators[0] if layer_type is None else layer_type
        if layer_type not in self.estimators:
            raise ValueError(f"unknown layer_type {layer_type!r}: known are {sorted(self.estimators)}")
        priors = Priors.parse(priors)
        self.sampling = True
        self.layer_type = layer_type
        self.name = name
        self.posterior = nn.ModuleDict()
        for key, mean in list(self.named_parameters(recurse=False)):
            if priors.posterior_mu_initial is not None:
                nn.init.normal_(mean, *priors.posterior_mu_initial)
            if alpha_shape is None:
                self.posterior[key] = GaussianPosterior(mean, priors)
            else:
                self.posterior[key] = AlphaPosterior(mean, self._alpha_shape(mean, tuple(alpha_shape)), priors)

    @staticmethod
    def refusal(layer: Any) -> str | None:
        """Why a layer of the `torch.nn` kind has no Bayesian form, if it has none."""
        if any(type(hook).__module__.startswith("torch.nn.utils") for hook in layer._forward_pre_hooks.values()):
            return "its weights are made anew before every pass by weight_norm, spectral_norm or prune: remove that"
        return None

    def _alpha_shape(self, mean: Tensor, of_weight: tuple[int, ...]) -> tuple[int, ...]:
        """A bias has an α of its own for each of those that the weight has along its outputs."""
        if mean.dim() > 1 or len(of_weight) < 2:
            return of_weight
        weight_dim = max(parameter.dim() for parameter in self.parameters(recurse=False))
        along = of_weight[self.outputs_axis] if len(of_weight) == weight_dim else 1
        return (along,) if along in (1, len(mean)) else (1,)

    @property
    def feature_axis(self) -> int:
        """The axis of the features, counted from the end."""
        raise NotImplementedError

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
        """The deterministic layer as a function of its input, its weights and what else `forward` is given."""
        raise NotImplementedError

    def squared(self, input: Tensor, unit: float = 1.0) -> Tensor:
        """What `operation` takes to add up variances: (x / unit)², element by element."""
        return squares(input, unit)

    def flipped(self, input: Tensor) -> Tensor:
        """X ⊙ s with random signs s, one an example and feature."""
        return input * signs(input, self.feature_axis)

    def means(self) -> Weights:
        """Posterior means of weight and bias (None where there is no bias)."""
        return self.weight, self.bias

    def variances(self) -> Weights:
        """Posterior variances of weight and bias."""
        return self._of_each("variance")

    def perturbations(self) -> Weights:
        """One draw of weight and bias, less the means."""
        return self._of_each("perturbation")

    def samples(self) -> Weights:
        """One draw of weight and bias."""
        return self._of_each("sample")

    def _of_each(self, method: str) -> Weights:
        weight = getattr(self.posterior["weight"], method)(self.weight)
        bias = None if self.bias is None else getattr(self.posterior["bias"], method)(self.bias)
        return weight, bias

    def forward(self, input: Tensor, *more: Any) -> Tensor:
        """A sample of the layer's output, or its value at the posterior means when `sampling` is off."""
        if not self.sampling:
            return self.operation(input, *self.means(), *more)
        return ESTIMATORS[self.layer_type](self, input, *more)

    def plain(self) -> nn.Module:
        """The `torch.nn` layer that this one extends, with the same parameters: those of the posterior means."""
        kind = _plain_kind(type(self))
        assert kind is not None
        plain: nn.Module = object.__new__(kind)
        plain.__dict__.update(self.__dict__)
        plain._parameters = dict(self._parameters)
        plain._modules = {name: child for name, child in self._modules.items() if name != "posterior"}
        for name in ("sampling", "layer_type", "name"):
            del plain.__dict__[name]
        return plain

    def kl(self) -> Tensor:
        """KL(q‖p) of the layer's weights in nats, a scalar."""
        return kl_divergence(self)

    def extra_repr(self) -> str:
        kind = "alpha" if isinstance(next(iter(self.posterior.values())), AlphaPosterior) else "gaussian"
        return f"{super().extra_repr()}, layer_type={self.layer_type}, posterior={kind}".removeprefix(", ")


BAYESIAN_FORMS: dict[type[nn.Module], type[BayesianLayer]] = {}  # of each kind of torch.nn layer that has one


def _plain_kind(layer: type[nn.Module]) -> type[nn.Module] | None:
    """The `torch.nn` class that a Bayesian layer extends."""
    kinds = (base for base in layer.__mro__ if base.__module__.startswith("torch.nn.modules") and base is not nn.Module)
    return next(kinds, None)


def bayesian_form(layer: nn.Module, kind: type[BayesianLayer], *arguments: Any) -> BayesianLayer:
    """The layer as one of `kind`, with the same parameters and the further arguments of `kind.make_bayesian`."""
    form = object.__new__(kind)
    form.__dict__.update(layer.__dict__)
    form._modules = dict(layer._modules)
    form.make_bayesian(*arguments)
    return form


class DrawnLayer(BayesianLayer):
    """A layer that is more than one linear operation: a forward pass draws all of its weights once.

    The pass is then that of the `torch.nn` layer, with all of its arguments, at that draw.
    """

    estimators = ("bbb",)

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """What the `torch.nn` layer gives, at one draw of the weights, or at their means when `sampling` is off."""
        return self._drawn(self.sampling).forward(*arguments, **settings)  # the hooks are those of this call

    def _drawn(self, sampling: bool) -> nn.Module:
        plain = self.plain()
        if sampling:
            draws: dict[str, Any] = {
                key: None if mean is None else cast(Posterior, self.posterior[key]).sample(mean)
                for key, mean in self._parameters.items()
            }
            plain._parameters = draws
        for name, child in plain._modules.items():
            if isinstance(child, BayesianLayer):
                plain._modules[name] = DrawnLayer._drawn(child, sampling)  # type: ignore[arg-type]
        return plain


def weight_posteriors(module: nn.Module) -> Iterator[tuple[str, Tensor, Posterior]]:
    """The Bayesian weights anywhere in `module`: (dotted name, mean, posterior), each tensor once."""
    seen: list[Tensor] = []
    for path, layer in module.named_modules():
        if isinstance(layer, BayesianLayer):
            for key, posterior in layer.posterior.items():
                mean = getattr(layer, key)
                if not any(mean is other for other in seen):
                    seen.append(mean)
                    assert isinstance(posterior, Posterior)
                    yield (f"{path}.{key}" if path else key), mean, posterior


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q‖p) of every Bayesian weight anywhere in `module`, in nats; each counted once, however shared.

    A scalar, 0 for a module with no Bayesian layer. It needs no forward pass.
    """
    kinds: dict[type[Posterior], list[tuple[Posterior, Tensor]]] = {}
    for _, mean, posterior in weight_posteriors(module):
        kinds.setdefault(type(posterior), []).append((posterior, mean))
    terms = [kind.joint_kl(*zip(*pairs, strict=True)) for kind, pairs in kinds.items()]
    if terms:
        return torch.stack(terms).sum()
    anchor = next(module.parameters(), None)
    return torch.zeros(()) if anchor is None else torch.zeros((), device=anchor.device)


@contextmanager
def sampling(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Within it every Bayesian layer of `module` samples (`enabled`) or uses its posterior means.

    On leaving, each layer has the switch that it had before.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, BayesianLayer)]
    before = [layer.sampling for layer in layers]
    try:
        for layer in layers:
            layer.sampling = enabled
        yield
    finally:
        for layer, switch in zip(layers, before, strict=True):
            layer.sampling = switch


@contextmanager
def cached_stds(module: nn.Module) -> Iterator[None]:
    """Within it, the forward passes and the KL of `module` share one computation of every Gaussian σ."""
    posteriors = [posterior for _, _, posterior in weight_posteriors(module)]
    mine = [
        posterior
        for posterior in posteriors
        if isinstance(posterior, GaussianPosterior) and posterior._cached_std is None
    ]
    try:
        for posterior, std in zip(mine, rhos_to_stds([posterior.rho for posterior in mine]), strict=True):
            posterior._cached_std = std
        yield
    finally:
        for posterior in mine:
            posterior._cached_std = None
