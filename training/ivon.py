"""IVON: natural-gradient steps for the posterior, from the gradients of the negative log-likelihood alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from layers import GaussianPosterior, Prior, weight_posteriors
from layers.kernels import BLOCK, RHO_FLOOR, at_least_float32, rho_to_std, std_to_rho
from training.optimizers import closure_loss


class IVON(torch.optim.Optimizer):
    """The variational online Newton method of Shen et al. 2024 (algorithm 1), under any estimator.

    The loss is the mean negative log-likelihood alone: the KL, weighted by β, is the optimizer's part. So leave it out
    of the backward pass:

        >>> optimizer = IVON(net, lr=0.1, train_size=len(data))
        >>> for inputs, targets in loader:
        ...     outputs, kl = net(inputs)
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(outputs, targets).backward()
        ...     optimizer.step()

    With λ = N/(βT), the precision s = h + δ of a weight is the curvature h of the expected NLL plus that of the prior,
    δ = β/(Nσ_p²), and 1/σ² = λs where the objective has its optimum. By Price's theorem (∂nll/∂σ)/σ is an unbiased
    estimate ĥ of h, and ∂nll/∂σ = ρ.grad / sigmoid(ρ), since σ = softplus(ρ). A step takes

        r = (1 − β₂) ((ĥ + δ)/s − 1),  s ← s (1 + r + r²/2)         which is above 0 for every r
        μ ← μ − lr · (s₀/s) · (ḡ/(1 − β₁ᵗ) + δ(μ − μ_p))            ḡ the running mean of μ.grad

    The first is the paper's h ← β₂h + (1−β₂)ĥ + ½(1−β₂)²(h−ĥ)²/(h+δ), written for s. The posterior holds s, as
    1/(λσ²), so σ starts where it is, and is written back into ρ. s₀ is that of a tensor's mean variance at its first
    step, so that `lr` is of the size of SGD's without dampening, times 1/(1 − β₁). A parameter without a posterior
    takes such steps with s = s₀ and weight decay: SGD with momentum.

    Both steps are linear in the gradients until then, so gradients may be accumulated, averaged over posterior samples
    or processes, and scaled for mixed precision; a parameter without a gradient stays.

    Args:
        net: a network whose posteriors are all Gaussian, with Gaussian priors.
        lr: the learning rate of the means and of parameters without a posterior.
        train_size: N, the number of training examples.
        beta: β, the weight of the KL.
        temperature: T, of the entropy alone (see `training.objective`).
        momentum: β₁.
        curvature_decay: β₂. Over fewer than 1/(1 − β₂) steps σ hardly moves.
        weight_decay: of parameters without a posterior.

    Raises:
        ValueError: another posterior or prior, or a number out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        train_size: int,
        beta: float = 1.0,
        temperature: float = 1.0,
        momentum: float = 0.9,
        curvature_decay: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        if not (train_size > 0 and beta > 0 and temperature > 0):
            raise ValueError("IVON needs a train_size, a beta and a temperature above 0")
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1 and 0 <= curvature_decay < 1):
            raise ValueError("IVON needs lr and weight_decay ≥ 0, and momentum and curvature_decay from 0 to below 1")
        self._posteriors: dict[Tensor, GaussianPosterior] = {}
        for name, mean, posterior in weight_posteriors(net):
            if type(posterior) is not GaussianPosterior:  # a family that extends it has another σ
                raise ValueError(
                    f"IVON needs a free σ, which {name} does not have, an {type(posterior).__name__}: "
                    f"take the gaussian posterior, without alpha_shape, or another optimizer"
                )
            if type(posterior.prior).pull is Prior.pull:
                raise ValueError(f"IVON needs a Gaussian prior; {name} has {posterior.prior}: take another optimizer")
            self._posteriors[mean] = posterior
        deviations = [posterior.rho for posterior in self._posteriors.values()]
        known = {id(p) for p in (*self._posteriors, *deviations)}
        members = [[*self._posteriors], deviations, [p for p in net.parameters() if id(p) not in known]]
        options = {
            "lr": lr,
            "train_size": train_size,
            "beta": beta,
            "temperature": temperature,
            "momentum": momentum,
            "curvature_decay": curvature_decay,
            "weight_decay": weight_decay,
        }
        super().__init__([{"params": params} for params in members if params], options)
        self._deviations = {id(rho) for rho in deviations}

    def state_names(self, parameter: Tensor) -> set[str]:
        """What the optimizer keeps of a parameter, once it has taken a step."""
        if id(parameter) in self._deviations:
            return set()
        return {"step", "momentum", "start"} if parameter in self._posteriors else {"step", "momentum"}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; `closure`, if any, first computes the loss and the gradients."""
        loss = closure_loss(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._posteriors:
                    self._step_posterior(parameter, self._posteriors[parameter], group)
                elif id(parameter) not in self._deviations and parameter.grad is not None:
                    gradient = self._mean_gradient(parameter, group)
                    parameter.sub_(gradient.add_(parameter, alpha=group["weight_decay"]), alpha=group["lr"])
        return loss

    def _step_posterior(self, mean: Tensor, posterior: GaussianPosterior, group: dict[str, Any]) -> None:
        """Move σ, and then μ by the new σ."""
        rho, state = posterior.rho, self.state[mean]
        std = rho_to_std(at_least_float32(rho))
        if mean.grad is not None and "start" not in state:
            state["start"] = std.square().mean().float().reciprocal()
        pull, precision = posterior.prior.pull(mean, std)
        size = group["train_size"] / group["beta"]
        if rho.grad is not None:
            share = (1 - group["curvature_decay"]) / group["temperature"]
            of_prior = torch.as_tensor(precision * share, device=std.device)
            for sigma, r, slope, prior in _blocks(std, rho, rho.grad, of_prior):
                # t = 1 + r = β₂ + (1 − β₂)(ĥ + δ)/s, and s takes the factor 1 + r + r²/2 = (1 + t²)/2
                t = torch.div(slope, r.sigmoid()).mul_(share * size).addcmul_(sigma, prior).mul_(sigma)
                t.add_(group["curvature_decay"])
                sigma.mul_(t.square_().add_(1).mul_(0.5).rsqrt_())
                r.copy_(std_to_rho(sigma).clamp_min_(RHO_FLOOR))
        if mean.grad is not None:
            gradient = self._mean_gradient(mean, group) + pull / size
            mean.sub_(std.square().mul_(state["start"]).mul_(gradient), alpha=group["lr"])

    def _mean_gradient(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """ḡ/(1 − β₁ᵗ): the running mean of the gradient, of the present one included."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return state["momentum"] / (1 - group["momentum"] ** float(state["step"]))


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of them small enough for a core's cache, in which one operation after the other can work."""
    if all(tensor.is_contiguous() and tensor.shape in (tensors[0].shape, ()) for tensor in tensors):
        return zip(*(t.view(-1).split(BLOCK) if t.dim() else repeat(t) for t in tensors), strict=False)
    return (tensors,)
