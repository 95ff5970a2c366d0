"""What every Bayesian layer is made of: a deterministic operation, a posterior per weight tensor, an estimator."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from .estimators import ESTIMATORS, Weights, random_signs
from .kernels import squares
from .parameters import SampledParameter
from .passes import SWITCHES, ForwardPass, current_pass, set_current_pass
from .posteriors import Family, GaussianPosterior, Posterior
from .priors import Priors


class BayesianLayer(nn.Module):
    """A mixin that goes before a `torch.nn` layer and turns its parameters into posterior means.

    The `torch.nn` class, next in the method resolution order, creates the parameters; each then has a posterior in
    `self.posterior`, under the parameter's own name. A concrete layer adds its `operation` and its
    `feature_axis` (see `layers.estimators`). Every argument of the `torch.nn` layer keeps its meaning.

    Args:
        posterior: the family of the posterior, a key of `layers.FAMILIES`, or a dict of it and of the family's options
            such as {"family": "k_tied", "rank": 3}. The default is the Gaussian posterior N(μ, softplus(ρ)²).
        alpha_shape: shape of log α, which broadcasts to the weight, for the alpha posterior N(μ, αμ²).
        priors: a dict with any of the fields of `layers.Priors`.
        layer_type: the estimator, 'lrt', 'bbb' or 'flipout' (see `layers.estimators`); None for the first that
            works with the layer and the posterior.
        name: what recordings call the layer.

    Attributes:
        sampling: whether a forward pass samples the posterior or uses its means. This switch is independent of
            `train()` and `eval()`.
        estimators: the estimators that the layer supports.
        outputs_axis: the axis of the weight that runs over the layer's outputs.

    Raises:
        ValueError: an argument that the `torch.nn` layer refuses, or a `posterior`, `alpha_shape`, `priors` or
            `layer_type` that does not fit the layer.
    """

    weight: Tensor
    bias: Any  # Tensor | None; in a recurrent layer a bool
    posterior: nn.ModuleDict
    sampling: bool
    name: str | None
    estimators: ClassVar[tuple[str, ...]] = tuple(ESTIMATORS)
    outputs_axis: ClassVar[int] = 0

    def __init__(
        self,
        *arguments: Any,
        posterior: str | Mapping[str, Any] = "gaussian",
        alpha_shape: Sequence[int] | None = None,
        priors: Priors | Mapping[str, Any] | None = None,
        layer_type: str | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.make_bayesian(Family.parse(posterior, alpha_shape), priors, layer_type, name)

    def __init_subclass__(cls) -> None:
        """Register the class as the counterpart of its `torch.nn` class, and merge both signatures for `help`."""
        super().__init_subclass__()
        plain_class = _plain_class(cls)
        if plain_class is None:
            return
        COUNTERPARTS.setdefault(plain_class, cls)
        plain, bayesian, own = (inspect.signature(f) for f in (plain_class, BayesianLayer.__init__, cls.__init__))
        added = {p.name: p for s in (bayesian, own) for p in s.parameters.values() if p.kind is p.KEYWORD_ONLY}
        parameters = sorted([*plain.parameters.values(), *added.values()], key=lambda p: p.kind)
        cls.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]

    def make_bayesian(
        self,
        family: Family,
        priors: Priors | Mapping[str, Any] | None,
        layer_type: str | None,
        name: str | None,
    ) -> None:
        """Give every parameter its posterior: the last step of constructing a layer, with the class's arguments."""
        if obstacle := self.obstacle(self):
            raise ValueError(obstacle)
        priors = Priors.parse(priors)
        self.sampling = True
        self.name = name
        self.posterior = nn.ModuleDict()
        for key, mean in list(self.named_parameters(recurse=False)):
            if priors.posterior_mu_initial is not None:
                nn.init.normal_(mean, *priors.posterior_mu_initial)
            posterior = family.make(self, mean, priors)
            if posterior is not None:
                self.posterior[key] = posterior if mean.requires_grad else posterior.requires_grad_(False)
        if layer_type is None:
            layer_type = next(name for name in self.estimators if name in self._family().estimators)
        self.layer_type = layer_type
        self.register_forward_pre_hook(_be_called)

    def _family(self) -> type[Posterior]:
        """The class of the posterior of the layer's first weight."""
        posterior = next(iter(self.posterior.values()))
        assert isinstance(posterior, Posterior)
        return type(posterior)

    @property
    def layer_type(self) -> str:
        """The estimator: 'lrt', 'bbb' or 'flipout'."""
        return self._layer_type

    @layer_type.setter
    def layer_type(self, name: str) -> None:
        if name not in self.estimators:
            raise ValueError(f"unknown layer_type {name!r}: expected one of {sorted(self.estimators)}")
        family = self._family()
        if name not in family.estimators:
            raise ValueError(
                f"layer_type {name!r} does not work with the {family.family} posterior: give "
                f"{' or '.join(family.estimators)}"
            )
        self._layer_type = name

    @staticmethod
    def obstacle(layer: Any) -> str | None:
        """Why this layer of the `torch.nn` class cannot become, or be, Bayesian; None if it can."""
        hooks = layer._forward_pre_hooks.values()
        if is_parametrized(layer) or any(type(hook).__module__.startswith("torch.nn.utils") for hook in hooks):
            return "weight_norm, spectral_norm or prune recomputes its weights before every pass: remove that first"
        return None

    @property
    def feature_axis(self) -> int:
        """The axis of the features, counted from the end."""
        raise NotImplementedError

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
        """The deterministic layer as a function of its input, its weights and `forward`'s further arguments."""
        raise NotImplementedError

    def squared(self, input: Tensor) -> Tensor:
        """The input of `operation` for adding up variances: x², element by element."""
        return squares(input)

    def flipped(self, input: Tensor) -> Tensor:
        """x ⊙ s with one random sign per example and feature."""
        return input * self._signs(input, "input")

    def signs(self, output: Tensor) -> Tensor:
        """One random sign per example and feature of the output; within a forward pass, drawn once."""
        return self._signs(output, "output")

    def _signs(self, like: Tensor, side: str) -> Tensor:
        shared = current_pass()
        if shared is None:
            return random_signs(like, self.feature_axis)
        return shared.draw((id(self.weight), side, like.shape), random_signs, like, self.feature_axis)

    def means(self) -> Weights:
        """Posterior means of weight and bias (None where there is no bias)."""
        return self._from_posteriors("location")

    def variances(self) -> Weights:
        """Posterior variances of weight and bias, without those along directions that all weights share."""
        return self._from_posteriors("independent_variance")

    def perturbations(self) -> Weights:
        """One draw of weight and bias, minus the means."""
        return self._from_posteriors("perturbation")

    def samples(self) -> Weights:
        """One draw of weight and bias."""
        return self._from_posteriors("sample")

    def output_moments(self, input: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of every output under the posterior, whatever the estimator."""
        posterior = next(iter(self.posterior.values()))
        assert isinstance(posterior, Posterior)
        return posterior.output_moments(self, input, *more)

    def _from_posteriors(self, method: str) -> Weights:
        return self._from_posterior("weight", method), self._from_posterior("bias", method)

    def _from_posterior(self, key: str, method: str) -> Any:
        """What a method of a posterior gives for its mean; a draw, within a forward pass, once. None if no weight."""
        mean = getattr(self, key)
        if mean is None:
            return None
        if key not in self.posterior:  # a point
            return mean if method in ("location", "sample") else None
        make = getattr(self.posterior[key], method)
        shared = current_pass()
        if shared is None or method not in ("perturbation", "sample"):
            return make(mean)
        return shared.draw((id(mean), method), make, mean)

    def forward(self, input: Tensor, *more: Any) -> Tensor:
        """A sample of the layer's output, or its value at the posterior means when `sampling` is off."""
        if not self.samples_now:
            return self.operation(input, *self.means(), *more)
        shared = current_pass()
        if shared is not None and self.layer_type == "lrt":
            shared.note_output_noise(self.weight, self.name or type(self).__name__)
        return self._family().estimators[self.layer_type](self, input, *more)

    @property
    def samples_now(self) -> bool:
        """Whether a forward pass in this thread samples: `sampling`, unless within the function of that name."""
        switches = SWITCHES.get()
        return self.sampling if switches is None else switches.get(self, self.sampling)

    def plain(self) -> nn.Module:
        """The layer that this one extends, of `torch.nn` or a user's own; it shares this layer's parameters.

        Raises:
            ValueError: a subclass changes what the layer computes, which the plain layer would not know.
        """
        plain_class = _plain_class(type(self))
        assert plain_class is not None
        own = [base for base in type(self).__mro__ if issubclass(base, BayesianLayer) and issubclass(base, plain_class)]
        for name in ("forward", "operation"):
            if getattr(type(self), name) is not getattr(own[-1], name):
                raise ValueError(
                    f"{type(self).__name__} changes {name} of {own[-1].__name__}, and a prediction is by "
                    f"{plain_class.__name__}, which knows nothing of it: make the change in a subclass of "
                    f"{plain_class.__name__}, and inherit from BayesianLayer and that"
                )
        plain: nn.Module = object.__new__(plain_class)
        plain.__dict__.update(self.__dict__)
        plain._parameters = dict(self._parameters)
        plain._modules = {name: child for name, child in self._modules.items() if name != "posterior"}
        for name in ("sampling", "_layer_type", "name"):
            del plain.__dict__[name]
        return plain

    def kl(self) -> Tensor:
        """KL(q‖p) of the layer's weights in nats: a scalar."""
        return kl_divergence(self)

    def extra_repr(self) -> str:
        """The arguments of the `torch.nn` layer, the estimator and the posterior, as `print` shows them."""
        text = f"{super().extra_repr()}, layer_type={self.layer_type}, posterior={self._family().family}"
        return text.removeprefix(", ")


COUNTERPARTS: dict[type[nn.Module], type[BayesianLayer]] = {}  # the Bayesian layer per torch.nn class that has one


def _plain_class(layer: type[nn.Module]) -> type[nn.Module] | None:
    """The class that a Bayesian layer extends: of `torch.nn`, or a user's own."""
    plain = (base for base in layer.__mro__ if issubclass(base, nn.Module) and not issubclass(base, BayesianLayer))
    return next((base for base in plain if base is not nn.Module), None)


def bayesian_counterpart(layer: nn.Module, bayesian_class: type[BayesianLayer], *arguments: Any) -> BayesianLayer:
    """A layer of `bayesian_class` with the parameters of `layer`, and the arguments of `make_bayesian`."""
    counterpart = object.__new__(bayesian_class)
    counterpart.__dict__.update(layer.__dict__)
    counterpart._modules = dict(layer._modules)
    counterpart.make_bayesian(*arguments)
    return counterpart


class DrawnLayer(BayesianLayer):
    """A layer that is more than one linear operation: a forward pass draws all of its weights once.

    It then runs the forward pass of the `torch.nn` layer, with all of its arguments, at that draw.
    """

    estimators = ("bbb",)

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """The output of the `torch.nn` layer at one draw of the weights, or at their means when `sampling` is off."""
        return self._drawn(self.samples_now).forward(*arguments, **settings)  # not a call: hooks belong to this layer

    def _drawn(self, sampling: bool) -> nn.Module:
        plain = self.plain()
        if sampling:
            draws: dict[str, Any] = {key: self._from_posterior(key, "sample") for key in self._parameters}
            plain._parameters = draws
        for name, child in plain._modules.items():
            if isinstance(child, BayesianLayer):
                plain._modules[name] = DrawnLayer._drawn(child, sampling)  # type: ignore[arg-type]
        return plain


def weight_posteriors(module: nn.Module) -> Iterator[tuple[str, Tensor, Posterior]]:
    """Iterate over the Bayesian weights anywhere in `module`: (dotted name, mean, posterior), each tensor once.

    A weight has one posterior: where two layers share a weight and not its posterior, the second takes the first's.

    Raises:
        ValueError: a Bayesian layer's weights are recomputed before every pass, by weight_norm or the like.
    """
    posteriors: dict[int, Posterior] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, ParametrizationList) and isinstance(layer[0], SampledParameter):
            assert isinstance(layer.original, Tensor)
            if id(layer.original) in posteriors:
                layer[0].posterior = posteriors[id(layer.original)]
                continue
            posteriors[id(layer.original)] = layer[0].posterior
            yield path.replace("parametrizations.", ""), layer.original, layer[0].posterior
        if isinstance(layer, BayesianLayer):
            if obstacle := BayesianLayer.obstacle(layer):
                raise ValueError(f"{path or type(layer).__name__}: {obstacle}")
            for key, posterior in list(layer.posterior.items()):
                mean = getattr(layer, key)
                if id(mean) in posteriors:
                    layer.posterior[key] = posteriors[id(mean)]
                    continue
                assert isinstance(posterior, Posterior)
                posteriors[id(mean)] = posterior
                yield (f"{path}.{key}" if path else key), mean, posterior


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q‖p) in nats, summed over every Bayesian weight anywhere in `module`; a shared weight counts once.

    A scalar, 0 for a module without Bayesian layers. It needs no forward pass.
    """
    families: dict[type[Posterior], list[tuple[Posterior, Tensor]]] = {}
    for _, mean, posterior in weight_posteriors(module):
        families.setdefault(type(posterior), []).append((posterior, mean))
    if not families:
        return _zero(module)
    with _full_precision(mean):
        return torch.stack([family.joint_kl(*zip(*pairs, strict=True)) for family, pairs in families.items()]).sum()


def entropy(module: nn.Module) -> Tensor:
    """H(q) in nats, summed over every Bayesian weight anywhere in `module`; a shared weight counts once.

    A scalar; 0 for a module without Bayesian layers. It is a differential entropy, below 0 where σ < 0.24.
    """
    posteriors = [(posterior, mean) for _, mean, posterior in weight_posteriors(module)]
    if not posteriors:
        return _zero(module)
    with _full_precision(posteriors[0][1]):
        return torch.stack([posterior.entropy(mean) for posterior, mean in posteriors]).sum()


def _full_precision(weight: Tensor) -> AbstractContextManager[Any]:
    """Within it, autocast leaves the products of matrices of some families and priors in their own precision."""
    device = weight.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_cast else nullcontext()


def _zero(module: nn.Module) -> Tensor:
    parameter = next(module.parameters(), None)
    return torch.zeros(()) if parameter is None else torch.zeros((), device=parameter.device)


def parameter_groups(
    net: nn.Module, lr: float, lr_spread_factor: float = 10.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The parameters of a network for an optimizer: ρ and log α learn faster than the means, and do not decay.

    ρ starts at about −5 and has units to go, where a mean moves by hundredths: at one learning rate for both, σ stays
    near its start, and with it the network's uncertainty. A mean decays only if its prior does not pull on it already:
    the automatic-relevance prior of the alpha posterior does not.

    Example:
        >>> optimizer = torch.optim.Adam(parameter_groups(net, lr=1e-3))

    Args:
        net: any network with Bayesian layers, or without.
        lr: the learning rate of the posterior means and of all other parameters.
        lr_spread_factor: the learning rate of ρ and log α, as a multiple of `lr`.
        weight_decay: of the parameters that no prior pulls on: those without a posterior, and the means of alpha
            posteriors.

    Returns:
        One group of the means and the others, in two where only the latter decay; then, where the network has
        Bayesian layers, one of ρ and log α.
    """
    posteriors = [module for module in net.modules() if isinstance(module, Posterior)]
    deviations = {id(p) for posterior in posteriors for p in posterior.deviations()}
    pulled = set()
    if weight_decay:
        pulled = {id(mean) for _, mean, posterior in weight_posteriors(net) if posterior.pulls_on_mean}
        pulled |= {id(p) for posterior in posteriors for p in posterior.parameters()} - deviations
    parameters = list(net.parameters())
    members = (
        ([p for p in parameters if id(p) in pulled], lr, 0.0),
        ([p for p in parameters if id(p) not in pulled | deviations], lr, weight_decay),
        ([p for p in parameters if id(p) in deviations], lr * lr_spread_factor, 0.0),
    )
    return [{"params": params, "lr": rate, "weight_decay": decay} for params, rate, decay in members if params]


