"""Recordings hold the closed-form moments, evenly spread, survive SIGKILL, and leave training as it was."""

from __future__ import annotations

import copy
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, draw_pictures
from conftest import same as same_values
from torch import Tensor, nn

import config_bayesian
from layers import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper
from models import build
from recording import EXAMPLES, NODES, due_batches, read_recording, recorded_layers, recording
from support import UserError
from tests.processes import Program, forkserver, run_program
from training import loop
from training.settings import BayesianSettings, from_config


class Small(ModuleWrapper):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv = BBBConv2d(2, 3, 3, padding=1, stride=2, name="first", **settings)
        self.act = nn.Softplus()
        self.flat = FlattenLayer(48)
        self.inner = nn.Sequential(BBBLinear(48, 5, bias=False, **settings))


def same(one: Any, other: Any) -> bool:
    """Whether two recordings hold the same records and weights, bit by bit."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("epoch", "batch", "mean", "variance", "nodes")]
    pairs += [(one.posterior_epoch, other.posterior_epoch)]
    for key, weights in one.weights.items():
        pairs += [(weights.mean, other.weights[key].mean), (weights.std, other.weights[key].std)]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
def test_records_are_the_closed_forms(tmp_path: Path, layer_type: str, alpha_shape: tuple[int, ...] | None) -> None:
    net = Small(layer_type=layer_type, alpha_shape=alpha_shape)
    images = torch.randn(6, 2, 8, 8)
    inputs: list[Tensor] = []
    watch = net.inner[0].register_forward_hook(lambda layer, args, output: inputs.append(args[0]))
    with recording(net, tmp_path, batches=1) as recorder:
        net(images)
        net(images)  # a second posterior sample of the same step is not recorded
        recorder.step()
    watch.remove()

    conv, linear = net.conv, net.inner[0]
    if alpha_shape is None:
        variances = [F.softplus(layer.posterior["weight"].rho).square() for layer in (conv, linear)]
        bias_variance = F.softplus(conv.posterior["bias"].rho).square()
    else:
        variances = [layer.posterior["weight"].log_alpha.exp() * layer.weight.square() for layer in (conv, linear)]
        bias_variance = conv.posterior["bias"].log_alpha.exp() * conv.bias.square()
    expected = {
        "first": (
            F.conv2d(images, conv.weight, conv.bias, stride=2, padding=1).flatten(1),
            F.conv2d(images.square(), variances[0], bias_variance, stride=2, padding=1).flatten(1),
        ),
        "inner.0": (inputs[0] @ linear.weight.T, inputs[0].square() @ variances[1].T),
    }
    for name, (mean, variance) in expected.items():
        recorded = read_recording(tmp_path / f"{name}.sqlite")
        assert recorded.layer == name and recorded.mean.dtype == np.float32
        np.testing.assert_allclose(recorded.mean[0], mean.detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(recorded.variance[0], variance.detach(), rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(recorded.std, np.sqrt(recorded.variance))

    weights = read_recording(tmp_path / "first.sqlite").weights
    assert set(weights) == {"weight", "bias"} and set(recorded.weights) == {"weight"}
    assert weights["weight"].whole and weights["weight"].shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(weights["weight"].mean[0], conv.weight.detach().flatten())
    std = variances[0].sqrt().detach().flatten()
    np.testing.assert_allclose(weights["weight"].std[0], std, rtol=1e-5)
    np.testing.assert_allclose(
        weights["weight"].signal_to_noise[0], conv.weight.detach().abs().flatten() / std, rtol=1e-5
    )


def test_small_variances_keep_their_digits(tmp_path: Path) -> None:
    layer = BBBLinear(4, 3, priors={"posterior_rho_initial": (-30.0, 0.0)}, name="fc")
    with recording(layer, tmp_path, batches=1) as recorder:
        layer(torch.ones(2, 4))
        recorder.step()
    np.testing.assert_allclose(read_recording(tmp_path / "fc.sqlite").variance, 5 * np.exp(-60), rtol=1e-5)


def test_records_are_spread_evenly(tmp_path: Path) -> None:
    assert due_batches(3, 9) == {0, 3, 6}
    assert due_batches(32, 5) == set(range(5))
    for frequency in range(1, 20):
        gaps = np.diff([*sorted(due_batches(frequency, 19)), 19])
        assert len(gaps) == frequency and gaps.max() - gaps.min() <= 1

    layer = BBBLinear(2, 1, name="fc")
    with recording(layer, tmp_path, batches=5, frequency=2, settings={"seed": 7}) as recorder:
        for step in range(12):
            layer.train()
            layer(torch.full((3, 2), float(step)))
            recorder.step()
            layer.eval()
            layer(torch.full((3, 2), 1e6))  # validation is never recorded
    recorded = read_recording(tmp_path / "fc.sqlite")
    assert list(zip(recorded.epoch, recorded.batch, strict=True)) == [(1, 1), (1, 3), (2, 1), (2, 3), (3, 1)]
    np.testing.assert_allclose(recorded.time, [0, 0.4, 1, 1.4, 2], rtol=1e-6)
    steps = np.array([0, 2, 5, 7, 10])[:, None]
    expected = steps * layer.weight.sum().item() + layer.bias.item()
    np.testing.assert_allclose(recorded.mean[:, :, 0], np.repeat(expected, 3, axis=1), rtol=1e-5, atol=1e-5)
    assert recorded.posterior_epoch.tolist() == [1, 2]
    assert (recorded.batches, recorded.frequency, recorded.settings) == (5, 2, {"seed": 7})


def test_wide_layers_are_thinned_by_seed(tmp_path: Path) -> None:
    layer = BBBConv2d(1, 6, 5, name="conv")
    images = torch.randn(50, 1, 32, 32)
    with recording(layer, tmp_path, batches=2, seed=3) as recorder:
        for size in (50, 7):
            layer(images[:size])
            recorder.step()
    recorded = read_recording(tmp_path / "conv.sqlite")
    assert recorded.mean.shape == (2, EXAMPLES, NODES) and recorded.node_shape == (6, 28, 28)
    assert recorded.nodes[0] == 0 and "64 of 4704 nodes, by seed 3" in recorded.kept
    full = F.conv2d(images, layer.weight, layer.bias).detach().flatten(1).numpy()[:, recorded.nodes]
    rows = [np.abs(full - row).max(axis=1).argmin() for row in recorded.mean[0]]
    assert len(set(rows)) == EXAMPLES
    np.testing.assert_allclose(recorded.mean[0], full[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(recorded.mean[1, :7], full[:7], rtol=1e-4, atol=1e-5)
    assert np.isnan(recorded.mean[1, 7:]).all()


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def test_a_long_recording_is_whole_and_small(tmp_path: Path) -> None:
    layer = BBBLinear(84, 10, name="fc3")
    with recording(layer, tmp_path, batches=32) as recorder:
        for step in range(3200):
            layer(torch.full((256, 84), step / 3200))
            recorder.step()
    recorded = read_recording(tmp_path / "fc3.sqlite")
    assert recorded.mean.shape == (3200, EXAMPLES, 10) and recorded.posterior_epoch.tolist() == list(range(1, 101))
    rise = torch.linspace(0, 1, 3201)[:-1, None] * layer.weight.sum(1).detach() + layer.bias.detach()
    np.testing.assert_allclose(recorded.mean[:, 5], rise, rtol=1e-3, atol=1e-5)
    assert (tmp_path / "fc3.sqlite").stat().st_size < 100e6
    assert [path.name for path in tmp_path.iterdir()] == ["fc3.sqlite"]  # nothing else is left behind


def test_layers_go_by_name_or_path(tmp_path: Path) -> None:
    net = Small()
    assert list(recorded_layers(net)) == ["first", "inner.0"]
    assert list(recorded_layers(net, ["conv"])) == list(recorded_layers(net, ["first"])) == ["first"]
    with pytest.raises(UserError, match="'fc9': known are first, inner.0$"):
        recorded_layers(net, ["first", "fc9"])
    net.inner[0].name = "first"  # a name of two layers is the name of neither
    assert list(recorded_layers(net)) == ["conv", "inner.0"]
    with pytest.raises(UserError, match="no Bayesian layer"):
        recorded_layers(nn.Linear(2, 2))
    for frequency in (0, -1):
        with (
            pytest.raises(UserError, match="frequency: expected an integer ≥ 1"),
            recording(net, tmp_path, 3, frequency=frequency),
        ):
            pass


def test_copies_and_compiled_networks(tmp_path: Path) -> None:
    net = Small()
    own_hooks = len(net.conv._forward_pre_hooks)
    images = torch.randn(4, 2, 8, 8)
    compiled = torch.compile(net, backend="eager")
    with recording(net, tmp_path, batches=2) as recorder:
        before = torch.get_rng_state()
        recorder.observe(images)
        assert torch.equal(torch.get_rng_state(), before)
        compiled(images)
        copy.deepcopy(net)(images + 1)
        recorder.step()
        compiled(images)
        recorder.step()
    recorded = read_recording(tmp_path / "first.sqlite")
    assert recorded.batch.tolist() == [1]
    expected = F.conv2d(images, net.conv.weight, net.conv.bias, stride=2, padding=1).detach().flatten(1)
    np.testing.assert_allclose(recorded.mean[0], expected, rtol=1e-5, atol=1e-6)
    net(images)
    assert len(net.conv._forward_pre_hooks) == own_hooks


def test_an_extra_pass_leaves_batch_norm_as_it_is(tmp_path: Path) -> None:
    net = nn.Sequential(BBBLinear(3, 4, name="fc"), nn.BatchNorm1d(4))
    before = copy.deepcopy(net.state_dict())
    with recording(net, tmp_path, batches=1) as recorder:
        recorder.observe(torch.randn(8, 3) + 5)
        recorder.step()
    assert len(read_recording(tmp_path / "fc.sqlite").epoch) == 1
    assert same_values(net.state_dict(), before)


def test_a_damaged_record_is_left_out(tmp_path: Path) -> None:
    layer, path = BBBLinear(3, 2, name="fc"), tmp_path / "fc.sqlite"
    with recording(layer, tmp_path, batches=4) as recorder:
        for _ in range(3):
            layer(torch.randn(2, 3))
            recorder.step()
        recorder.sync()
        assert len(read_recording(path).epoch) == 3  # while the run goes on
    execute(path, "UPDATE moments SET variance = zeroblob(length(variance)) WHERE step = 3")
    assert read_recording(path).batch.tolist() == [1, 2]
    with (
        pytest.raises(UserError, match="lacks the record of epoch 1, batch 3"),
        recording(layer, tmp_path, batches=4, resume_at=3),
    ):
        pass
    with recording(layer, tmp_path, batches=4, resume_at=2) as recorder:
        layer(torch.randn(2, 3))
        recorder.step()
    assert read_recording(path).batch.tolist() == [1, 2, 3]


CHILD = """
import sys
import torch
from layers import BBBLinear
from recording import recording

