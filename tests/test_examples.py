"""The tutorials and the regression run, and show what they promise."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from conftest import ROOT

from examples import hmc, regression
from inference import Classifier

FEWER = {
    "range(epochs)": "range(min(epochs, 2))",
    "n_epochs=15": "n_epochs=3, valid_ens=1, test_ens=2",
    "num_samples=25": "num_samples=5",
    "num_samples=10": "num_samples=3",
}
TUTORIALS = ("first_network", "own_network", "any_network", "decide")


def read(name: str) -> Any:
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def tutorial(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **changes: str
) -> tuple[str, dict[str, Any]]:
    """What the cells of a notebook print, with fewer epochs and draws, and their variables."""
    monkeypatch.chdir(ROOT)  # from where it goes to a temporary folder
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(Classifier.predict, "__defaults__", (5, 0))  # draws, seed
    names: dict[str, Any] = {}
    for cell in read(name).cells:
        if cell.cell_type == "code":
            source = cell.source
            for old, new in {**FEWER, **changes}.items():
                source = source.replace(old, new)
            exec(compile(source, f"{name}.ipynb", "exec"), names)
    return capsys.readouterr().out, names


def numbers(printed: str, row: str) -> list[float]:
    """Those of the last row of this name in a table."""
    return [float(number.rstrip("%")) for number in re.findall(rf"^{row} +([\d.% ]+)$", printed, re.M)[-1].split()]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_kept_with_all_that_it_prints_and_draws(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.get("name", output.output_type) for output in outputs} == {"stdout", "display_data"}
    drawn = [any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells]
    assert drawn == ["plt.show()" in cell.source for cell in cells]


def test_the_first_network_is_less_certain_of_what_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, names = tutorial("first_network", monkeypatch, capsys)
    rows = {name: numbers(printed, name) for name in names["sets"]}
    for total, aleatoric, epistemic in rows.values():
        assert total == pytest.approx(aleatoric + epistemic, abs=0.0015)
    assert rows["exchanged halves"][0] > 2 * rows["test digits"][0]
    assert names["right"].float().mean() > 0.85


def test_an_own_network_learns_and_a_larger_beta_leaves_more_weights_at_the_prior(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, names = tutorial("own_network", monkeypatch, capsys)
    assert "the same predictions after loading: True" in printed
    assert names["warm_history"][-1][1] < 0.85 * names["cold_history"][-1][1]
    assert min(map(float, re.findall(r"accuracy (0\.\d+)", printed))) > 0.8


def test_a_converted_network_disagrees_with_itself_about_strange_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the notebook is kept; the run, on few images, has the same rows."""
    few = {"3) / 255, labels": "3)[:320] / 255, labels[:320]", "resnet18(": "ResNet(BasicBlock, [1] * 4, "}
    few["import resnet18"] = "import ResNet; from torchvision.models.resnet import BasicBlock"
    printed, names = tutorial("any_network", monkeypatch, capsys, **few)
    kept = "".join(output.get("text", "") for cell in read("any_network").cells for output in cell.get("outputs", []))
    for text in (printed, kept):
        rows = {name: numbers(text, name) for name in names["networks"]}
        assert rows["as trained"][-2:] == rows["longer"][-2:] == [0, 0] and rows["Laplace"][-1] > 0.02
    assert rows["as trained"][0] > 90
    for name in ("longer", "all layers", "last layer"):  # which had one epoch more
        assert rows[name][0] > rows["as trained"][0] and rows[name][1] < rows["as trained"][1]
    for name in ("all layers", "last layer", "Laplace"):
        digits, strange = rows[name][-2:]
        assert strange > 5 * digits
    assert rows["Laplace"][-1] == max(row[-1] for row in rows.values())


def test_decisions_keep_their_promise_on_test_images_and_refuse_unknown_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, names = tutorial("decide", monkeypatch, capsys, **{'"0.01"': '"0.05", "--num_samples", "5"'})
    assert names["come_to"]["accepted"] > 0.7 and names["come_to"]["accepted_risk"] < 0.08
    assert names["covered"] > 0.95
    for answer in names["answers"].values():
        assert answer.accepted.float().mean() < 0.8 * names["come_to"]["accepted"]


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
