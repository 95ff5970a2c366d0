"""A Bayesian network of your own, trained in a few seconds on the 8×8 digits of scikit-learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from inference import posterior_predictive
from layers import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper, parameter_groups
from likelihoods import scores


class Net(ModuleWrapper):
    """The layers run in the order of their assignment; a call returns (logits, kl)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BBBConv2d(1, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = FlattenLayer(16 * 4 * 4)
        self.fc = BBBLinear(16 * 4 * 4, 10)


def main(epochs: int = 30) -> dict[str, float]:
    """Train on 1,400 digits, test on the other 397, and return the scores."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[:1400], order[1400:]
    net = Net()
    optimizer = torch.optim.Adam(parameter_groups(net, lr=3e-3))  # σ learns ten times as fast
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            logits, kl = net(images[batch])
            loss = F.cross_entropy(logits, labels[batch]) + 0.1 * kl / len(train)  # nats per example
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    predictive = posterior_predictive(net, images[test], num_samples=25)
    results = scores(predictive.probs, labels[test])
    print(", ".join(f"{name} {value:.4f}" for name, value in results.items()))
    least_certain = predictive.entropy.argsort(descending=True)[:3]
    print(f"least certain: {[_describe(labels[test][index], predictive.probs[index]) for index in least_certain]}")
    return results


def _describe(label: Tensor, probs: Tensor) -> str:
    return f"a {int(label)} classified as {int(probs.argmax())} with probability {float(probs.max()):.2f}"


if __name__ == "__main__":
    main()