torch.manual_seed(0)
layer = BBBLinear(40, 60, name="fc")
with recording(layer, sys.argv[1], batches=10, frequency=10) as recorder:
    for step in range(10**9):
        layer(torch.full((32, 40), float(step)))
        print(step, flush=True)
        recorder.step()
"""


@pytest.mark.parametrize("lines", [30, 1025, 2049])
def test_a_killed_process_leaves_whole_records(tmp_path: Path, lines: int) -> None:
    with Program("-c", CHILD, tmp_path) as child:
        for _ in range(lines):
            last = int(child.stdout.readline())
        child.kill()  # SIGKILL: it is writing a record or about to
    recorded = read_recording(tmp_path / "fc.sqlite")
    count = len(recorded.epoch)
    assert count >= last // 10 * 10  # all finished epochs
    np.testing.assert_array_equal((recorded.epoch - 1) * 10 + recorded.batch - 1, np.arange(count))
    torch.manual_seed(0)
    layer = BBBLinear(40, 60)
    expected = np.arange(count)[:, None] * layer.weight.sum(1).detach().numpy() + layer.bias.detach().numpy()
    np.testing.assert_allclose(recorded.mean[:, 0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(recorded.mean, np.repeat(recorded.mean[:, :1], EXAMPLES, axis=1))


RESUMED_CHILD = """
import torch
from layers import BBBLinear
from recording import recording

