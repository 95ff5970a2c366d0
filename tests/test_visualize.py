"""Pictures of recordings are written, animated over all of training, and a mistake is one line."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT, script_environment
from matplotlib import pyplot
from PIL import Image

import visualize_mean_var
from layers import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper
from recording import read_recording, recording
from support import UserError
from visualize_mean_var import draw_distributions, draw_lineplot, draw_weights


class Small(ModuleWrapper):
    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.conv = BBBConv2d(inputs, 10, 3)
        self.flat = FlattenLayer(360)
        self.fc = BBBLinear(360, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Logs of two layers over three epochs in which every mean and deviation moves."""
    net = Small()
    with recording(net, tmp_path / "logs", batches=5) as recorder:
        for _ in range(15):
            net(torch.randn(8, 3, 8, 8))
            with torch.no_grad():
                for weight in net.parameters():
                    weight.add_(0.02)
            recorder.step()
    return tmp_path / "logs"


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as picture:
        pictures = []
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            pictures.append(np.asarray(picture.convert("L")))
    return pictures


@pytest.mark.parametrize("kind", ["mean", "std", "variance", "both"])
def test_animations_move(folder: Path, tmp_path: Path, kind: str) -> None:
    draw_distributions(folder / "fc.sqlite", tmp_path / "out", kind, node_no=3, save_plots=True, plot_time=0.1)
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == f"fc_node3_{kind}.gif"
    with Image.open(path) as picture:
        assert picture.info["duration"] == 100
    shown = frames(path)
    assert len(shown) == 15
    assert all((one != other).any() for one, other in pairwise(shown))
    assert not pyplot.get_fignums()  # no figure is left for pyplot to hold


def test_both_is_the_normal_of_mean_and_variance(folder: Path, tmp_path: Path) -> None:
    recorded = read_recording(folder / "fc.sqlite")
    animation = draw_distributions(folder / "fc.sqlite", tmp_path, "both", node_no=2, save_plots=True)
    (line,) = animation._fig.axes[0].lines  # type: ignore[attr-defined]
    x, density = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())  # of the last frame
    mean, std = recorded.mean[-1, :, 2].mean(), np.sqrt(recorded.variance[-1, :, 2].mean())
    expected = torch.distributions.Normal(float(mean), float(std)).log_prob(torch.from_numpy(x)).exp()
    np.testing.assert_allclose(density, expected, rtol=1e-4, atol=1e-6)


def test_lines_are_the_averages(folder: Path, tmp_path: Path) -> None:
    recorded = read_recording(folder / "fc.sqlite")
    for kind, values in (("mean", recorded.mean), ("std", recorded.std), ("variance", recorded.variance)):
        figure = draw_lineplot(folder / "fc.sqlite", tmp_path, kind, node_no=1, save_plots=True)
        (line,) = figure.axes[0].lines
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), values[:, :, 1].mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), np.arange(15) / 5, atol=1e-6)
        assert frames(tmp_path / f"fc_node1_{kind}.png")[0].std() > 5
    figure = draw_lineplot(folder / "fc.sqlite", tmp_path, "both", node_no=1, save_plots=True)
    (band,) = figure.axes[0].collections
    tops = band.get_paths()[0].vertices[:, 1].max()  # type: ignore[index]
    above = recorded.mean[:, :, 1].mean(axis=1) + np.sqrt(recorded.variance[:, :, 1].mean(axis=1))
    assert tops == pytest.approx(above.max(), rel=1e-5)


def test_weights_and_filters(folder: Path, tmp_path: Path) -> None:
    figure = draw_weights(folder / "fc.sqlite", tmp_path, save_plots=True)
    recorded = read_recording(folder / "conv.sqlite").weights["weight"]
    pictures = [image.get_array() for ax in figure.axes for image in ax.images]
    assert len(pictures) == 20  # the first convolution's means and deviations, though another layer was asked for
    filters = recorded.mean[-1].reshape(10, 3, 3, 3).mean(axis=1)
    np.testing.assert_allclose(np.stack(pictures[:10]), filters, rtol=1e-6)  # type: ignore[arg-type]
    assert frames(tmp_path / "fc_weights.png")[0].std() > 5
    for beside in folder.glob("conv*"):
        beside.unlink()
    assert not any(ax.images for ax in draw_weights(folder / "fc.sqlite", tmp_path, save_plots=True).axes)


