"""What prediction draws networks from: a network of Bayesian layers, or one with a distribution around its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from layers import to_deterministic, weight_posteriors
from support import UserError

Noise = Callable[[Tensor], Tensor]  # ε ~ N(0, 1) of the shape of a tensor


class WeightDistribution(nn.Module):
    """A deterministic network and a distribution of some of its weights, for approximations made after training.

    Prediction takes it as it takes a network of Bayesian layers: `posterior_predictive`, `Predictor` and a
    `Classifier` with it as `net` draw from it. Moments, and an export with uncertainty, refuse it. A subclass defines
    `draw`.

    Args:
        net: the network; its weights are those of a pass without draws.
        names: dotted names of the weights that are drawn.
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.net = net
        self.names = tuple(names)

    def draw(self, noise: Noise) -> Iterable[Tensor]:
        """One draw of all the weights of `names`, in their order."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The output of `net`."""
        return self.net(input)


def refuse_distribution(net: nn.Module) -> None:
    """Refuse a `WeightDistribution` where the posteriors of layers are read, of which it has none.

    Raises:
        UserError: it is one.
    """
    if isinstance(net, WeightDistribution):
        raise UserError(
            f"moments and an export with uncertainty expect Bayesian layers, got a {type(net).__name__}, which draws "
            f"weights in its own way: predict by draws"
        )


def random_weights(net: nn.Module) -> dict[str, Tensor]:
    """The weights that prediction draws, by their dotted names in a draw."""
    if isinstance(net, WeightDistribution):
        return {name: net.net.get_parameter(name) for name in net.names}
    return {name: mean for name, mean, _ in weight_posteriors(net)}


def plain_network(net: nn.Module) -> nn.Module:
    """A deterministic copy in eval mode, whose `random_weights` are at their means."""
    return (copy.deepcopy(net.net) if isinstance(net, WeightDistribution) else to_deterministic(net)).eval()


def sampler(net: nn.Module) -> Callable[[Noise], Iterable[Tensor]]:
    """A function that draws all of the `random_weights`, in their order, from a source of noise."""
    if isinstance(net, WeightDistribution):
        return net.draw
    samplers = [posterior.sampler(mean.detach()) for _, mean, posterior in weight_posteriors(net)]
    return lambda noise: (sample(noise) for sample in samplers)
