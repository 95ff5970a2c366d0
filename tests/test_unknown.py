"""Sets of unknown images by their names: real files of torchvision and folders, channels, copies of known images."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from conftest import draw_pictures
from PIL import Image
from torch import Tensor
from torchvision import datasets

from images import load_unknown
from support import UserError


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file as MNIST and its kin have it."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def write_clothes(root: Path, name: str = "FashionMNIST", count: int = 12) -> np.ndarray:
    """A tiny data set of torchvision's, in the files that it reads, of which the test images are returned."""
    test = np.random.default_rng(1).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for split, pixels in (("train", test[:3]), ("t10k", test)):
        write_idx(root / name / "raw" / f"{split}-images-idx3-ubyte", pixels)
        write_idx(root / name / "raw" / f"{split}-labels-idx1-ubyte", np.zeros(len(pixels), np.uint8))
    return test


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_the_test_images_of_torchvision_in_random_order(tmp_path: Path, name: str) -> None:
    test = write_clothes(tmp_path, name)
    first, again, other = (load_unknown(name, tmp_path, 1, seed=seed) for seed in (0, 0, 1))
    assert first.name == name and first.notes == () and first.images.shape == (12, 1, 32, 32)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert as_set(first.images) == as_set(other.images)
    means = sorted(first.images.double().mean((1, 2, 3)).tolist())
    assert means == pytest.approx(sorted(test.mean((1, 2)).tolist()), rel=0.05)  # resized, from 28 to 32


@pytest.mark.parametrize("folder", ["SVHN/test/7", "CIFAR100-png/test/apple", "CIFAR10"])
def test_a_folder_of_its_name_stands_in_for_what_is_not_downloaded(tmp_path: Path, folder: str) -> None:
    draw_pictures(tmp_path / folder, 3, mode="RGB")
    draw_pictures(tmp_path / "CIFAR100-png" / "train", 5, mode="RGB", seed=4)
    name = folder.split("/")[0].removesuffix("-png")
    loaded = load_unknown(name, tmp_path, 3)
    expected = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in (tmp_path / folder).rglob("*.png")
    }
    assert loaded.name == name and as_set(loaded.images) == expected and len(expected) == 6


def test_grey_becomes_color(tmp_path: Path) -> None:
    write_clothes(tmp_path)
    grey, color = load_unknown("FashionMNIST", tmp_path, 1), load_unknown("FashionMNIST", tmp_path, 3)
    assert torch.equal(color.images, grey.images.expand(-1, 3, -1, -1))
    assert color.notes == ("FashionMNIST: converted to RGB, which the networks take",)


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN"])
def test_color_becomes_grey_as_pillow_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of torchvision's own files, but for their checksums."""
    pixels = np.random.default_rng(2).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    if name == "SVHN":
        scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": np.ones((20, 1))})
    else:
        (tmp_path / "cifar-10-batches-py").mkdir()
        test = {"data": pixels.transpose(0, 3, 1, 2).reshape(20, -1), "labels": [0] * 20}
        for file, content in (("test_batch", test), ("batches.meta", {"label_names": ["thing"]})):
            (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(content))
    loaded, grey = (load_unknown(name, tmp_path, channels) for channels in (3, 1))
    assert as_set(loaded.images) == {image.transpose(2, 0, 1).tobytes() for image in pixels}
    assert as_set(grey.images) == {np.asarray(Image.fromarray(image).convert("L")).tobytes() for image in pixels}
    assert grey.notes == (f"{name}: converted to grey, which the networks take",)


def test_copies_of_known_images_are_taken_out_and_a_set_of_them_is_refused(tmp_path: Path) -> None:
    write_clothes(tmp_path)
    images = load_unknown("FashionMNIST", tmp_path, 1).images
    fresh = load_unknown("FashionMNIST", tmp_path, 1, [images[:2], images[5:6]])
    assert as_set(fresh.images) == as_set(images) - as_set(images[[0, 1, 5]])
    assert fresh.notes == ("FashionMNIST: left out 3 images that are exact copies of known ones",)
    with pytest.raises(UserError, match="FashionMNIST has no image that is not among the known ones: give another"):
        load_unknown("FashionMNIST", tmp_path, 1, [images])


def test_of_images_that_are_alike_one_is_taken(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "letters", 4, seed=9)
    alone = load_unknown(str(tmp_path / "letters"), tmp_path, 1)
    first = min((tmp_path / "letters").rglob("*.png"))
    for copy in range(5):
        (tmp_path / "letters" / f"again{copy}.png").write_bytes(first.read_bytes())
    again = load_unknown(str(tmp_path / "letters"), tmp_path, 1)
    assert as_set(again.images) == as_set(alone.images) and len(again.images) == len(alone.images) == 8
    assert again.notes == ("letters: left out 5 images that are exactly like another one of the set",)
    known = load_unknown(str(tmp_path / "letters"), tmp_path, 1, [alone.images[:3]])
    assert as_set(known.images) == as_set(alone.images[3:])


def test_noise_and_constants_are_uniform_and_by_seed(tmp_path: Path) -> None:
    for channels in (1, 3):
        noise, constants = (load_unknown(name, tmp_path, channels, seed=3).images for name in ("noise", "constants"))
        assert noise.shape == (2000, channels, 32, 32)
        assert len(constants) == len(as_set(constants)) > (250 if channels == 1 else 1990)  # of 256 greys
        counts = noise.flatten().bincount(minlength=256).double()
        expected = noise.numel() / 256
        assert ((counts - expected).square() / expected).sum() < 255 + 5 * (2 * 255) ** 0.5  # χ² of 255 degrees
        assert torch.equal(constants, constants[..., :1, :1].expand_as(constants))
        assert constants[..., 0, 0].double().mean().item() == pytest.approx(127.5, abs=4 * 73.9 / len(constants) ** 0.5)
        assert torch.equal(noise, load_unknown("noise", tmp_path, channels, seed=3).images)
        assert not torch.equal(noise, load_unknown("noise", tmp_path, channels, seed=4).images)


def test_a_set_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("FashionMNIST", f"FashionMNIST is not in {tmp_path}: download it there by torchvision.datasets.FashionMNIST"),
        ("SVHN", f"SVHN is not in {tmp_path}: .* or put a folder of its images at {tmp_path / 'SVHN'}"),
        ("CIFAR10", "CIFAR10 is not in"),
        ("notMNIST", "has no notMNIST_small or notMNIST_large and no folders A to J: give --not_mnist_dir"),
        ("FasionMNIST", "unknown set 'FasionMNIST': did you mean 'FashionMNIST'"),
        (str(tmp_path / "empty"), "holds no readable image"),
        (str(tmp_path / "none"), "unknown set .*none': there is no folder of this name"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_unknown(name, tmp_path, 1)
        assert "\n" not in str(error.value)
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match="SVHN cannot be read without scipy: pip install scipy"):
        load_unknown("SVHN", tmp_path, 3)