def test_certain_weights_and_a_single_record_can_be_drawn(tmp_path: Path) -> None:
    layer = BBBLinear(2, 2, priors={"posterior_rho_initial": (-200.0, 0.0)}, name="fc")
    torch.nn.init.zeros_(layer.weight)
    with recording(layer, tmp_path, batches=1) as recorder:
        layer(torch.zeros(1, 2))
        recorder.step()
    for kind in ("mean", "std", "variance", "both"):
        draw_lineplot(tmp_path / "fc.sqlite", tmp_path, kind, save_plots=True)
        draw_distributions(tmp_path / "fc.sqlite", tmp_path, kind, save_plots=True)
    draw_weights(tmp_path / "fc.sqlite", tmp_path, save_plots=True)


def test_a_run_that_diverged_is_drawn_as_far_as_it_is_finite(tmp_path: Path) -> None:
    net = ModuleWrapper(BBBConv2d(1, 2, 3, name="conv"), FlattenLayer(8), BBBLinear(8, 2, name="fc"))
    path = tmp_path / "fc.sqlite"
    with recording(net, tmp_path, batches=2) as recorder:
        for step in range(6):
            if step == 3:
                for weight in net.parameters():
                    weight.data.fill_(torch.nan)
            net(torch.randn(8, 1, 4, 4))
            recorder.step()
    for kind in ("std", "both"):
        figure = draw_lineplot(path, tmp_path, kind, save_plots=True)
        assert figure.axes[0].lines[0].get_xdata()[-1] == read_recording(path).time[2]  # type: ignore[index]
    draw_distributions(path, tmp_path, "both", save_plots=True)
    assert len(frames(tmp_path / "fc_node0_both.gif")) == 3
    draw_weights(path, tmp_path, save_plots=True)
    with recording(net, tmp_path / "never", batches=1) as recorder:
        net(torch.randn(8, 1, 4, 4))
        recorder.step()
    with pytest.raises(UserError, match="the recording of fc has no finite numbers: the run diverged"):
        draw_lineplot(tmp_path / "never" / "fc.sqlite", tmp_path)


def test_a_screen_is_used_and_a_notebook_is_left_to_show(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(visualize_mean_var, "_has_screen", lambda: True)
    monkeypatch.setattr(pyplot, "pause", pauses.append)
    matplotlib.use("agg")
    draw_lineplot(folder / "fc.sqlite", tmp_path / "out", plot_time=2)
    assert pauses == [2] and not pyplot.get_fignums()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert draw_lineplot(folder / "fc.sqlite", tmp_path / "out").axes
    assert not (tmp_path / "out").exists() and not capsys.readouterr().out


def test_the_script_saves_without_a_display(folder: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in script_environment().items() if "DISPLAY" not in name}
    flags = [
        "--filename",
        folder / "fc.sqlite",
        "--plot_type=both",
        "--data_type=std",
        "--node_no=1",
        "--plot_time=0.2",
    ]
    answer = subprocess.run(
        [sys.executable, "visualize_mean_var.py", *map(str, flags), "--save_dir", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not answer.stderr
    for name in ("fc_node1_std.png", "fc_node1_std.gif"):
        assert f"saved {tmp_path / 'out' / name}" in answer.stdout and frames(tmp_path / "out" / name)


def test_a_mistake_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign, foreign_h5 = tmp_path / "foreign.sqlite", tmp_path / "foreign.h5"
    for path in (foreign, foreign_h5):
        path.write_text("neither SQLite nor HDF5")
    log = folder / "fc.sqlite"
    left_out = min(set(range(360)) - set(read_recording(folder / "conv.sqlite").nodes.tolist()))
    for flags, expected in (
        (["--filename", tmp_path / "none.sqlite"], "there is no recording"),
        (["--filename", tmp_path], "is not a readable recording"),
        (["--filename", foreign], "is not a readable recording"),
        (["--filename", foreign_h5], "is not a readable recording"),
        (["--filename", log, "--node_no", 4], "fc has no node 4: its 4 nodes are 0 to 3"),
        (["--filename", log, "--node_no", -1], "fc has no node -1"),
        (["--filename", log, "--node_no", "x"], "--node_no"),
        (["--filename", folder / "conv.sqlite", "--node_no", left_out], f"node {left_out} of conv was not recorded"),
        (["--filename", log, "--plot_time", 0], "plot_time must be"),
        (["--filename", log, "--plot_time", "nan"], "plot_time must be"),
        (["--filename", log, "--plot_type", "distplot", "--plot_time", 1000], "above 0 and at most 655, got 1000.0"),
        (["--filename", log, "--plot_type", "pie"], "--plot_type"),
        ([], "--filename"),
    ):
        with pytest.raises(SystemExit) as end:
            visualize_mean_var.main([*map(str, flags), "--save_plots", "--save_dir", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert expected in error, error
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="did you mean 'variance'"):
        draw_lineplot(log, tmp_path, "varianse")
