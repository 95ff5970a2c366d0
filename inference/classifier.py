"""A trained network that takes images as they are, and predicts their classes with uncertainties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from images import CHUNK, ImageFiles, Split, chunk_size, normalize, to_pixels
from inference.decisions import Decisions
from inference.prediction import Predictor, check_finite, posterior_predictive, predict_together
from inference.shipped import resolve
from likelihoods import Gaussian, Predictive, Summaries, Summary
from models import IMAGE_SIZE, Description, SavedNetwork, Size, load_network
from support import ALONE, UserError, World

MAPS = 1024  # images of 32×32 whose maps are predicted at a time
Images = Tensor | ImageFiles | Image.Image | str | Path | Sequence[Image.Image] | Sequence[str | Path]


class TakesImages:
    """What a trained network needs to take images as they are; the attributes are those of `Classifier`."""

    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Size
    center_crop: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the network takes."""
        return len(self.mean), *self.image_size

    def read(self, images: Images) -> Tensor | ImageFiles:
        """The images that `predict` takes as one batch: uint8 [n, *image_shape], or files that are not yet decoded.

        Raises:
            TypeError: `images` is none of what `predict` takes.
            ValueError: a tensor is not uint8, or images are of another shape.
        """
        channels = self.image_shape[0]
        how = channels, self.image_size, self.center_crop
        if isinstance(images, Tensor):
            return self._batch(images)
        if isinstance(images, ImageFiles):
            if (images.channels, images.size) != (channels, self.image_size):
                height, width = self.image_size
                raise ValueError(
                    f"expected image files read with {channels} channels of {height}×{width} pixels, got "
                    f"{images.channels} of {images.size[0]}×{images.size[1]}"
                )
            return images
        items = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        paths = [str(item) for item in items if isinstance(item, (str, Path))]
        if len(paths) == len(items):
            return ImageFiles(paths, *how)
        pictures = [item for item in items if isinstance(item, Image.Image)]
        if len(pictures) == len(items):
            return torch.stack([to_pixels(picture, *how) for picture in pictures])
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise TypeError(f"expected a uint8 tensor, PIL images, or paths of image files, got {kinds}")

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [n, *image_shape] as the network's float32 inputs, on its device."""
        return normalize(pixels.to(next(self.net.parameters(), pixels).device), self.mean, self.std)

    def _batch(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError(
                f"expected uint8 images, got {images.dtype}, whose range is unknown: give pixels from 0 to 255 as "
                f"uint8, or PIL images"
            )
        batch = images[None] if images.dim() == 3 else images
        if batch.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"expected images [n, {expected}] or one image [{expected}], got {list(images.shape)}: give PIL images "
                f"or paths to have them converted"
            )
        return batch.cpu()


@dataclass(frozen=True, eq=False)
class Classifier(TakesImages):
    """A network with the constants that normalize its images and the names of its classes.

    Attributes:
        net: a Bayesian or deterministic network, on the device where it predicts.
        classes: the names of the classes, by label.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: what its outputs are, as for `summarize`: None if an image is of one class, 'bernoulli' if each
            class applies to it or not.
        source: the file that it comes from; predictions that are not finite are then refused in its name.
        decisions: what was fitted on held-out images: the temperature that its logits are divided by, and which of its
            predictions are `accepted`. None for logits as they are, and for all.
        image_size: height and width of the images that the network takes.
        center_crop: whether the center of an image of another shape is cut out rather than the image stretched.
    """

    net: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    likelihood: str | None = None
    source: str | Path | None = None
    decisions: Decisions | None = None
    image_size: Size = IMAGE_SIZE
    center_crop: bool = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        net_type: str | None = None,
        *,
        calibrated: bool = True,
    ) -> Classifier:
        """The classifier in a checkpoint of the training scripts.

        Args:
            path: `model_<net_type>.pt` of a run, or the name of a network that comes with the library (`SHIPPED`).
            device: where it predicts.
            net_type: the `package.module:factory` that the file may call, for a network of your own.
            calibrated: whether to use the `Decisions` that `python -m inference.calibrate` added to the file, if any.

        Raises:
            UserError: the file is missing, is no checkpoint of this library, or has weights that are not finite or
                broken decisions.
        """
        return cls.from_saved(load_finite_network(path, device, net_type), path, calibrated=calibrated)

    @classmethod
    def from_saved(cls, saved: SavedNetwork, source: str | Path, *, calibrated: bool = True) -> Classifier:
        """The classifier of a checkpoint that is loaded already, from the file `source`; as `load`.

        Raises:
            UserError: the file has broken decisions, or a network for regression.
        """
        classifier = cls.from_description(saved.net, saved.description, source)
        decisions = Decisions.from_content(saved.content, source) if calibrated else None
        return replace(classifier, decisions=decisions)

    @classmethod
    def from_description(cls, net: nn.Module, description: Description, source: str | Path | None = None) -> Classifier:
        """The classifier of a network that is loaded already, from the file `source`, without decisions.

        Raises:
            UserError: the network is one for regression.
        """
        if isinstance(description.likelihood, Gaussian):
            raise UserError(f"{source or 'the network'} is for regression: load it by inference.Regressor")
        return cls(
            net,
            description.classes,
            description.mean,
            description.std,
            likelihood="categorical" if description.maps else description.likelihood.reading,
            source=source,
            image_size=description.image_size,
            center_crop=description.center_crop,
        )

    @property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return 1.0 if self.decisions is None else self.decisions.temperature

    def predict(
        self,
        images: Images,
        num_samples: int = 25,
        seed: int = 0,
        *,
        method: str = "draws",
        workers: int = 0,
        world: World = ALONE,
    ) -> Predictive:
        """The posterior predictive for images, in their order.

        Args:
            images: a uint8 tensor [n, *image_shape], or one image [*image_shape]; or PIL images, paths of image files
                (one or a sequence) or `ImageFiles`, which are converted to grey or RGB and resized to `image_shape`.
            num_samples: draws from the posterior.
            seed: of the draws.
            method: 'draws', or 'moments' for a single pass without draws (see `posterior_predictive`).
            workers: processes that decode image files.
            world: the processes that predict together; each predicts its share of the images and gets the whole.

        Raises:
            TypeError: `images` is none of these.
            ValueError: a tensor is not uint8, or images are of another shape; `num_samples` is below 1; the outputs
                are not one per class, or not what the likelihood reads.
            UserError: an image file cannot be read; there are fewer images than processes; by moments, the network has
                an operation without a rule; the network is from a file and its outputs are not finite.
        """
        predictive = partial(
            posterior_predictive,
            self.net,
            num_samples=num_samples,
            seed=seed,
            method=method,
            likelihood=self.likelihood,
            temperature=self.temperature,
        )
        return self._predict(predictive, images, workers, world)

    def predictor(
        self, num_samples: int = 25, seed: int = 0, *, method: str = "draws"
    ) -> Callable[[Images], Predictive]:
        """`predict` for images that come again and again: the draws, or the moments of the weights, are made once.

        Args:
            num_samples: draws from the posterior, each of which takes as much memory as the network.
            seed: of the draws.
            method: as for `predict`.

        Returns:
            A function of images, as `predict` takes them.

        Raises:
            ValueError: `num_samples` is below 1, or the method is unknown.
        """
        predictor = Predictor(
            self.net, num_samples, seed, method=method, likelihood=self.likelihood, temperature=self.temperature
        )
        return partial(self._predict, predictor)

    def _predict(
        self, predictive: Callable[[Tensor], Predictive], images: Images, workers: int = 0, world: World = ALONE
    ) -> Predictive:
        def predict_chunk(pixels: Tensor) -> Predictive:
            result = predictive(self.normalize(pixels))
            if result.probs.shape[1] != len(self.classes):
                raise ValueError(f"expected {len(self.classes)} outputs, one per class, got {result.probs.shape[1]}")
            if self.source is not None and not result.expected_log_probs.isfinite().all():
                raise UserError(
                    f"{self.source} holds a network whose outputs for these images are not finite: train it again, "
                    f"with a smaller lr_start"
                )
            return result if self.decisions is None else replace(result, accepted=self.decisions.accepts(result))

        chunk = MAPS if self.likelihood == "categorical" else CHUNK
        return predict_chunks(self.read(images), predict_chunk, workers, world, chunk)