torch.manual_seed(0)
layer = BBBLinear(40, 60, name="fc")
with recording(layer, folder, batches=1, resume_at=resume_at) as recorder:
    for step in range(resume_at or 0, 10**9):
        layer(torch.full((32, 40), float(step)))
        recorder.step()
"""


def test_fifty_kills_while_rows_are_written_leave_whole_rows(tmp_path: Path) -> None:
    """Read while it is written, killed, and resumed, over and over: every finished epoch is there, once."""
    path, chance, count = tmp_path / "fc.sqlite", random.Random(0), 0
    for _ in range(50):
        names = {"folder": tmp_path, "resume_at": count or None}
        process = forkserver().Process(target=exec, args=(RESUMED_CHILD, names))  # no module of the tests to import
        process.start()
        while not path.exists() or (finished := len(read_recording(path).epoch)) <= count:
            assert process.is_alive()
        process.join(chance.random() * 0.02)
        process.kill()
        process.join()
        count = len(read_recording(path).epoch)
        assert count >= finished
    recorded = read_recording(path)
    assert recorded.epoch.tolist() == recorded.posterior_epoch.tolist() == list(range(1, count + 1))
    torch.manual_seed(0)
    layer = BBBLinear(40, 60)
    expected = np.arange(count)[:, None] * layer.weight.sum(1).detach().numpy() + layer.bias.detach().numpy()
    np.testing.assert_allclose(recorded.mean[:, 7], expected, rtol=1e-3, atol=1e-3)
    assert (recorded.weights["weight"].mean == layer.weight.detach().flatten().numpy()).all()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    layer = BBBLinear(84, 30, name="fc")
    with recording(layer, tmp_path, batches=4) as recorder:
        for _ in range(80):
            layer(torch.randn(16, 84))
            recorder.step()
    return tmp_path / "fc.sqlite"


def kill_in_a_transaction(path: Path) -> Path:
    """Leave half of a transaction in the file and, in a journal beside it, what SQLite needs to take it back."""
    code = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "database.execute('PRAGMA cache_size = 1')\n"
        "database.execute('UPDATE moments SET mean = variance, variance = mean')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    return path.with_name(f"{path.name}-journal")


def test_half_a_transaction_is_taken_back(log: Path) -> None:
    before, whole = read_recording(log), log.read_bytes()
    journal = kill_in_a_transaction(log)
    assert journal.stat().st_size > 0 and log.read_bytes() != whole
    assert same(read_recording(log), before)
    assert log.read_bytes() == whole and not journal.exists()


def test_a_journal_cannot_have_another_file_deleted(log: Path, tmp_path: Path) -> None:
    """SQLite deletes the file that a journal names as shared with other databases."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    journal = kill_in_a_transaction(log)
    name = bytes(victim)
    end = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    with journal.open("ab") as stream:
        stream.write((2**30 // 4096 + 1).to_bytes(4, "big") + end)
    with pytest.raises(UserError, match="its journal names another file"):
        read_recording(log)
    assert victim.exists()
    with closing(sqlite3.connect(log)) as database:  # the journal is one that SQLite obeys
        database.execute("SELECT * FROM moments").fetchone()
    assert not victim.exists()


def test_a_journal_whose_recording_is_gone_spoils_no_new_one(log: Path) -> None:
    kill_in_a_transaction(log)
    log.unlink()
    with recording(BBBLinear(84, 30, name="fc"), log.parent, batches=1) as recorder:
        recorder.observe(torch.randn(16, 84))
        recorder.step()
    assert read_recording(log).epoch.tolist() == [1]


def test_a_reader_that_holds_the_file_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, timeout=0.01))
    layer, path = BBBLinear(3, 2, name="fc"), tmp_path / "fc.sqlite"

    def train(recorder: Any) -> None:
        layer(torch.randn(2, 3))
        recorder.step()

    with recording(layer, tmp_path, batches=1) as recorder:
        train(recorder)
        with closing(connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM moments").fetchone()
            train(recorder)
            train(recorder)
            assert reader.execute("SELECT count(*) FROM moments").fetchone() == (1,)
        train(recorder)
        assert read_recording(path).epoch.tolist() == [1, 2, 3, 4]
        reader = connect(path)
        reader.execute("BEGIN EXCLUSIVE")
        train(recorder)
        with pytest.raises(UserError, match=r"cannot write .*fc\.sqlite: database is locked"):
            recorder.close()
        reader.close()
    assert read_recording(path).epoch.tolist() == [1, 2, 3, 4, 5]


def test_a_full_disk_is_one_line_and_what_was_recorded_stays(tmp_path: Path) -> None:
    """No file may grow beyond 200 kB: as on a disk that is full."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
    answer = run_program("-c", CHILD, tmp_path, prepare=limit)
    assert answer.returncode != 0
    assert f"UserError: cannot write {tmp_path / 'fc.sqlite'}: " in answer.stderr.splitlines()[-1]
    recorded = read_recording(tmp_path / "fc.sqlite")
    assert recorded.posterior_epoch.tolist() == [1] and len(recorded.epoch) == 10


FLAGS = {"batch_size": 4, "n_epochs": 4, "recording_freq_per_epoch": 20, "valid_ens": 1, "test_ens": 1, "device": "cpu"}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., BayesianSettings]:
    draw_pictures(tmp_path / "pictures" / "train", each=100)

    def make(folder: str, **changed: Any) -> BayesianSettings:
        given = FLAGS | {"dataset": tmp_path / "pictures", "checkpoint_dir": tmp_path / folder, "record_mean_var": True}
        flags = [f"--{name}={value}" for name, value in (given | changed).items()]
        return from_config(BayesianSettings, config_bayesian, flags)

    return make


def logs(tmp_path: Path, folder: str) -> dict[str, Path]:
    return {path.stem: path for path in (tmp_path / folder / "pictures" / "bayesian" / "lenet").glob("*.sqlite")}


def weights(tmp_path: Path, folder: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(tmp_path / folder / "pictures" / "bayesian" / "last.pt")["weights"]
    return state


def test_a_killed_run_is_resumed_without_gap_or_double(
    tmp_path: Path, settings: Callable[..., BayesianSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run(settings("plain", record_mean_var=False))
    loop.run(settings("whole"))
    assert not logs(tmp_path, "plain") and len(logs(tmp_path, "whole")) == 5
    assert same_values(weights(tmp_path, "plain"), weights(tmp_path, "whole")), "recording changed the weights"

    flags = FLAGS | {"dataset": tmp_path / "pictures", "checkpoint_dir": tmp_path / "killed", "record_mean_var": True}
    # Of low priority, so that on a busy machine it is not done before it is killed.
    words = ("main_bayesian.py", *(f"--{name}={value}" for name, value in flags.items()))
    with Program(*words, prepare=partial(os.nice, 10)) as child:
        assert any(line.startswith("epoch 1/4") for line in child.stdout)
        fc3 = tmp_path / "killed" / "pictures" / "bayesian" / "lenet" / "fc3.sqlite"
        while len(read_recording(fc3).epoch) < 30:
            assert child.returncode is None
        child.kill()
    killed = read_recording(fc3)
    assert 30 <= len(killed.epoch) < 80
    loop.run(settings("killed", resume=True))
    for name, path in logs(tmp_path, "killed").items():
        assert same(read_recording(path), read_recording(logs(tmp_path, "whole")[name])), name
    assert len(read_recording(fc3).epoch) == 80 and read_recording(fc3).posterior_epoch.tolist() == [1, 2, 3, 4]

    capsys.readouterr()
    loop.run(settings("killed", record_layers="fc3", n_epochs=1))  # anew: what was recorded before is kept
    assert f"fc3.sqlite of an earlier run went to {fc3.parent / 'earlier' / '1'}\n" in capsys.readouterr().out
    assert list(logs(tmp_path, "killed")) == ["fc3"] and len(read_recording(fc3).epoch) == 20
    assert len(read_recording(fc3.parent / "earlier" / "1" / "fc3.sqlite").epoch) == 80


def test_a_log_of_another_run_is_not_continued(tmp_path: Path, settings: Callable[..., BayesianSettings]) -> None:
    begun = settings("run", record_layers="fc3", n_epochs=1)
    loop.run(begun)
    (log,) = logs(tmp_path, "run").values()
    execute(log, "UPDATE moments SET crc32 = 0 WHERE step > 3")
    with pytest.raises(UserError, match=r"fc3\.sqlite lacks the record .* of another run"):
        loop.run(replace(begun, resume=True, n_epochs=2))


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    net = build("lenet", True, 3, 1)
    (tmp_path / "fc3.sqlite").write_text("mine")
    with (
        pytest.raises(UserError, match=r"fc3\.sqlite exists and is not a recording: move it away"),
        recording(net, tmp_path, 1, layers=["fc3"]) as recorder,
    ):
        net(torch.randn(2, 1, 32, 32))
        recorder.step()
    assert (tmp_path / "fc3.sqlite").read_text() == "mine"


def test_recordings_of_the_earlier_version_are_read_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fc.h5"
    path.write_bytes((ROOT / "tests" / "data" / "fc.h5").read_bytes())
    recorded = read_recording(path)
    assert (recorded.layer, recorded.kind, recorded.order, recorded.node_shape) == ("fc", "BBBLinear", 0, (2,))
    assert (recorded.frequency, recorded.batches, recorded.settings) == (2, 3, {"seed": 7})
    assert recorded.kept == "2 examples of a batch, 2 of 2 nodes, by seed 0"
    assert recorded.epoch.tolist() == [1, 1, 2, 2, 3] and recorded.batch.tolist() == [1, 2, 1, 2, 1]
    steps = np.array([0, 1, 3, 4, 6])[:, None]  # the input, and what had been added to every weight
    expected = steps * ([3, 12] + 3 * steps) + [1, -1]
    assert recorded.mean.tolist() == np.repeat(expected[:, None], 2, axis=1).tolist()
    np.testing.assert_allclose(recorded.variance[:, 1, 1], (3 * steps[:, 0] ** 2 + 1) * np.log(2) ** 2, rtol=1e-6)
    assert recorded.posterior_epoch.tolist() == [1, 2]
    weight, bias = recorded.weights["weight"], recorded.weights["bias"]
    assert weight.shape == (2, 3) and weight.mean.tolist() == [[3, 4, 5, 6, 7, 8], [6, 7, 8, 9, 10, 11]]
    assert bias.whole and bias.mean.tolist() == [[1, -1], [1, -1]]
    np.testing.assert_allclose(np.hstack([weight.std, bias.std]), np.log(2), rtol=1e-6)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="earlier version: pip install h5py"):
        patch.setitem(sys.modules, "h5py", None)
        read_recording(path)
    with recording(BBBLinear(3, 2, name="fc"), tmp_path, batches=1):
        assert f"the earlier recording went to {tmp_path / 'earlier' / '1'}" in capsys.readouterr().out
    assert (tmp_path / "earlier" / "1" / "fc.h5").exists() and not path.exists()


def test_a_wrong_layer_is_told_before_the_data_are_asked_for(script: Callable[..., Any]) -> None:
    answer = script("main_bayesian.py", "--record_mean_var", "--record_layers=conv1,fc9", "--dataset=nowhere", expect=2)
    assert answer.stderr == ("error: no Bayesian layer is called 'fc9': known are conv1, conv2, fc1, fc2, fc3\n")
    with pytest.raises(UserError, match="^--recording_freq_per_epoch: expected an integer ≥ 1"):
        from_config(BayesianSettings, config_bayesian, ["--recording_freq_per_epoch=0"])
