"""A Bayesian U-Net on shapes that this script draws: it is less sure of a shape that it has never seen.

Disks and crosses on a noisy ground are to be found in grey images, pixel by pixel; no training image has a triangle.
Writes the images and masks, the checkpoint, and a picture of the maps to a folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import config_bayesian
from inference import Classifier
from inference.plots import plot_maps
from likelihoods import novelty
from support import OneLineParser, argument, report_user_errors, whole
from training import BayesianSettings, from_config, run

SIDE, CLASSES, UNKNOWN = 32, ("ground", "disk", "cross"), 3


def draw(random: np.random.Generator, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with two shapes of these classes, and the class of every pixel: uint8 [32, 32] each."""
    mask, brightness = Image.new("L", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
    for column in (0, 1):
        shape, radius = random.choice(classes), int(random.integers(4, 7))
        x, y = int(random.integers(7, 9)) + 16 * column, int(random.integers(7, SIDE - 7))
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        for picture, value in ((mask, int(shape)), (brightness, int(random.integers(90, 160)))):
            pen = ImageDraw.Draw(picture)
            if shape == UNKNOWN:
                pen.polygon([(x, top), (left, bottom), (right, bottom)], value)
            elif CLASSES[shape] == "disk":
                pen.ellipse([left, top, right, bottom], value)
            else:
                pen.rectangle([left, y - 1, right, y + 1], value)
                pen.rectangle([x - 1, top, x + 1, bottom], value)
    pixels = np.asarray(brightness) + random.normal(40, 20, (SIDE, SIDE))
    return pixels.clip(0, 255).astype(np.uint8), np.asarray(mask)


def draw_many(count: int, seed: int, classes: tuple[int, ...] = (1, 2)) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 1, 32, 32] and masks uint8 [count, 32, 32]."""
    random = np.random.default_rng(seed)
    images, masks = zip(*(draw(random, classes) for _ in range(count)), strict=True)
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks))


def write(folder: Path, images: Tensor, masks: Tensor) -> None:
    """`images/` and `masks/`, a file each per image."""
    for name, pictures in (("images", images[:, 0]), ("masks", masks)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures.numpy()):
            Image.fromarray(picture).save(folder / name / f"{index:04d}.png")


def main(folder: Path, epochs: int = 15) -> dict[str, float]:
    """Draw, train, predict, write the picture of the maps, and return the scores on the test images.

    Besides those, `unknown entropy` and `unknown mutual information` are the AUROC by which these scores tell the
    pixels of triangles from those of disks and crosses.
    """
    data, checkpoints = folder / "shapes", folder / "checkpoints"
    write(data / "train", *draw_many(400, seed=0))
    write(data / "test", *draw_many(60, seed=1))
    (data / "classes.txt").write_text("\n".join(CLASSES))
    flags = {
        "dataset": data, "task": "segmentation", "net_type": "unet", "image_size": "own", "n_epochs": epochs,
        "lr_start": 3e-3, "batch_size": 16, "random_shift": 0, "valid_ens": 2, "checkpoint_dir": checkpoints,
        "layer_type": "lrt",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    results = run(from_config(BayesianSettings, config_bayesian, words))

    classifier = Classifier.load(checkpoints / "shapes" / "bayesian" / "model_unet.pt")
    (known, masks), (unknown, triangles) = draw_many(40, seed=2), draw_many(40, seed=3, classes=(UNKNOWN,))
    of_known, of_unknown = classifier.predict(known), classifier.predict(unknown)
    sets = {"known": (known, of_known), "never seen": (unknown, of_unknown)}
    print(plot_maps(folder / "maps.png", sets, CLASSES, {"known": masks}, count=3))
    scores = {"unknown entropy": (of_known.entropy, of_unknown.entropy)}
    scores["unknown mutual information"] = (of_known.mutual_information, of_unknown.mutual_information)
    figures = {name: novelty(one[masks > 0], other[triangles > 0])["auroc"] for name, (one, other) in scores.items()}
    print(", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return results["test"] | figures


if __name__ == "__main__":
    with report_user_errors():
        parser = OneLineParser(description=__doc__)
        parser.add_argument("folder", nargs="?", type=Path, default="shapes", help="(%(default)s)")
        parser.add_argument("--epochs", type=argument(whole(1)), default=15, help="(%(default)s)")
        args = parser.parse_args()
        main(args.folder, args.epochs)
