"""A trained network that takes images as they are, and predicts numbers with uncertainties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.classifier import Images, TakesImages, load_finite_network, predict_chunks
from inference.regression import regression_predictive
from likelihoods import Gaussian, GaussianLikelihood, RegressionPredictive
from models import IMAGE_SIZE, Description, Size
from support import ALONE, UserError, World


@dataclass(frozen=True, eq=False)
class Regressor(TakesImages):
    """A network with the constants that normalize its images, the names of its targets, and its likelihood.

    Attributes:
        net: a Bayesian or deterministic network, on the device where it predicts.
        targets: the names of the targets.
        mean: per channel, what is subtracted from pixels in [0, 1].
        std: per channel, what they are then divided by.
        likelihood: what turns its outputs into means and noise variances, in the units of the targets.
        source: the file that it comes from; predictions that are not finite are then refused in its name.
        image_size: height and width of the images that the network takes.
        center_crop: whether the center of an image of another shape is cut out rather than the image stretched.
    """

    net: nn.Module
    targets: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    likelihood: GaussianLikelihood
    source: str | Path | None = None
    image_size: Size = IMAGE_SIZE
    center_crop: bool = False

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", net_type: str | None = None) -> Regressor:
        """The regressor in a checkpoint of the training scripts; for the arguments see `Classifier.load`.

        Raises:
            UserError: the file is missing, is no checkpoint of this library or not of regression, or has weights that
                are not finite.
        """
        saved = load_finite_network(path, device, net_type)
        return cls.from_description(saved.net, saved.description, path)

    @classmethod
    def from_description(cls, net: nn.Module, description: Description, source: str | Path | None = None) -> Regressor:
        """The regressor of a network that is loaded already, from the file `source`.

        Raises:
            UserError: the network is not one for regression.
        """
        likelihood = description.likelihood
        if not isinstance(likelihood, Gaussian):
            raise UserError(f"{source or 'the network'} is not for regression: load it by inference.Classifier")
        return cls(
            net,
            description.classes,
            description.mean,
            description.std,
            likelihood.module,
            source,
            description.image_size,
            description.center_crop,
        )

    def predict(
        self,
        images: Images,
        num_samples: int = 25,
        seed: int = 0,
        *,
        method: str = "draws",
        workers: int = 0,
        world: World = ALONE,
    ) -> RegressionPredictive:
        """The posterior predictive for images, in their order; for the arguments see `Classifier.predict`.

        Raises:
            TypeError: `images` is none of what `Classifier.predict` takes.
            ValueError: a tensor is not uint8, or images are of another shape; `num_samples` is below 1.
            UserError: an image file cannot be read; there are fewer images than processes; by moments, the network has
                an operation without a rule; the network is from a file and its outputs are not finite.
        """

        def predict_chunk(pixels: Tensor) -> RegressionPredictive:
            inputs = self.normalize(pixels)
            result = regression_predictive(
                self.net, self.likelihood, inputs, num_samples, batch_size=256, seed=seed, method=method
            )
            if self.source is not None and not result.std.isfinite().all():
                raise UserError(
                    f"{self.source} holds a network whose outputs for these images are not finite: train it again, "
                    f"with a smaller lr_start"
                )
            return result

        return predict_chunks(self.read(images), predict_chunk, workers, world)
