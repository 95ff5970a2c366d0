"""What independent normals cost: mean-field variational inference beside Hamiltonian Monte Carlo, the exact posterior.

A network with one hidden layer learns a curve from points on both sides of a gap. It is small enough for HMC to draw
from its true posterior, with the same prior and the same known noise. Writes a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from inference import posterior_draws
from layers import BBBLinear, ModuleWrapper, parameter_groups
from support import BLUE, ORANGE, OneLineParser, argument, figure_style, report_user_errors, save_figure, whole

HIDDEN, NOISE = 50, 0.1
SIGMAS = 2.0, 0.3  # of the prior, of both layers
PLACES = {
    "at the data": ((-1.0, -0.5), (0.5, 1.0)),
    "in the gap": ((-0.3, 0.3),),
    "outside": ((-2.0, -1.5), (1.5, 2.0)),
}


def hmc(
    log_prob: Callable[[Tensor], Tensor], start: Tensor, draws: int, warmup: int, leaps: int = 40
) -> tuple[Tensor, float]:
    """Hamiltonian Monte Carlo (Neal 2011) of several chains at once.

    Args:
        log_prob: of the density up to a constant, [chains], at [chains, size].
        start: where the chains start, [chains, size].
        draws: how many are kept of each chain.
        warmup: trajectories before, in which the step adapts to an acceptance of 0.8.
        leaps: mean number of leapfrog steps per trajectory; each trajectory has a random one, against resonance.

    Returns:
        Draws [draws, chains, size], and the share of trajectories that were accepted.
    """

    def gradient(position: Tensor) -> tuple[Tensor, Tensor]:
        position = position.detach().requires_grad_()
        value = log_prob(position)
        return value.detach(), torch.autograd.grad(value.sum(), position)[0]

    position, log_step, accepted = start, math.log(0.01), 0.0
    value, slope = gradient(position)
    kept = []
    for index in range(warmup + draws):
        momentum = torch.randn_like(position)
        new, energy, step = position, value - 0.5 * momentum.square().sum(1), math.exp(log_step)
        new_value, new_slope = value, slope
        for _ in range(int(torch.randint(leaps // 2, leaps + leaps // 2 + 1, ()))):
            momentum = momentum + 0.5 * step * new_slope
            new = new + step * momentum
            new_value, new_slope = gradient(new)
            momentum = momentum + 0.5 * step * new_slope
        chance = (new_value - 0.5 * momentum.square().sum(1) - energy).nan_to_num(-torch.inf).exp().clamp_max(1)
        is_taken = torch.rand_like(chance) < chance
        position = torch.where(is_taken[:, None], new, position)
        value, slope = torch.where(is_taken, new_value, value), torch.where(is_taken[:, None], new_slope, slope)
        if index < warmup:
            log_step += (float(chance.mean()) - 0.8) / math.sqrt(10 + index)
        else:
            accepted += float(chance.mean()) / draws
            kept.append(position)
    return torch.stack(kept), accepted


def split_r_hat(values: Tensor) -> float:
    """The largest R̂ of quantities [draws, chains, quantities]: 1 where the halves of all chains agree (Gelman 2013)."""
    halves = torch.cat(values[len(values) % 2 :].chunk(2), 1)
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    return float(((within * (len(halves) - 1) / len(halves) + between) / within).sqrt().max())


def function(weights: Tensor, x: Tensor) -> Tensor:
    """The outputs [chains, n] of networks with weights [chains, 3 · hidden + 1] at x [n]."""
    slopes, shifts, heights, shift = weights.split([HIDDEN, HIDDEN, HIDDEN, 1], 1)
    return torch.einsum("ch,cnh->cn", heights, torch.tanh(x[:, None] * slopes[:, None] + shifts[:, None])) + shift


def main(path: Path, draws: int = 1000, steps: int = 10_000) -> dict[str, float]:
    """Draw, fit, write the picture, and return mean field's deviation over HMC's at each of `PLACES`.

    Args:
        path: of the picture.
        draws: of each of eight chains, after as many of warm-up.
        steps: of optimization.
    """
    torch.manual_seed(0)
    x = torch.cat([torch.linspace(*ends, 20, dtype=torch.float64) for ends in PLACES["at the data"]])
    y = torch.sin(4 * x) + NOISE * torch.randn_like(x)
    grid = torch.linspace(-2, 2, 161, dtype=torch.float64)
    scales = torch.cat([torch.full((2 * HIDDEN,), SIGMAS[0]), torch.full((HIDDEN + 1,), SIGMAS[1])]).double()

    def log_prob(scaled: Tensor) -> Tensor:  # of weights in units of their prior's deviations
        errors = (function(scaled * scales, x) - y) / NOISE
        return -0.5 * (errors.square().sum(1) + scaled.square().sum(1))

    sample, accepted = hmc(log_prob, torch.randn(8, len(scales), dtype=torch.float64), draws, draws)
    exact = torch.stack([function(each * scales, grid) for each in sample])
    print(f"HMC: {accepted:.0%} of the trajectories accepted, largest R̂ of the curve {split_r_hat(exact):.3f}")

    layers = [BBBLinear(*size, priors={"prior_sigma": sigma, "posterior_rho_initial": (-3.0, 0.1)}, dtype=torch.float64)
              for size, sigma in zip(((1, HIDDEN), (HIDDEN, 1)), SIGMAS, strict=True)]  # fmt: skip
    net = ModuleWrapper(layers[0], nn.Tanh(), layers[1])
    optimizer = torch.optim.Adam(parameter_groups(net, lr=1e-2))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        output, kl = net(x[:, None])
        loss = 0.5 * ((output[:, 0] - y) / NOISE).square().sum() + kl  # −ELBO in nats, up to a constant
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"mean field: −ELBO {float(loss.detach()):.1f} nats up to a constant, KL {float(kl.detach()):.1f} nats")
    with torch.no_grad():
        fitted = torch.stack([draw(grid[:, None])[0][:, 0] for draw in posterior_draws(net, 8 * draws, seed=0)])

    exact = exact.flatten(0, 1)
    ratios = {}
    for place, ranges in PLACES.items():
        inside = sum(((grid >= low) & (grid <= high)) for low, high in ranges) > 0
        ratios[place] = float((fitted.std(0) / exact.std(0))[inside].mean())
    print("its deviation over HMC's: " + ", ".join(f"{ratio:.2f} {place}" for place, ratio in ratios.items()))
    print(_plot(path, x, y, grid, {"HMC, the exact posterior": exact, "mean-field variational inference": fitted}))
    return ratios


@figure_style()
def _plot(path: Path, x: Tensor, y: Tensor, grid: Tensor, curves: dict[str, Tensor]) -> Path:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for ax, (name, values), color in zip(
        figure.subplots(1, 2, sharey=True), curves.items(), (ORANGE, BLUE), strict=True
    ):
        mean, std = values.mean(0), values.std(0)
        ax.fill_between(grid, mean - 2 * std, mean + 2 * std, color=color, alpha=0.3, linewidth=0)
        ax.plot(grid, mean, color=color)
        ax.plot(x, y, ".", color="0.2", markersize=4)
        ax.set(title=name, xlabel="x", ylim=(-4, 4))
    figure.axes[0].set_ylabel("mean ± 2 standard deviations")
    return save_figure(figure, path)


if __name__ == "__main__":
    parser = OneLineParser("python -m examples.hmc", description=__doc__)
    parser.add_argument("--path", type=Path, default=Path("hmc.png"), help="of the picture (%(default)s)")
    parser.add_argument("--draws", type=argument(whole(4)), default=1000, help="per chain of HMC (%(default)s)")
    with report_user_errors():
        arguments = parser.parse_args()
        main(arguments.path, arguments.draws)
