"""Networks of the experiments alone: with dropout, a Bayesian last layer, an average, noise; a small ResNet-18."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layers import BBBLinear, CorrelatedGaussianPrior, GaussianPrior, ModuleWrapper, to_bayesian, weight_posteriors
from layers.estimators import output_moments
from models import NETWORKS, build

PRIOR_STD = 0.33
Factory = Callable[[int, int], nn.Module]


def with_dropout(net_type: str, rate: float) -> Factory:
    """A factory of the twin with dropout before every layer with weights but the first (Gal & Ghahramani 2016)."""

    def network(outputs: int, inputs: int) -> nn.Module:
        net = nn.Sequential()
        weighted = 0
        for name, child in NETWORKS[net_type][1](outputs, inputs).named_children():
            if any(True for _ in child.parameters()):
                weighted += 1
                if weighted > 1:
                    net.add_module(f"dropout{weighted - 1}", nn.Dropout(rate))
            net.add_module(name, child)
        return net

    return network


def with_filter_dropout(net_type: str, rate: float) -> Factory:
    """A factory of the twin with dropout behind all layers with weights but the last, of whole filters in convolutions.

    Pixels of one filter say much the same, so that dropping some of them takes little away (Tompson et al. 2015).
    """

    def network(outputs: int, inputs: int) -> nn.Module:
        net = nn.Sequential()
        children = dict(NETWORKS[net_type][1](outputs, inputs).named_children())
        *weighted, _ = (name for name, child in children.items() if any(True for _ in child.parameters()))
        for name, child in children.items():
            net.add_module(name, child)
            if name in weighted:
                net.add_module(f"{name}_dropout", (nn.Dropout2d if isinstance(child, nn.Conv2d) else nn.Dropout)(rate))
        return net

    return network


def with_bayesian_last_layer(net_type: str) -> Factory:
    """A factory of the twin with a posterior over the weights of its last layer alone."""

    def network(outputs: int, inputs: int) -> nn.Module:
        return ModuleWrapper(to_bayesian(NETWORKS[net_type][1](outputs, inputs), layers="last", inplace=True))

    return network


class Bounded(nn.Module):
    """A last layer that in training gives its logits' means m, and log Σ_k (exp(m_k + v_k/2) − exp(m_k)) as one more.

    Their cross-entropy is log Σ_k exp(m_k + v_k/2) − m_y, at least E[−log softmax(z)_y] for z ~ N(m, diag v) by
    Jensen's inequality: the bound that variational Bayesian last layers are trained by, without draws (Harrison et al.
    2024).
    """

    def __init__(self, head: BBBLinear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """[n, classes + 1] in training, a draw [n, classes] otherwise, of features [n, features]."""
        if not self.training:
            return self.head(features)
        mean, variance = output_moments(self.head, features)
        return torch.cat([mean, (mean + (variance / 2).expm1().log()).logsumexp(1, keepdim=True)], 1)


def with_bounded_last_layer(net_type: str) -> Factory:
    """A factory of the twin with a posterior over its last layer, which is trained by a bound, without draws."""

    def network(outputs: int, inputs: int) -> nn.Module:
        net = NETWORKS[net_type][1](outputs, inputs)
        *_, (name, head) = ((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear))
        net.set_submodule(name, Bounded(BBBLinear(head.in_features, head.out_features)))
        return ModuleWrapper(net)

    return network


class Noise(nn.Module):
    """In training, normal noise of a standard deviation that is uniform from 0 to `most` and the image's own."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        """Of the images' shape; in evaluation the images themselves."""
        if not self.training:
            return images
        std = self.most * torch.rand(len(images), *(1 for _ in images.shape[1:]), device=images.device)
        return images + std * torch.randn_like(images)


def lenet_noisy(outputs: int, inputs: int) -> nn.Module:
    """The twin, trained with noise on its normalized images."""
    return nn.Sequential(Noise(1.0), NETWORKS["lenet"][1](outputs, inputs))


def lenet_smooth(outputs: int, inputs: int) -> nn.Module:
    """LeNet with a prior of smooth first kernels (Fortuin et al. 2022): σ² exp(−d²/2) between positions d apart."""
    net = NETWORKS["lenet"][0](outputs, inputs, priors={"prior_sigma": PRIOR_STD})
    _, _, posterior = next(weight_posteriors(net))
    with torch.device("cpu"):
        places = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
        covariance = torch.exp(-0.5 * torch.cdist(places, places).square()) + 1e-3 * torch.eye(25)
        posterior.set_prior(CorrelatedGaussianPrior(PRIOR_STD**2 * covariance))
    return net


def lenet_fan_in(outputs: int, inputs: int) -> nn.Module:
    """LeNet with priors that are the narrower, the larger a weight's fan-in: σ_p² = 1/fan-in."""
    net = NETWORKS["lenet"][0](outputs, inputs, priors={"prior_sigma": PRIOR_STD})
    for _, mean, posterior in weight_posteriors(net):
        if mean.dim() > 1:
            posterior.set_prior(GaussianPrior(0.0, mean[0].numel() ** -0.5))
    return net


def resnet18(outputs: int, inputs: int) -> nn.Module:
    """Torchvision's ResNet-18, with its own first layers also for small images.

    `--net_type resnet18` keeps the resolution of images below 64 pixels at first, for fifteen times the operations.

    Args:
        outputs: how many classes.
        inputs: channels, of which it takes 3.
    """
    if inputs != 3:
        raise ValueError("expected images of 3 channels")
    return build("resnet18", False, outputs, inputs, image_size=(64, 64))  # the size from which the layers are its own


lenet_dropout = with_dropout("lenet", 0.05)
alexnet_dropout = with_dropout("alexnet", 0.1)
conv3fc_dropout = with_dropout("3conv3fc", 0.1)
lenet_filter_dropout = with_filter_dropout("lenet", 0.05)
lenet_last_layer = with_bayesian_last_layer("lenet")
lenet_bounded = with_bounded_last_layer("lenet")


def averaging(outputs: int, inputs: int) -> nn.Module:
    """Three convolutions and the average over the map, from which the logits are linear; for `to_bayesian`."""
    return nn.Sequential(
        nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, outputs),
    )  # fmt: skip
