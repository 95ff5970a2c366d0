"""From the moments of the logits to a prediction: their covariance, and fixed draws that have both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layers import to_deterministic, weight_posteriors
from moments.functions import TINY, std_of
from moments.pair import Link, MissingRuleError, Moments, variance_of
from moments.rules import AFFINE
from moments.weights import (
    FactorMoments,
    WatchedWeights,
    WeightMoments,
    component_count,
    known_weights,
    weight_moments,
)

JITTER = 1e-5  # of a covariance, relative to the variances
DRAWS = 48  # of the logits, with no pass of the network behind them; 64 are no nearer to many draws, 32 less near


def logit_covariance(logits: Moments) -> Tensor:
    """The covariance [n, classes, classes] of logits [n, classes], by a backward pass over the links of the head.

    Of maps [n, classes, height, width] it is [n, height, width, classes, classes], with the variances alone.

    With J = dlogits / dx, each link x → y adds J diag(noise) Jᵀ and J shared sharedᵀ Jᵀ, and the input of the head
    J diag(v) Jᵀ.
    """
    link, variance = logits.link, variance_of(logits)
    if link is None:
        return variance.movedim(1, -1).diag_embed()
    jacobian = torch.eye(variance.shape[1], dtype=variance.dtype, device=variance.device).expand(
        variance.shape[0], -1, -1
    )
    covariance = torch.zeros_like(jacobian)
    while link is not None:
        covariance = covariance + (jacobian * link.noise[:, None]) @ jacobian.mT
        if link.shared is not None:
            moved = jacobian @ link.shared.mT
            covariance = covariance + moved @ moved.mT
        jacobian = jacobian * link.weight[:, None] if link.is_diagonal else jacobian @ link.weight
        if link.std is not None:
            by_channel = (jacobian * link.std[:, None]).unflatten(-1, (link.channels, -1)).sum(-1)
            covariance = covariance + by_channel @ by_channel.mT
        link = link.before
    return covariance


def link_draws(link: Link, count: int = DRAWS) -> Tensor:
    """Fixed antithetic draws [count, n, classes] of what the logits differ from their mean by, forward over the links.

    A draw of x becomes J x + √noise ⊙ ε + sharedᵀ ε' after the link x → y: normal, with the covariance of
    `logit_covariance`, in count / 2 rows where that has one row per class.

    Args:
        link: that of the logits.
        count: even.
    """
    links = [link]
    while links[0].before is not None:
        links.insert(0, links[0].before)
    std, channels = links[0].std, links[0].channels
    sizes: list[Any] = [] if std is None else [channels]
    for each in links:
        sizes += [each.noise.shape[1]] if each.shared is None else [each.noise.shape[1], each.shared.shape[1]]
    normals = iter(torch.tensor(_normals(count // 2, sum(sizes))).to(link.noise).split(sizes, 1))
    draws = None if std is None else (std.unflatten(1, (channels, -1)) * next(normals)[:, None, :, None]).flatten(2)
    for each in links:
        added = std_of(each.noise) * next(normals)[:, None]
        if each.shared is not None:
            added = added + torch.einsum("tk,nko->tno", next(normals), each.shared)
        if draws is None:
            draws = added
        else:
            draws = added + (draws * each.weight if each.is_diagonal else draws @ each.weight.mT)
    assert draws is not None
    return torch.cat([draws, -draws])


@cache
def _normals(count: int, size: int) -> np.ndarray:
    """[count, size] draws of a standard normal, always the same, of variance 1 in every column."""
    normals = np.random.default_rng(0).standard_normal((count, size))
    return normals / np.sqrt((normals**2).mean(0))


def propagate(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [n, classes] and covariance [n, classes, classes] of a network's logits under its posterior, in one pass.

    Differentiable in the weights and in the images.

    Args:
        net: a Bayesian or deterministic network in evaluation mode.
        images: [n, channels, height, width], normalized as in training.

    Raises:
        MissingRuleError: the network has an operation without a rule; the message names it.
    """
    return Propagation(net)(images)