@contextmanager
def sampling(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Within it, in this thread, every Bayesian layer of `module` samples (`enabled`) or uses its posterior means."""
    layers = [layer for layer in module.modules() if isinstance(layer, (BayesianLayer, SampledParameter))]
    token = SWITCHES.set({**(SWITCHES.get() or {}), **dict.fromkeys(layers, enabled)})
    try:
        yield
    finally:
        SWITCHES.reset(token)


def _be_called(layer: nn.Module, _: object) -> None:
    """Nothing: in evaluation, `nn.TransformerEncoderLayer` calls its children if one has a hook.

    Otherwise it passes their weights, which would be the posterior means, to a fused kernel.
    """


def share_draws(module: nn.Module) -> None:
    """Give every weight of `module` one value per forward pass, however often the pass uses it.

    A layer that is called twice, or two layers that share a weight, then use the same draw under 'bbb' and 'flipout',
    as they do in prediction. Local reparameterization draws outputs, not weights: there every use stays independent,
    and a warning says so. `ModuleWrapper` and `to_bayesian` do this by themselves.
    """
    if _enter_pass in module._forward_pre_hooks.values():
        return
    module.register_forward_pre_hook(_enter_pass)
    module.register_forward_hook(_leave_pass, always_call=True)


def _enter_pass(module: nn.Module, _: object) -> None:
    outer, compiling = current_pass(), torch.compiler.is_compiling()
    if outer is not None and outer.network is module and not compiling:
        outer = None  # an interrupt ended that pass, after which torch calls no hook
    if outer is not None and (compiling or any(each is module for each in outer.network.modules())):
        outer.depth += 1
    else:  # the compiler finds by itself which deviations can be shared
        posteriors = () if compiling else (p for _, _, p in weight_posteriors(module))
        set_current_pass(ForwardPass(GaussianPosterior.joint_stds(posteriors), module, outer))


def _leave_pass(module: nn.Module, _: object, output: object) -> None:
    current = current_pass()
    if current is not None:
        current.depth -= 1
        if not current.depth:
            set_current_pass(current.outer)
