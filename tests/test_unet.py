"""Segmentation: masks beside images, a U-Net by draws and by moments, maps of its uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import bayesian_settings
from PIL import ExifTags, Image
from torch import Tensor

from examples import segmentation
from images import load_data
from inference import (
    Classifier,
    calibrate,
    classify,
    load_training_data,
    posterior_draws,
    posterior_predictive,
    prune,
)
from inference.plots import plot_maps
from layers import weight_posteriors
from likelihoods import Predictive
from models import UNet, build, load_network
from support import UserError
from training import BayesianSettings, loop, run


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    for seed, (split, count) in enumerate((("train", 24), ("test", 6))):
        segmentation.write(root / split, *segmentation.draw_many(count, seed))
    (root / "classes.txt").write_text("ground\ndisk\n\ncross\n")
    return root


def settings(root: Path, folder: Path, **changes: Any) -> BayesianSettings:
    changes = {"task": "segmentation", "net_type": "unet", "n_epochs": 1, "batch_size": 8} | changes
    return bayesian_settings(root, folder, **changes)


def test_maps_have_the_size_of_their_images_and_depend_on_the_surroundings() -> None:
    net = UNet(3, 2)
    assert sum(parameter.numel() for parameter in net.parameters()) == 116_931
    for size in ((4, 4), (10, 7), (33, 16)):
        assert net(torch.randn(2, 2, *size)).shape == (2, 3, *size)
    images = torch.randn(1, 2, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(net(images)[0, :, 16, 16].sum(), images)
    seen = slope[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0)).min() > 20  # pixels, in either direction


@torch.no_grad()
def test_one_pass_by_moments_is_that_of_many_draws() -> None:
    net = build("unet", True, 3, 1, priors={"posterior_rho_initial": (-4.0, 0.1)}, layer_type="bbb").eval()
    for name, mean, _ in weight_posteriors(net):
        if name.startswith("0.head"):
            mean.mul_(20)
    images = torch.randn(3, 1, 14, 12)
    drawn = posterior_predictive(net, images, 100, likelihood="categorical")
    passed = posterior_predictive(net, images, method="moments", likelihood="categorical")
    assert passed.probs.shape == drawn.probs.shape == (3, 3, 14, 12)
    assert passed.mutual_information.shape == (3, 14, 12)
    assert (passed.probs - drawn.probs).abs().max() < 0.05
    assert 0.3 < passed.mutual_information.mean() / drawn.mutual_information.mean() < 3
    probs = torch.stack([next(iter(draw.children()))(images).softmax(1) for draw in posterior_draws(net, 100, 0)])
    torch.testing.assert_close(drawn.probs, probs.mean(0))


def test_masks_follow_their_images(shapes: Path, tmp_path: Path) -> None:
    data = load_data(str(shapes), "data", 0.25, 0, task="segmentation")
    assert data.classes == ("ground", "disk", "cross") and data.train.labels.dtype == torch.uint8
    images, masks = segmentation.draw_many(6, 1)
    assert torch.equal(data.test.images, images) and torch.equal(data.test.labels, masks)
    assert data.counts["test"]["ground"] == 6 and "test 6 (ground: 6, disk: " in data.report()
    large = load_data(str(shapes), "data", 0.25, 0, 0, task="segmentation", image_size=(64, 64))
    assert torch.equal(large.test.labels[:, ::2, ::2], masks) and torch.equal(large.test.labels[:, 1::2, 1::2], masks)
    assert large.fingerprint != data.fingerprint
    (shapes / "classes.txt").unlink()
    assert load_data(str(shapes), "data", 0.25, 0, task="segmentation").classes == ("0", "1", "2")


def test_a_mask_is_upright_as_its_image_is_read(shapes: Path) -> None:
    path = shapes / "test" / "images" / "0003.png"
    images, masks = segmentation.draw_many(6, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned by 90°
    picture, mask = (Image.fromarray(pixels[3].squeeze().numpy()[:20]) for pixels in (images, masks))
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    mask.save(shapes / "test" / "masks" / path.name)
    read = load_data(str(shapes), "data", 0.25, 0, task="segmentation").test
    assert torch.equal(read.images[3, 0], torch.from_numpy(np.array(picture.resize((32, 32), Image.BILINEAR))))
    assert torch.equal(read.labels[3], torch.from_numpy(np.array(mask.resize((32, 32), Image.NEAREST))))
    mask.transpose(Image.Transpose.ROTATE_90).save(shapes / "test" / "masks" / path.name)
    with pytest.raises(UserError, match=r"0003.png is of 32×20 pixels, its image of 20×32"):
        load_data(str(shapes), "data", 0.25, 0, task="segmentation")
    mask.transpose(Image.Transpose.ROTATE_90).save(shapes / "test" / "masks" / path.name, exif=exif)  # its own
    assert torch.equal(load_data(str(shapes), "data", 0.25, 0, task="segmentation").test.labels[3], read.labels[3])


def test_augmentation_moves_a_mask_with_its_image(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image that is its own mask, it stays that."""
    for path in (shapes / "train" / "masks").iterdir():
        Image.open(path).save(shapes / "train" / "images" / path.name)
    seen = []

    def step(state: Any, setup: Any, forward: Any, images: Tensor, targets: Tensor) -> Tensor:
        seen.append((images * setup.data.std[0] + setup.data.mean[0], targets))
        return torch.ones(4)

    monkeypatch.setattr(loop, "step", step)
    run(settings(shapes, tmp_path, random_shift=6, random_flip=True))
    original = load_data(str(shapes), "data", 0.1, 0, task="segmentation").train.labels
    targets = torch.cat([each for _, each in seen])
    assert targets.dtype == torch.int64 and not any(
        torch.equal(mask, first) for mask, first in zip(targets, original, strict=True)
    )
    for pixels, mask in seen:
        assert torch.equal((255 * pixels[:, 0]).round().long(), mask)