class Propagation(nn.Module):
    """`propagate` for one network again and again: the variances of its weights are computed once.

    Args:
        net: a Bayesian or deterministic network in evaluation mode, whose weights stay as they are and where they are.
            One of half precision is computed in float32.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._is_half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in net.parameters())
        net = copy.deepcopy(net).float() if self._is_half else net
        # Plain layers, whose forward computes neither deviations nor a KL, with the weights of `net` itself.
        self.twin = to_deterministic(net)
        self.twin.load_state_dict(net.state_dict(keep_vars=True), strict=False, assign=True)
        names = {id(parameter): name for name, parameter, _ in weight_posteriors(net)}
        self._components = [
            {names[identity]: moments for identity, moments in weight_moments(net, component).items()}
            for component in range(component_count(net))
        ]
        self._map: Tensor | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n, classes] and covariance [n, classes, classes] of the logits of images, as `propagate`."""
        components = self._logits(images)
        means, covariances = [each.mean_value for each in components], [self._covariance(each) for each in components]
        if len(components) == 1:
            return means[0], covariances[0]
        mean = torch.stack(means).mean(0)
        apart = [_outer(each - mean) for each in means]
        return mean, (torch.stack(covariances) + torch.stack(apart)).mean(0)

    def draws(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draws [draws, n, classes] of the logits, as many of each component.

        They are `logit_draws` of the covariance by `noise`, and `link_draws` of more than 24 classes.
        """
        return torch.cat([self._draws(logits, noise) for logits in self._logits(images)])

    def _draws(self, logits: Moments, noise: Tensor | None) -> Tensor:
        if logits.link is None or logits.mean_value.shape[1] <= DRAWS // 2:
            return logit_draws(logits.mean_value, self._covariance(logits), noise)
        draws = link_draws(logits.link)
        return logits.mean_value + (draws if self._map is None else draws @ self._map.mT)

    def _covariance(self, logits: Moments) -> Tensor:
        covariance = logit_covariance(logits)
        return covariance if self._map is None else self._map @ covariance @ self._map.mT

    def _logits(self, images: Tensor) -> list[Moments]:
        """The logits under each component of the posterior, in one pass per component."""
        images = images.float() if self._is_half else images
        return [self._propagate(images, weights) for weights in self._components]

    def _propagate(self, images: Tensor, weights: Mapping[str, WeightMoments | FactorMoments]) -> Moments:
        known = known_weights({id(self.twin.get_parameter(name)): moments for name, moments in weights.items()})
        with known, WatchedWeights(AFFINE):
            output = self.twin(Moments(images))
        logits = output[0] if isinstance(output, tuple) else output
        if not isinstance(logits, Moments):
            raise MissingRuleError("moments were lost on the way: the network's output is an ordinary tensor")
        return logits.settled()

    @torch.no_grad()
    def fit(self, images: Tensor, draws: Tensor) -> None:
        """Correct the covariance by one linear map of the logits, so that on average over images it is that of draws.

        With T and S the average covariances by draws and by moments, each image weighed by 1 / tr S, the map is
        A = S^-½ (S^½ T S^½)^½ S^-½, which takes N(0, S) to N(0, T) at the least distance, and S becomes A S A.

        Args:
            images: [n, channels, height, width], of the kind to be predicted.
            draws: [samples, n, classes], the logits of draws of the network for these images.

        Raises:
            MissingRuleError: the posterior is a mixture, whose components do not have the covariance of its draws; or
                the logits are maps, of which only variances are known.
        """
        if draws.dim() != 3:
            raise MissingRuleError("maps cannot be fitted to draws: leave out the fit")
        if len(self._components) > 1:
            raise MissingRuleError("a posterior of several components cannot be fitted to draws: leave out the fit")
        self._map = None
        covariances = self(images)[1].double()
        weights = 1 / covariances.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(TINY)
        centered = draws.double() - draws.double().mean(0)
        of_moments = torch.einsum("n,nij->ij", weights, covariances)
        of_draws = torch.einsum("n,tni,tnj->ij", weights, centered, centered) / (len(draws) - 1)
        root, inverse = _power(of_moments, 0.5), _power(of_moments, -0.5)
        self._map = (inverse @ _power(root @ of_draws @ root, 0.5) @ inverse).to(images)


def _outer(vectors: Tensor) -> Tensor:
    """x xᵀ of vectors [n, classes], or of maps [n, classes, height, width] at every pixel."""
    vectors = vectors.movedim(1, -1)
    return vectors[..., :, None] * vectors[..., None, :]


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive semidefinite matrix; its least eigenvalues count as 1e-9 of the largest."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-9 * values[-1] + TINY) ** exponent) @ vectors.mT


@cache
@torch.inference_mode(False)  # which is inherited by what a later pass may differentiate
def fixed_normals(count: int, size: int) -> Tensor:
    """[count, size] antithetic draws of a standard normal, always the same, of variance 1 in every column.

    Where they are enough, the columns are uncorrelated as well, so that the variance is 1 in every direction.
    """
    half = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count // 2, dtype=torch.float64)
    half = torch.special.ndtri(half.clamp(1e-6, 1 - 1e-6))
    half = half / half.square().mean(0).sqrt()
    if len(half) > size:
        root = torch.linalg.cholesky(half.mT @ half / len(half))
        half = torch.linalg.solve_triangular(root, half.mT, upper=False).mT
    return torch.cat([half, -half]).float()


def logit_draws(mean: Tensor, covariance: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draws [draws, n, classes] of normal logits.

    Args:
        mean: [n, classes], or maps [n, classes, height, width].
        covariance: [n, classes, classes], or for maps [n, height, width, classes, classes].
        noise: [draws, classes], of a standard normal; None for 48 `fixed_normals`.
    """
    if mean.dim() > 2:
        pixels = mean.movedim(1, -1)
        draws = logit_draws(pixels.flatten(0, -2), covariance.flatten(0, -3), noise)
        return draws.unflatten(1, pixels.shape[:-1]).movedim(-1, 2)
    noise = fixed_normals(DRAWS, mean.shape[-1]) if noise is None else noise
    noise = noise.to(mean)
    return mean + torch.einsum("nij,tj->tni", cholesky(covariance), noise)


def cholesky(covariance: Tensor) -> Tensor:
    """The lower root L of covariances [n, k, k], L Lᵀ = S + 1e-5 diag(S), also of semidefinite ones.

    The jitter keeps rounding from making a pivot negative.
    """
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    covariance = covariance + (JITTER * variances + TINY).diag_embed()
    if torch.compiler.is_exporting():
        return _unrolled_cholesky(covariance)
    return torch.linalg.cholesky_ex(covariance).L


def _unrolled_cholesky(covariance: Tensor) -> Tensor:
    """The same column by column, in operations that every runtime has."""
    indices = torch.arange(covariance.shape[-1], device=covariance.device)
    columns: list[Tensor] = []
    for index in range(covariance.shape[-1]):
        column = covariance[:, :, index]
        if columns:
            root = torch.stack(columns, -1)
            column = column - (root * root[:, index : index + 1]).sum(-1)
        column = column / column[:, index : index + 1].clamp_min(TINY).sqrt()
        columns.append(torch.where(indices >= index, column, 0.0))
    return torch.stack(columns, -1)