def load_finite_network(
    path: str | Path, device: torch.device | str = "cpu", net_type: str | None = None
) -> SavedNetwork:
    """`models.load_network`, of a network whose weights are finite; or by its name, of one that comes with the library.

    Raises:
        UserError: as `load_network`; the weights are not finite.
    """
    saved = load_network(resolve(path), device, net_type)
    check_finite(saved.net, path)
    return saved


def load_networks(
    paths: Sequence[tuple[str, str | Path]], net_type: str, device: torch.device | str
) -> dict[Path, SavedNetwork]:
    """The networks in these checkpoints, for a comparison, by their paths.

    Args:
        paths: names and files; what is named 'bayesian' or 'frequentist' is of that family, and a `net_type`.
        net_type: as for `load_finite_network`.
        device: where they predict.

    Raises:
        UserError: as `load_finite_network`; two have the same name; a file holds a network of the other family, or
            another one.
    """
    networks = {}
    names = [name for name, _ in paths]
    for name, path in paths:
        if names.count(name) > 1:
            raise UserError(f"there are two networks named {name}: give each a name of its own")
        networks[Path(path)] = load_finite_network(path, device, net_type)
        description = networks[Path(path)].description
        if name not in ("bayesian", "frequentist"):
            continue
        if description.bayesian != (name == "bayesian"):
            raise UserError(
                f"{path} does not hold a {name} network: give --weights_path a checkpoint of main_bayesian.py, "
                f"--frequentist_weights one of main_frequentist.py"
            )
        if description.net_type != net_type:
            raise UserError(
                f"{path} holds a {description.net_type}, not a {net_type}: give --net_type {description.net_type}"
            )
    return networks


def predict_chunks(
    images: Tensor | ImageFiles,
    predict: Callable[[Tensor], Summary],
    workers: int = 0,
    world: World = ALONE,
    chunk: int = CHUNK,
) -> Summary:
    """The predictive for images of which only a chunk is decoded and normalized at a time.

    Args:
        images: uint8 [n, channels, height, width], or image files.
        predict: the predictive for a chunk of them, uint8.
        workers: processes that decode image files.
        world: the processes that predict together; each predicts its share of the images and gets the whole.
        chunk: how many images of 32×32 are a chunk; of larger ones, fewer.

    Raises:
        UserError: an image file cannot be read; there are fewer images than processes.
    """
    if len(images) < world.size:
        raise UserError(f"expected at least {world.size} images, one per process, got {len(images)}")
    split = Split(images, torch.zeros(len(images), dtype=torch.int64))

    def predict_at(indices: Tensor) -> Summary:
        batches = split.batches(chunk_size(split.image_size, chunk), indices, workers)
        return Summaries.concatenate([predict(pixels) for pixels, _ in batches])

    return predict_together(len(images), predict_at, world)
