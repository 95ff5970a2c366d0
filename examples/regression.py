"""Bayesian regression on scikit-learn's diabetes data: the uncertainty grows where there is no data.

The progression of the disease by body mass index; a range of the indices is left out of training, so that the network
has something to be uncertain about. Writes a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from inference import regression_predictive
from layers import BBBLinear, ModuleWrapper, parameter_groups
from likelihoods import GaussianLikelihood, RegressionPredictive
from support import BLUE, ORANGE, OneLineParser, figure_style, report_user_errors, save_figure

GAP = (0.4, 1.3)  # standardized body mass indices that are left out of training


class Bumps(nn.Module):
    """Gaussian bumps along the axis; the weight of a bump without data keeps the standard deviation of its prior."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1] to the value of every bump, [n, 21]."""
        return torch.exp(-(x - torch.linspace(-4, 6, 21)).square() / (2 * 0.5**2))


def main(path: Path, steps: int = 1500) -> RegressionPredictive:
    """Fit, predict on a grid from −4 to 6, write the picture, and return the predictive on the grid."""
    torch.manual_seed(0)
    features, targets = load_diabetes(return_X_y=True, scaled=False)
    x, y = (_standardize(torch.tensor(column, dtype=torch.float32)[:, None]) for column in (features[:, 2], targets))
    outside = ((x < GAP[0]) | (x > GAP[1])).squeeze(1)
    x, y = x[outside], y[outside]

    net = ModuleWrapper(Bumps(), BBBLinear(21, 1, priors={"posterior_rho_initial": (-2.0, 0.1)}))
    likelihood = GaussianLikelihood(noise=0.5)  # learned with the network
    optimizer = torch.optim.Adam([*parameter_groups(net, lr=1e-2), {"params": likelihood.parameters()}], lr=1e-2)
    for _ in range(steps):
        output, kl = net(x)
        loss = likelihood(output, y) + kl / len(x)  # β = 1, nats per example
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    grid = torch.linspace(-4, 6, 201)[:, None]
    predictive = regression_predictive(net, likelihood, grid, num_samples=200)
    std = predictive.epistemic.sqrt()[:, 0]
    positions = {"at the mean of the data": 0.0, "in the gap": sum(GAP) / 2, "far from all data": 5.0}
    stds = ", ".join(f"{std[(grid[:, 0] - at).abs().argmin()]:.3f} {name}" for name, at in positions.items())
    print(f"noise {predictive.aleatoric.sqrt().mean():.3f}; standard deviation of the mean {stds}")
    print(_plot(path, x, y, grid, predictive))
    return predictive


def _standardize(column: Tensor) -> Tensor:
    return (column - column.mean()) / column.std()


@figure_style()
def _plot(path: Path, x: Tensor, y: Tensor, grid: Tensor, predictive: RegressionPredictive) -> Path:
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    at, mean = grid[:, 0].numpy(), predictive.mean[:, 0].numpy()
    for std, color, label in (
        (predictive.std, ORANGE, "± 2 standard deviations, with the noise"),
        (predictive.epistemic.sqrt(), BLUE, "± 2 standard deviations of the mean"),
    ):
        width = 2 * std[:, 0].numpy()
        ax.fill_between(at, mean - width, mean + width, color=color, alpha=0.3, label=label, linewidth=0)
    ax.plot(at, mean, color=BLUE, label="posterior mean")
    ax.plot(x, y, ".", color="0.25", markersize=3, label="data")
    ax.axvspan(*GAP, color="0.9", zorder=0, label="left out of training")
    ax.set(xlabel="body mass index (standardized)", ylabel="progression of the disease (standardized)", ylim=(-4, 6))
    ax.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path)


def _png_path(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"expected a path that ends in .png, got {text!r}")
    return Path(text)


if __name__ == "__main__":
    with report_user_errors():
        parser = OneLineParser(description=__doc__)
        parser.add_argument("picture", nargs="?", type=_png_path, default="regression.png", help="(%(default)s)")
        main(parser.parse_args().picture)
