"""A trained torchvision network made Bayesian around its weights (MOPED), and its entropy for digits and for noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision.models import resnet18

from inference import posterior_predictive
from layers import (
    ModuleWrapper,
    deterministic_layers,
    kl_divergence,
    parameter_groups,
    to_bayesian,
    to_deterministic,
)


def main(steps: int = 60) -> float:
    """Train a ResNet-18 on digits briefly, convert it, train on, and return the Bayesian network's test accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    images, labels = F.interpolate(images, scale_factor=4), torch.tensor(digits.target)
    train, test = torch.randperm(len(labels)).split([1400, len(labels) - 1400])

    plain = resnet18(num_classes=10)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        F.cross_entropy(plain(images[batch]), labels[batch]).backward()
        optimizer.step()

    bayesian = to_bayesian(
        plain, layer_type="bbb", moped=0.1, prior_at_means=True, priors={"prior_sigma": 0.05}
    )  # σ starts at 0.1 |w|, the prior is centered at w
    unconverted = ", ".join(deterministic_layers(bayesian)[:3])
    print(f"KL {kl_divergence(bayesian):,.0f} nats; layers that stay deterministic: {unconverted} …")
    net = ModuleWrapper(bayesian)  # a call returns (logits, kl)
    optimizer = torch.optim.Adam(parameter_groups(net, lr=1e-4))  # σ learns ten times as fast
    for _ in range(steps // 3):
        batch = train[torch.randint(len(train), (64,))]
        logits, kl = net(images[batch])
        optimizer.zero_grad()
        (F.cross_entropy(logits, labels[batch]) + 0.01 * kl / len(train)).backward()
        optimizer.step()

    predictive = posterior_predictive(net, images[test], num_samples=10)
    accuracy = (predictive.labels == labels[test]).float().mean().item()
    noise = posterior_predictive(net, torch.rand(100, 3, 32, 32), num_samples=10)
    entropies = f"entropy of digits {predictive.entropy.mean():.3f}, of noise {noise.entropy.mean():.3f}"
    print(f"accuracy {accuracy:.2%}; {entropies}")
    assert type(to_deterministic(net.get_submodule("0")).fc) is torch.nn.Linear  # and back
    return accuracy


if __name__ == "__main__":
    main()
