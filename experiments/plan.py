"""What is run: methods, and for each data set and network their settings, epochs and seeds.

To add a method is a line in `METHODS`; to add a data set or a network, a `Block`. `python -m experiments run` does
what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """How a network is trained and asked.

    Attributes:
        title: what tables call it.
        bayesian: trained by main_bayesian.py's settings; otherwise by main_frequentist.py's.
        settings: what it sets differently from the configuration and the block.
        network: the name in `experiments.networks` of the factory that makes it, with {} for the architecture;
            None for the architecture itself.
        networks_of: it trains nothing and asks the networks of this method.
        members: of how many of them, seeds 0, 1, … each, it is the mean.
        dropout_at_work: dropout is left on when the network is asked, and every pass is a sample.
    """

    title: str
    bayesian: bool
    settings: Values = field(default_factory=dict)
    network: str | None = None
    networks_of: str | None = None
    members: int = 1
    dropout_at_work: bool = False


TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)

METHODS: dict[str, Method] = {
    "frequentist": Method("frequentist", False),
    "dropout": Method("frequentist, dropout", False, network="{}_dropout"),
    "mc_dropout": Method("MC dropout", False, networks_of="dropout", dropout_at_work=True),
    "ensemble": Method("ensemble of 5", False, networks_of="frequentist", members=5),
    **{
        f"{estimator}_{beta:g}": Method(
            f"Gaussian {estimator}, β = {beta:g}", True, {"layer_type": estimator, "beta_type": beta}
        )
        for estimator in ("lrt", "bbb")
        for beta in TEMPERATURES
    },
    "bbb_ensemble": Method("ensemble of 3 bbb, β = 0.03", True, networks_of="bbb_0.03", members=3),
    "lrt_ensemble": Method("ensemble of 3 lrt, β = 0.003", True, networks_of="lrt_0.003", members=3),
    "alpha": Method("alpha bbb, β = 0.03", True, {"alpha_shape": (1, 1), "layer_type": "bbb", "beta_type": 0.03}),
    "last_layer": Method(
        "Bayesian last layer, β = 1", True, {"layer_type": "lrt", "beta_type": 1.0}, network="{}_last_layer"
    ),
}


@dataclass(frozen=True)
class Block:
    """A data set and a network: the same splits, augmentation and epochs for every method.

    Attributes:
        common: settings of every method.
        bayesian, frequentist: settings of every method of the family.
        seeds: how many of them each method has, seeds 0, 1, …
    """

    dataset: str
    net_type: str
    seeds: Mapping[str, int]
    common: Values
    bayesian: Values = field(default_factory=dict)
    frequentist: Values = field(default_factory=dict)


BLOCKS = (
    Block(
        "MNIST",
        "lenet",
        {
            "frequentist": 5, "dropout": 3, "mc_dropout": 3, "ensemble": 1, "bbb_1": 3, "bbb_0.3": 1, "bbb_0.1": 1,
            "bbb_0.03": 3, "bbb_0.01": 1, "lrt_1": 3, "lrt_0.3": 1, "lrt_0.1": 1, "lrt_0.03": 3, "lrt_0.01": 3,
            "alpha": 3, "last_layer": 3, "bbb_ensemble": 1,
        },
        {"n_epochs": 30, "batch_size": 256, "lr_start": 3e-3},
    ),
    Block(
        "CIFAR10",
        "lenet",
        {
            "frequentist": 5, "dropout": 1, "mc_dropout": 1, "ensemble": 1, "bbb_1": 1, "bbb_0.3": 1, "bbb_0.1": 1,
            "bbb_0.03": 1, "bbb_0.01": 1, "bbb_0.003": 1, "lrt_1": 1, "lrt_0.1": 1, "lrt_0.03": 1, "lrt_0.01": 1,
            "lrt_0.003": 3, "alpha": 1, "last_layer": 1, "lrt_ensemble": 1,
        },
        {"n_epochs": 60, "batch_size": 128, "lr_start": 2e-3},
    ),
    Block(
        "CIFAR10",
        "alexnet",
        {"frequentist": 1, "dropout": 1, "mc_dropout": 1, "bbb_0.003": 1, "lrt_0.003": 1},
        {"n_epochs": 20, "batch_size": 128, "lr_start": 1e-3},
        {"priors": {"prior_sigma": 0.1}},
    ),
    Block(
        "CIFAR10",
        "3conv3fc",
        {"frequentist": 1, "bbb_0.003": 1, "lrt_0.003": 1},
        {"n_epochs": 12, "batch_size": 128, "lr_start": 1e-3},
        {"priors": {"prior_sigma": 0.1}},
    ),
    Block(
        "MNIST",
        "alexnet",
        {"frequentist": 1, "bbb_0.03": 1, "bbb_0.003": 1, "lrt_0.003": 1},
        {"n_epochs": 6, "batch_size": 128, "lr_start": 1e-3},
        {"priors": {"prior_sigma": 0.1}},
    ),
    Block(
        "CIFAR100",
        "lenet",
        {"frequentist": 1, "bbb_0.01": 1},
        {"n_epochs": 60, "batch_size": 128, "lr_start": 2e-3},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """One method, once."""

    block: Block
    method_name: str
    seed: int

    @property
    def method(self) -> Method:
        return METHODS[self.method_name]

    @property
    def name(self) -> str:
        """What its results and checkpoints are called."""
        return f"{self.block.dataset}-{self.block.net_type}-{self.method_name}-{self.seed}"

    @property
    def sources(self) -> tuple[Experiment, ...]:
        """The experiments whose networks it asks; itself if it trains one."""
        method = self.method
        if method.networks_of is None:
            return (self,)
        seeds = range(method.members) if method.members > 1 else (self.seed,)
        return tuple(Experiment(self.block, method.networks_of, seed) for seed in seeds)

    def settings(self) -> dict[str, Any]:
        """All that the run sets; the rest is as the configuration has it."""
        block, method = self.block, self.method
        family = block.bayesian if method.bayesian else block.frequentist
        network = block.net_type
        if method.network:
            network = f"experiments.networks:{method.network.format(block.net_type)}"
        return {**block.common, **family, **method.settings, "net_type": network, "seed": self.seed}


def experiments() -> Iterator[Experiment]:
    """All of the plan: the first seed of everything, then the second …, so that there is soon one of each."""
    for seed in range(max(max(block.seeds.values()) for block in BLOCKS)):
        for block in BLOCKS:
            yield from (Experiment(block, method, seed) for method, seeds in block.seeds.items() if seed < seeds)
