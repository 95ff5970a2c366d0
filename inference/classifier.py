"""A trained network that takes images as they are, and says which class they are and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from images import CHUNK, ImageFiles, Split, normalize
from inference.prediction import Predictive, posterior_predictive, predict_together
from models import load_network
from support import ALONE, World


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with the constants that normalize its images and the names of its classes.

    Attributes:
        net: a Bayesian or deterministic network, on the device where it predicts.
        classes: the names of the classes, by label.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    net: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", net_type: str | None = None) -> Classifier:
        """The classifier in a checkpoint of the training scripts.

        Args:
            path: `model_<net_type>.pt` of a run.
            device: where it predicts.
            net_type: the `package.module:factory` that the file may call, for a network of your own.

        Raises:
            UserError: the file is missing or is no checkpoint of this library.
        """
        net, description, _ = load_network(path, device, net_type)
        return cls(net, description.classes, description.mean, description.std)

    def predict(
        self,
        images: Tensor | ImageFiles,
        num_samples: int = 25,
        seed: int = 0,
        *,
        workers: int = 0,
        world: World = ALONE,
    ) -> Predictive:
        """The posterior predictive for images.

        Args:
            images: uint8 [n, channels, height, width], or image files.
            num_samples: draws of the posterior.
            seed: of the draws.
            workers: processes that decode image files.
            world: the processes that predict together; each takes its share of the images, all get the whole.

        Returns:
            The summaries, one row per image.
        """
        split = Split(images, torch.zeros(len(images), dtype=torch.int64))

        def chunks(indices: Tensor) -> Iterator[Tensor]:
            device = next(self.net.parameters()).device
            for pixels, _ in split.batches(CHUNK, indices, workers):
                yield normalize(pixels.to(device), self.mean, self.std)

        def predict_at(indices: Tensor) -> Predictive:
            return Predictive.concatenate(
                [posterior_predictive(self.net, chunk, num_samples, seed=seed) for chunk in chunks(indices)]
            )

        return predict_together(len(images), predict_at, world)