def test_a_run_on_masks(shapes: Path, tmp_path: Path) -> None:
    results = run(settings(shapes, tmp_path, n_epochs=2, lr_start=3e-3, likelihood={"class_weights": "balanced"}))
    assert results["class_iou"].keys() == {"ground", "disk", "cross"} and 0 <= results["test"]["iou"] <= 1
    matrix = torch.tensor(results["confusion"])
    assert matrix.sum() == 6 * 32 * 32
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    iou = (matrix.diagonal() / union)[union > 0].mean().item()
    assert results["test"]["iou"] == pytest.approx(iou, rel=1e-5)
    path = tmp_path / "shapes" / "bayesian" / "model_unet.pt"
    predictive = Classifier.load(path).predict(segmentation.draw_many(6, 1)[0], 3)
    assert predictive.probs.shape == (6, 3, 32, 32)
    assert load_training_data(load_network(path), path, "data").task == "segmentation"
    for command, flags in (
        (prune, ["--weights_path", path]),
        (calibrate, [path]),
        (classify, [path, shapes / "test"]),
    ):
        with pytest.raises(UserError, match=f"{path} is for the task segmentation: give a network for classification"):
            command.run(command.parse([*map(str, flags)]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "test" / "masks" / "0003.png").unlink(), "images/0003.png has no mask of its name in"),
        (
            lambda root: save(root, np.zeros((30, 32), np.uint8)),
            "0003.png is of 30×32 pixels, its image of 32×32",
        ),
        (
            lambda root: save(root, np.full((32, 32), 7, np.uint8)),
            "0003.png has the class 7: classes.txt has 3",
        ),
        (lambda root: save(root, np.zeros((32, 32, 3), np.uint8)), "0003.png has pixels of mode RGB: expected grey"),
        (lambda root: (root / "test" / "masks").rename(root / "m"), "test has no folder masks/: expected images/ and"),
        (lambda root: (root / "classes.txt").write_text("all"), "classes.txt has 1 classes: expected two or more"),
    ],
)
def test_a_wrong_mask_is_one_line_that_names_it(spoil: Any, message: str, shapes: Path) -> None:
    spoil(shapes)
    with pytest.raises(UserError, match=message) as error:
        load_data(str(shapes), "data", 0.25, 0, task="segmentation")
    assert "\n" not in str(error.value)


def save(root: Path, mask: np.ndarray[Any, Any]) -> None:
    Image.fromarray(mask).save(root / "test" / "masks" / "0003.png")


def test_a_network_without_maps_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lenet returns \(2, 3\) .*, expected \(logits \(2, 3, 32, 32\), kl\)"):
        run(settings(shapes, tmp_path, net_type="lenet"))


def test_the_maps_are_a_picture(tmp_path: Path) -> None:
    images, masks = segmentation.draw_many(3, 0)
    logits = torch.nn.functional.one_hot(masks.long(), 3).movedim(-1, 1) * 4.0
    predictive: Predictive = posterior_predictive(_Fixed(logits), torch.zeros(3, 1, 32, 32), likelihood="categorical")
    path = plot_maps(tmp_path / "maps.png", {"known": (images, predictive)}, segmentation.CLASSES, {"known": masks}, 2)
    picture = Image.open(path).convert("RGB")
    colors = {color for _, color in picture.getcolors(2**20) or ()}
    assert picture.width > 900 and {(0, 114, 178), (213, 94, 0)} <= colors  # those of the classes


class _Fixed(torch.nn.Module):
    """Logits that do not depend on the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]
