"""Nothing that was good is lost, nothing that is bad is taken for good."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Script, bayesian_settings, run_files, same
from kills import kill_runs
from torch import nn

import inference.export
import inference.prune
import uncertainty_estimation
from experiments import report
from images import folders
from models import load_network, read_checkpoint, write_checkpoint
from recording import read_recording
from support import UserError, locked, write_text
from tests.processes import Program, run_program
from training import BayesianSettings, Curves, Row, Setup, loop, run, start


@pytest.fixture
def settings(pictures: Path, tmp_path: Path) -> BayesianSettings:
    return bayesian_settings(pictures, tmp_path, n_epochs=6, batch_size=20, valid_ens=1, test_ens=2)


def folder(settings: BayesianSettings) -> Path:
    return run_files(settings).last.parent


def test_a_damaged_checkpoint_is_refused_in_one_line(finished_run: BayesianSettings, tmp_path: Path) -> None:
    """Cut off at 100 lengths, and with a bit flipped at 200 places: refused, or, where the bit means nothing, equal."""
    best, path = run_files(finished_run).best, tmp_path / "model_lenet.pt"
    whole, content = best.read_bytes(), read_checkpoint(best)
    chance = random.Random(0)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(100)]
    for _ in range(200):
        at = chance.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    refused = 0
    for bad in damaged:
        path.write_bytes(bad)
        try:
            assert same(read_checkpoint(path), content), "a damaged checkpoint was taken for good"
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 250


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="is not a readable checkpoint: its parts are compressed"):
        load_network(path)


def test_thirty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL, SIGTERM and SIGINT in turn: the resumed run ends with the weights of one that was left alone."""
    kill_runs(30, 1, tmp_path, cases=[(True, 1)], epochs=40)


def test_the_same_seed_gives_the_same_results(settings: BayesianSettings, tmp_path: Path) -> None:
    reports = []
    for name, workers in (("one", 0), ("two", 0), ("three", 2)):
        each = replace(settings, checkpoint_dir=str(tmp_path / name), n_epochs=2, num_workers=workers)
        results = run(each)
        report = json.loads((run_files(each).reports / "results.json").read_text())
        assert report["test"] == results["test"]
        validation = {key: value for key, value in report["validation"].items() if key != "seconds"}
        reports.append((report["test"], validation))
    assert reports[0] == reports[1] == reports[2]


