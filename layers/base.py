"""What every Bayesian layer is: a deterministic operation, a posterior for each weight, an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layers.estimators import ESTIMATORS, Weights
from layers.kernels import spreads
from layers.posterior import AlphaPosterior, GaussianPosterior, Posterior, Priors


class BayesianLayer(nn.Module):
    """Mixed in before a `torch.nn` layer, makes its `weight` and `bias` posterior means.

    The layer below it in the method resolution order makes the parameters; `make_bayesian` then gives
    each a posterior, in `self.posterior`, under the parameter's own name. A concrete layer adds its
    `operation` and its `feature_axis` (see `layers.estimators`).

    Attributes:
        sampling: whether a forward pass samples the posterior (True, in training and evaluation
            alike) or uses its means. Its own switch, apart from `train()` and `eval()`.
        layer_type: the estimator, a key of `layers.estimators.ESTIMATORS`.
        name: what recordings call the layer, or None.
    """

    weight: Tensor
    bias: Tensor | None
    sampling: bool
    layer_type: str
    name: str | None

    def make_bayesian(
        self,
        alpha_shape: Sequence[int] | None,
        priors: Priors | Mapping[str, Any] | None,
        layer_type: str,
        name: str | None,
    ) -> None:
        """Give every parameter its posterior; called once, at the end of a layer's constructor.

        Raises:
            ValueError: an unknown `layer_type`, unfit `alpha_shape`, or bad `priors`.
        """
        if layer_type not in ESTIMATORS:
            raise ValueError(f"unknown layer_type {layer_type!r}: known are {sorted(ESTIMATORS)}")
        priors = Priors.of(priors)
        self.sampling = True
        self.layer_type = layer_type
        self.name = name
        self.posterior = nn.ModuleDict()
        for key, mean in list(self.named_parameters(recurse=False)):
            if priors.posterior_mu_initial is not None:
                nn.init.normal_(mean, *priors.posterior_mu_initial)
            if alpha_shape is None:
                self.posterior[key] = GaussianPosterior(mean, priors)
            elif key == "bias":
                # The bias has an α of its own for each of those that the weight has along its outputs.
                outputs_first = (1,) * (self.weight.dim() - len(alpha_shape)) + tuple(alpha_shape)
                self.posterior[key] = AlphaPosterior(mean, outputs_first[:1], priors)
            else:
                self.posterior[key] = AlphaPosterior(mean, alpha_shape, priors)

    @property
    def feature_axis(self) -> int:
        """The axis of the features, counted from the end."""
        raise NotImplementedError

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The deterministic layer as a function of its input and its weights."""
        raise NotImplementedError

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

    def forward(self, input: Tensor) -> Tensor:
        """A sample of the layer's output, or its value at the posterior means when `sampling` is off."""
        if not self.sampling:
            return self.operation(input, *self.means())
        return ESTIMATORS[self.layer_type](self, input)

    def kl(self) -> Tensor:
        """KL(q‖p) of the layer's weights in nats, a scalar."""
        return kl_divergence(self)

    def extra_repr(self) -> str:
        kind = "alpha" if isinstance(self.posterior["weight"], AlphaPosterior) else "gaussian"
        return f"{super().extra_repr()}, layer_type={self.layer_type}, posterior={kind}"


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
def spreads_kept(module: nn.Module) -> Iterator[None]:
    """Within it, the forward passes and the KL of `module` share one computation of every Gaussian σ."""
    posteriors = [posterior for _, _, posterior in weight_posteriors(module)]
    mine = [
        posterior for posterior in posteriors if isinstance(posterior, GaussianPosterior) and posterior.kept is None
    ]
    try:
        for posterior, std in zip(mine, spreads([posterior.rho for posterior in mine]), strict=True):
            posterior.kept = std
        yield
    finally:
        for posterior in mine:
            posterior.kept = None
