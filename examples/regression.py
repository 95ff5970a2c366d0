"""Bayesian regression on scikit-learn's diabetes data: bands that widen where there is no data.

The progression of the disease by body mass index; the middle fifth of the indices is left out of training, so
that there is something not to know. Writes a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from inference.regression import GaussianLikelihood, RegressionPredictive, regression_predictive
from layers import BBBLinear, ModuleWrapper
from support import BLUE, ORANGE, OneLineParser, figure_style, report_user_errors, save_figure

GAP = (0.4, 1.3)  # standardised body mass indices that training does not see


class Bumps(nn.Module):
    """Gaussian bumps along the axis, [n, 1] to [n, 21]: a weight that no data reaches keeps the width of its prior."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-(x - torch.linspace(-4, 6, 21)).square() / (2 * 0.5**2))


def main(path: Path, steps: int = 1500) -> RegressionPredictive:
    """Fit, predict on a grid from −4 to 6, and draw."""
    torch.manual_seed(0)
    features, targets = load_diabetes(return_X_y=True, scaled=False)
    x, y = (_standard(torch.tensor(column, dtype=torch.float32)[:, None]) for column in (features[:, 2], targets))
    seen = ((x < GAP[0]) | (x > GAP[1])).squeeze(1)
    x, y = x[seen], y[seen]

    net = ModuleWrapper(Bumps(), BBBLinear(21, 1, priors={"posterior_rho_initial": (-2.0, 0.1)}))
    likelihood = GaussianLikelihood(noise=0.5)  # learnt with the network
    optimizer = torch.optim.Adam([*net.parameters(), *likelihood.parameters()], lr=1e-2)
    for _ in range(steps):
        output, kl = net(x)
        loss = likelihood(output, y) + kl / len(x)  # β = 1, nats per example
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    grid = torch.linspace(-4, 6, 201)[:, None]
    found = regression_predictive(net, likelihood, grid, num_samples=200)
    unsure = found.epistemic.sqrt()[:, 0]
    places = {"at the mean of the data": 0.0, "in the gap": sum(GAP) / 2, "far from all data": 5.0}
    told = ", ".join(f"{unsure[(grid[:, 0] - at).abs().argmin()]:.3f} {place}" for place, at in places.items())
    print(f"noise {found.aleatoric.sqrt().mean():.3f}; deviation of the mean {told}")
    print(_drawn(path, x, y, grid, found))
    return found


def _standard(column: Tensor) -> Tensor:
    return (column - column.mean()) / column.std()


@figure_style()
def _drawn(path: Path, x: Tensor, y: Tensor, grid: Tensor, found: RegressionPredictive) -> Path:
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    at, mean = grid[:, 0].numpy(), found.mean[:, 0].numpy()
    for std, color, label in (
        (found.std, ORANGE, "± 2 deviations, with the noise"),
        (found.epistemic.sqrt(), BLUE, "± 2 deviations of the mean"),
    ):
        width = 2 * std[:, 0].numpy()
        ax.fill_between(at, mean - width, mean + width, color=color, alpha=0.3, label=label, linewidth=0)
    ax.plot(at, mean, color=BLUE, label="posterior mean")
    ax.plot(x, y, ".", color="0.25", markersize=3, label="data")
    ax.axvspan(*GAP, color="0.9", zorder=0, label="left out of training")
    ax.set(xlabel="body mass index (standardised)", ylabel="progression of the disease (standardised)", ylim=(-4, 6))
    ax.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path)


def _picture(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"expected a path that ends in .png, got {text!r}")
    return Path(text)


if __name__ == "__main__":
    with report_user_errors():
        parser = OneLineParser(description=__doc__)
        parser.add_argument("picture", nargs="?", type=_picture, default="regression.png", help="(%(default)s)")
        main(parser.parse_args().picture)