def test_deterministic_algorithms_are_switched_on(settings: BayesianSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    start(settings)
    assert calls == []
    start(replace(settings, deterministic=True))
    assert calls == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_an_operation_without_a_deterministic_algorithm_is_one_line(
    settings: BayesianSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*arguments: object) -> torch.Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(loop, "step", step)
    message = "nll_loss2d has no deterministic implementation, but you set it. You can turn it off.\nMore lines"
    with pytest.raises(UserError, match="^nll_loss2d has no deterministic implementation: leave out deterministic for"):
        run(settings)
    message = "another error"
    with pytest.raises(RuntimeError, match="another error"):
        run(settings)


def test_a_run_by_deterministic_algorithms_finishes(settings: BayesianSettings) -> None:
    try:
        results = run(replace(settings, deterministic=True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert results["test"]["accuracy"] > 0.7


def test_a_second_run_on_the_same_folder_is_refused(settings: BayesianSettings, script: Script) -> None:
    with locked(folder(settings)):
        answer = script(
            "main_bayesian.py", "--dataset", settings.dataset, "--checkpoint_dir", settings.checkpoint_dir, expect=2
        )
    assert f"another run is writing to {folder(settings)}" in answer.stderr and answer.stderr.count("\n") == 1
    assert [path.name for path in folder(settings).iterdir()] == [".lock"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"import time; from pathlib import Path; from support import locked\n" \
           f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"  # fmt: skip
    with Program("-c", code) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    finished_run: BayesianSettings, settings: BayesianSettings
) -> None:
    """No file may grow beyond half of last.pt: as on a disk that is full."""
    shutil.copytree(finished_run.checkpoint_dir, settings.checkpoint_dir, dirs_exist_ok=True)
    last = run_files(settings).last
    before = last.read_bytes()
    words = [f"--{name}={value}" for name, value in asdict(settings).items() if name in
             ("dataset", "checkpoint_dir", "batch_size", "lr_start")]  # fmt: skip
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    flags = ("--n_epochs=3", "--valid_ens=1", "--test_ens=2", "--resume")
    answer = run_program("main_bayesian.py", *words, *flags, prepare=limit, timeout=120)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"error: cannot write {last.parent}") and answer.stderr.count("\n") == 1
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".last*")) and not list(last.parent.glob(".model*"))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Within it no file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_for_a_recording_is_one_line_and_the_run_resumes(
    settings: BayesianSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = (
        replace(settings, checkpoint_dir=str(tmp_path / name), record_mean_var=True, record_layers=["fc1"], n_epochs=12)
        for name in ("whole", "broken")
    )
    run(whole)
    one, other = run_files(whole), run_files(broken)
    recordings = [files.reports / "fc1.sqlite" for files in (one, other)]
    size = recordings[0].stat().st_size - 100_000
    assert one.last.stat().st_size < size
    with pytest.raises(UserError, match=r"^cannot write .*fc1\.sqlite: [\w /]+$"), full_disk(size):
        run(broken)
    assert not list(other.reports.glob(".*"))
    assert len(read_recording(recordings[1]).posterior_epoch) >= read_checkpoint(other.last)["progress"]["epoch"] > 5
    run(replace(broken, resume=True))
    assert same(read_checkpoint(one.best)["weights"], read_checkpoint(other.best)["weights"])
    for name in ("epoch", "batch", "mean", "variance", "posterior_epoch"):
        np.testing.assert_array_equal(*(getattr(read_recording(path), name) for path in recordings))
    assert "Traceback" not in capfd.readouterr().err


def test_a_disk_that_is_full_for_tensorboard_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    curves = Curves(tmp_path)
    with full_disk(400), pytest.raises(UserError, match=r"cannot write .*tfevents\.\d+: File too large"):
        for epoch in range(1, 100):
            curves.add({"epoch": epoch, "train_nll": 0.5})
    with full_disk(10), pytest.raises(UserError, match=r"cannot write .*tfevents\.\d+: File too large"):
        Curves(tmp_path)
    assert capfd.readouterr().err == ""


def test_what_killed_runs_were_writing_is_deleted_by_the_next(settings: BayesianSettings) -> None:
    """And nothing else."""
    files = run_files(settings)
    leftovers = [files.last.parent / name for name in (".last.ab1_defg.pt", ".model_alexnet.abcdefgh.pt")]
    leftovers += [files.reports / name for name in (".history.00000000.csv", ".results.abcdefgh.json")]
    leftovers += [files.reports / ".fc3.abcdefgh.sqlite"]
    others = [files.last.parent / name for name in (".last.pt", ".notes.abcdefgh.pt", "last.abcdefgh.pt", ".DS_Store")]
    others += [files.reports / name for name in (".fc3.abcdefgh.png", ".last.abcdefgh.pt", ".history.abcd.csv")]
    for path in (*leftovers, *others):
        write_text(path, "")
    run(replace(settings, n_epochs=1))
    assert not any(path.exists() for path in leftovers) and all(path.exists() for path in others)


def test_a_folder_that_cannot_be_written_is_one_line(settings: BayesianSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write in .*file/bars/bayesian: Not a directory"):
        run(replace(settings, checkpoint_dir=str(tmp_path / "file")))


def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0  # who may write anywhere
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"cannot write .*results.json: Permission denied"):
            write_text(tmp_path / "results.json", "{}")
        with pytest.raises(UserError, match="cannot write in .*: Permission denied"), locked(tmp_path):
            pass
    finally:
        if root:
            os.seteuid(0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_missing_ends_the_run(settings: BayesianSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best network went with it: no later epoch is worth hours if it is not better."""
    validate, validations = loop.validate, count(1)

    def lose(net: nn.Module, setup: Setup) -> Row:
        row = validate(net, setup)
        if next(validations) == 3:
            shutil.rmtree(folder(settings))
            row["valid_nll"] = math.inf
        return row

    monkeypatch.setattr(loop, "validate", lose)
    with pytest.raises(UserError, match="model_lenet.pt is gone"):
        run(settings)


def test_a_long_run_grows_neither_in_memory_nor_in_open_files(settings: BayesianSettings) -> None:
    """SOAK_EPOCHS=2000 and -s print the figures of the README; otherwise it is shorter."""
    epochs = int(os.environ.get("SOAK_EPOCHS", 150))
    code = (
        "import sys, json, os, main_bayesian, training.loop as loop\n"
        "seen, save = [], loop.save\n"
        "def watched(state, setup):\n"
        "    save(state, setup)\n"
        "    pages = int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "    seen.append((pages / 2**20, len(os.listdir('/proc/self/fd'))))\n"
        "loop.save = watched\n"
        "main_bayesian.main(sys.argv[1:])\n"
        "print(json.dumps(seen))\n"
    )
    words = {"dataset": settings.dataset, "checkpoint_dir": settings.checkpoint_dir, "batch_size": 90, "valid_ens": 1,
             "test_ens": 1, "n_epochs": epochs}  # fmt: skip
    answer = run_program("-c", code, *(f"--{name}={value}" for name, value in words.items()), timeout=1200)
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout.splitlines()[-1])
    memory, files = zip(*seen, strict=True)
    early, late = memory[epochs // 5], memory[-1]
    print(
        f"{epochs} epochs: {early:.1f} MiB after a fifth, {late:.1f} MiB at the end, {files[0]} and {files[-1]} files"
    )
    assert late - early < 8 + 0.01 * epochs and files[-1] <= files[epochs // 5]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_broken_image_that_is_not_in_memory_is_found_before_training(
    split: str, settings: BayesianSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "free_memory", lambda: 0.0)
    root = tmp_path / "bars"
    shutil.copytree(settings.dataset, root)
    paths = start(replace(settings, dataset=str(root)))[1].data
    broken = Path(getattr(paths, split).images.paths[-1])
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match=f"^cannot read the image {broken}: "):
        start(replace(settings, dataset=str(root)))


def test_weights_whose_outputs_overflow_are_refused_by_the_name_of_their_file(
    finished_run: BayesianSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(run_files(finished_run).best)
    for name, weight in content["weights"].items():
        if name.endswith(".weight"):
            weight.fill_(1e30)
    path = tmp_path / "model.pt"
    write_checkpoint(path, content)
    known = ["--dataset", finished_run.dataset, "--unknown", "noise"]
    for main, flags in (
        (inference.prune.main, ["--num_samples=1"]),
        (inference.export.main, []),
        (uncertainty_estimation.main, [*known, "--num_samples=1"]),
    ):
        with pytest.raises(SystemExit) as end:
            main(["--weights_path", str(path), *flags])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {path} holds a network whose outputs for these images are not finite: ")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["meta", "mkldnn", "xla", "hpu", "privateuseone", "cuda:99", "cpu:-1", "", "x"])
def test_a_device_that_is_not_there_is_one_line(
    name: str, finished_run: BayesianSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        warnings.simplefilter("error")
        uncertainty_estimation.main(["--weights_path", str(run_files(finished_run).best), "--device", name])
    line = f"error: device {name!r} is not available here: use auto or cpu\n"
    assert end.value.code == 2 and capsys.readouterr().err == line


@pytest.mark.parametrize("family", ["Distribution", "ExponentialFamily", "Nothing", 3])
def test_a_checkpoint_with_a_prior_of_no_family_is_one_line(
    family: object, finished_run: BayesianSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(run_files(finished_run).best)
    content["description"]["architecture"]["priors"] = {"prior": {"family": family}}
    path = tmp_path / "model.pt"
    write_checkpoint(path, content)
    for main in (inference.prune.main, inference.export.main, uncertainty_estimation.main):
        with pytest.raises(SystemExit) as end:
            main(["--weights_path", str(path)])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {path} does not hold a network") and f"family {family!r}" in error


RESULT = next((ROOT / "experiments" / "results").glob("*.json"))


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 100_000, "null", "{}", '{"dataset": "MNIST", "net_type": "lenet", "method": "mine"}']
    + [RESULT.read_text().replace(f'"{name}"', '"x"') for name in ("dataset", "seed", "test", "unknown", "epochs")],
)
def test_a_foreign_result_of_an_experiment_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not the results of an experiment: delete it and run it again"):
        report.read(tmp_path)
    shutil.copy(RESULT, tmp_path / "a.json")
    assert len(report.read(tmp_path)) == 1


@pytest.mark.parametrize("name", ["train_ens", "valid_ens", "test_ens"])
def test_more_samples_than_are_of_use_are_refused(name: str, settings: BayesianSettings) -> None:
    with pytest.raises(UserError, match=f"{name}: expected .*an integer from 1 to 100000, got 1000000000"):
        replace(settings, **{name: 10**9})
