"""SWAG: a Gaussian fitted to the weights that SGD passes through (Maddox et al. 2019)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from inference.distributions import Noise, WeightDistribution
from support import UserError

VARIANCE_FLOOR = 1e-30


class Swag(WeightDistribution):
    """N(θ̄, ½ diag(s²) + ½ D Dᵀ/(k − 1)) over all weights θ of a network (Maddox et al. 2019, algorithm 1).

    θ̄ and s² are the mean and the variance of the weights at all calls of `collect`, and the columns of D are the last k
    of them minus the mean at that time. It starts as a copy of the network, to which it then needs no tie:

        swag = Swag(net)
        for epoch in range(…):  # of SGD at a constant, rather high rate, once the network is trained
            …
            swag.collect(net)
        predictive = replace(classifier, net=swag).predict(images)

    Args:
        net: a deterministic network. Batch norm keeps statistics that would belong to each draw, so it has none.
        rank: the largest k.

    Raises:
        ValueError: the network has batch norm with running statistics, or `rank` is below 2.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    count: Tensor

    def __init__(self, net: nn.Module, rank: int = 20) -> None:
        if rank < 2:
            raise ValueError(f"rank must be at least 2, got {rank}")
        for name, module in net.named_modules():
            if getattr(module, "running_mean", None) is not None:
                raise ValueError(f"SWAG draws have no statistics for the batch norm {name}: take a network without")
        super().__init__(copy.deepcopy(net), (name for name, _ in net.named_parameters()))
        self.requires_grad_(False)
        self.rank = rank
        weights = nn.utils.parameters_to_vector(self.net.parameters())
        for name in ("mean", "variance"):  # in double precision: a variance may be 1e-10 of a squared mean
            self.register_buffer(name, torch.zeros_like(weights, dtype=torch.float64))
        self.register_buffer("deviations", weights.new_zeros(rank, len(weights)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=weights.device))

    @torch.no_grad()
    def collect(self, net: nn.Module) -> None:
        """Take the present weights of a network of the same kind into the mean and the covariance."""
        weights = nn.utils.parameters_to_vector(net.parameters()).double()
        before = weights - self.mean
        self.count += 1
        self.mean += before / self.count
        self.variance += (before * (weights - self.mean) - self.variance) / self.count  # Welford's update
        nn.utils.vector_to_parameters(self.mean.to(self.deviations), self.net.parameters())
        self.deviations[(self.count - 1) % self.rank] = weights - self.mean

    def draw(self, noise: Noise) -> Iterable[Tensor]:
        """See `WeightDistribution.draw`.

        Raises:
            UserError: fewer than two networks have been collected.
        """
        columns = min(int(self.count), self.rank)
        if columns < 2:
            raise UserError(f"SWAG has collected {columns} networks: call collect(net) at least twice")
        mean = nn.utils.parameters_to_vector(self.net.parameters())
        variance = self.variance.clamp_min(VARIANCE_FLOOR).to(mean)
        directions = self.deviations[:columns]
        shared = noise(mean.new_empty(columns)) @ directions / (2 * (columns - 1)) ** 0.5
        draw = mean + (variance / 2).sqrt() * noise(mean) + shared
        parameters = [self.net.get_parameter(name) for name in self.names]
        return [
            block.view_as(parameter)
            for block, parameter in zip(draw.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
