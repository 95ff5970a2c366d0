"""The examples and the notebook run, and show what they promise."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import nbformat
import pytest
import torch
from conftest import ROOT
from nbclient import NotebookClient

from examples import convert_torchvision, custom_network, hmc, regression


def test_a_custom_network_learns_digits() -> None:
    assert custom_network.main(epochs=8)["accuracy"] > 0.9


def test_a_torchvision_network_stays_as_good_when_it_becomes_bayesian(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_torchvision.main(steps=30) > 0.8
    printed = capsys.readouterr().out.split()
    digits, noise = (float(printed[printed.index(word) + 1].rstrip(",")) for word in ("digits", "noise"))
    assert noise > 2 * digits


def test_regression_is_less_sure_where_no_data_is(tmp_path: Path) -> None:
    predictive = regression.main(tmp_path / "bands.png", steps=1500)
    grid = [-4 + 10 * index / 200 for index in range(201)]
    unsure = {
        at: predictive.epistemic[min(range(201), key=lambda i: abs(grid[i] - at)), 0].sqrt() for at in (0, 0.85, 5)
    }
    assert unsure[0] < 0.7 * unsure[0.85] < 0.7 * unsure[5]
    assert matplotlib.image.imread(tmp_path / "bands.png").std() > 0.05


def test_hmc_draws_from_a_correlated_normal() -> None:
    torch.manual_seed(0)
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.tensor([1.0, 2.0, 3.0]).double(), covariance)
    draws, accepted = hmc.hmc(normal.log_prob, torch.zeros(100, 3, dtype=torch.float64), 200, 150, leaps=20)
    assert accepted > 0.7 and hmc.split_r_hat(draws) < 1.03
    torch.testing.assert_close(draws.flatten(0, 1).mean(0), normal.mean, atol=0.04, rtol=0)
    torch.testing.assert_close(draws.flatten(0, 1).T.cov(), covariance, atol=0.05, rtol=0)
    apart = draws + torch.arange(100.0).double()[:, None]
    assert hmc.split_r_hat(apart) > 2


def test_mean_field_is_too_wide_at_the_data_and_too_narrow_outside(tmp_path: Path) -> None:
    ratios = hmc.main(tmp_path / "hmc.png", draws=12, steps=500)
    assert ratios["outside"] < 0.6 and ratios["at the data"] > 1.5
    assert matplotlib.image.imread(tmp_path / "hmc.png").std() > 0.05


def test_the_notebook_runs() -> None:
    """With 4 epochs instead of 15."""
    notebook = nbformat.read(ROOT / "examples" / "mnist5k.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("n_epochs=15", "n_epochs=4")
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "examples"}}
    ).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "entropy" in printed and "the means alone: 9" in printed
