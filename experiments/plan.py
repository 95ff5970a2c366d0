"""The plan of the experiments: methods, and for each data set and network their settings, epochs and seeds.

A new method is one more entry of `METHODS`; a new data set or network is one more `Block`. `python -m experiments
run` runs the experiments that have no results yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.recipes import recipe
from models import NETWORKS

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """How a network is trained and how it predicts.

    Attributes:
        title: the method's name in tables.
        bayesian: whether it is trained with the settings of config_bayesian.py or of config_frequentist.py.
        settings: settings that differ from the configuration and from the block.
        network: the factory in `experiments.networks` that builds the network, with {} in place of the
            architecture's name; None for the architecture itself.
        networks_of: the method whose trained networks are used; None if this method trains its own.
        members: number of networks, with seeds 0, 1, …, whose predictions are averaged.
        dropout_at_work: dropout stays on in prediction, and every pass is one sample (MC dropout).
        searched: the family, frequentist, dropout or bayesian, whose settings it has, as `python -m experiments search`
            found them; None if it has none of them.
        searched_on: the data set and the network of that search, if not those of the block.
        collects: SWAG collects the networks of the second half of the run's epochs, and predicts.
        laplace: the last layer is drawn from its Laplace approximation.
    """

    title: str
    bayesian: bool
    settings: Values = field(default_factory=dict)
    network: str | None = None
    networks_of: str | None = None
    members: int = 1
    dropout_at_work: bool = False
    searched: str | None = None
    searched_on: tuple[str, str] | None = None
    collects: bool = False
    laplace: bool = False


TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)

SGD: Values = {"optimizer": "sgd", "lr_start": 0.05}
AT_ONE_TRAINING: Values = {"n_epochs": 15, "lr_schedule": "cosine", "warmup_epochs": 5}
AT_ONE_SETTINGS: Values = {**AT_ONE_TRAINING, "beta_type": 1.0, "layer_type": "lrt"}
AT_ONE_RATES: Mapping[str, Values] = {
    "adam": {"lr_start": 2e-3},
    "sgd": {**SGD, "lr_spread_factor": 0.2},
    "ivon": {"optimizer": "ivon", "lr_start": 0.3},
}
AT_ONE: dict[str, Method] = {  # β = 1 and its controls
    f"one_{optimizer}_{prior}_{images}": Method(
        f"{optimizer.upper() if optimizer == 'ivon' else optimizer}, {prior} prior, {images} images",
        True,
        {
            **AT_ONE_SETTINGS,
            **rates,
            **({} if images == "augmented" else {"random_shift": 0, "random_flip": False}),
            "priors": {"learn_prior_sigma": True} if prior == "learned" else {"prior_sigma": 1.0},
        },
    )
    for optimizer, rates in AT_ONE_RATES.items()
    for prior in ("fixed", "learned")
    for images in ("augmented", "plain")
} | {
    "one_twin": Method("control: twin by sgd", False, {**AT_ONE_TRAINING, **SGD, "weight_decay": 2e-4}),
    "one_noise": Method(
        "control: sgd with fixed noise of σ = 0.0067",
        True,
        {**AT_ONE_SETTINGS, **SGD, "lr_spread_factor": 1e-9, "priors": {"prior_sigma": 0.3}},
    ),
}

BY_PATCHES: Values = {"first_filters": "patches"}  # as the configurations have it, and the runs before it had not

SHORT_TWIN: Values = {**AT_ONE_TRAINING, **SGD, "weight_decay": 2e-4}
SWAG: Values = {"lr_schedule": "constant", "lr_start": 0.02}
SHORT_BAYESIAN: Values = {**AT_ONE_TRAINING, **SGD, "beta_type": 1.0, "lr_spread_factor": 0.2}
SHORT_MEAN_FIELD: Values = {
    **SHORT_BAYESIAN, "layer_type": "bbb", "temperature": 3e-3, "priors": {"prior_sigma": 0.33},
}  # fmt: skip
RANK1: Values = {**SHORT_BAYESIAN, "layer_type": "lrt", "weight_decay": 2e-4, "priors": {"prior_sigma": 0.1}}
SHORT: dict[str, Method] = {  # what a posterior is compared with at equal price, and families, in short runs by SGD
    "short_twin": Method("twin, short", False, SHORT_TWIN),
    "short_dropout": Method("filter dropout, short", False, SHORT_TWIN, network="{}_filter_dropout"),
    "short_mc_dropout": Method("MC filter dropout, short", False, networks_of="short_dropout", dropout_at_work=True),
    "short_ensemble": Method("ensemble of 3, short", False, networks_of="short_twin", members=3),
    "short_swag": Method("SWAG, short", False, {**SHORT_TWIN, **SWAG}, collects=True),
    "short_laplace": Method("Laplace of the last layer, short", False, networks_of="short_twin", laplace=True),
    "short_last_layer": Method(
        "variational last layer, short", True, {**SHORT_BAYESIAN, "layer_type": "lrt", "weight_decay": 2e-4},
        network="{}_last_layer",
    ),
    "short_bounded": Method(
        "last layer by its bound, short", True, {**SHORT_BAYESIAN, "weight_decay": 2e-4}, network="{}_bounded"
    ),
    "short_low_rank": Method(
        "last layer of low rank, short", True,
        {**SHORT_BAYESIAN, "layer_type": "lrt", "weight_decay": 2e-4, "bayesian_layers": "last",
         "posterior": "low_rank"},
    ),
    "short_mean_field": Method("mean field, T = 0.003, short", True, SHORT_MEAN_FIELD),
    **{
        f"short_{family}": Method(
            f"{family.replace('_', '-')}, T = 0.003, short", True, {**SHORT_MEAN_FIELD, "posterior": family}
        )
        for family in ("k_tied", "radial")
    },
    "short_mean_field_ensemble": Method(
        "3 posteriors, T = 0.003, short", True, networks_of="short_mean_field", members=3
    ),
    **{
        f"short_patch_{strength}": Method(
            f"mean field, T = 0.003, patch prior of {strength}, short", True,
            {**SHORT_MEAN_FIELD, "patch_prior": float(strength)},
        )
        for strength in (10, 30, 100, 300)
    },
    "short_learned": Method(
        "mean field, β = 0.1, learned prior, short", True,
        {**SHORT_BAYESIAN, "layer_type": "bbb", "beta_type": 0.1, "priors": {"learn_prior_sigma": True}},
    ),
    "short_narrow": Method(
        "mean field, T = 0.003, prior σ of 0.1, short", True, {**SHORT_MEAN_FIELD, "priors": {"prior_sigma": 0.1}}
    ),
    **{
        f"short_narrow_patch_{strength}": Method(
            f"mean field, T = 0.003, prior σ of 0.1, patch prior of {strength}, short", True,
            {**SHORT_MEAN_FIELD, "priors": {"prior_sigma": 0.1}, "patch_prior": float(strength)},
        )
        for strength in (3, 10, 30, 100)
    },
    "short_twin_by_patches": Method("twin, filters from patches, short", False, {**SHORT_TWIN, **BY_PATCHES}),
    "short_narrow_by_patches": Method(
        "mean field, T = 0.003, prior σ of 0.1, filters from patches, short", True,
        {**SHORT_MEAN_FIELD, "priors": {"prior_sigma": 0.1}, **BY_PATCHES},
    ),
    "short_smooth": Method(
        "mean field, T = 0.003, smooth prior, short", True, SHORT_MEAN_FIELD, network="{}_smooth"
    ),
    "short_fan_in": Method(
        "mean field, T = 0.003, prior σ by fan-in, short", True, SHORT_MEAN_FIELD, network="{}_fan_in"
    ),
    "short_warmer": Method(
        "mean field, T = 0.03, short", True, {**SHORT_MEAN_FIELD, "temperature": 0.03}
    ),
    "short_noisy": Method("twin, trained with noise, short", False, SHORT_TWIN, network="{}_noisy"),
    "short_rank1": Method("rank-1, short", True, {**RANK1, "posterior": {"family": "rank1"}}),
    "short_rank1_4": Method("rank-1 of 4, short", True, {**RANK1, "posterior": {"family": "rank1", "components": 4}}),
    "short_batch_ensemble": Method(
        "BatchEnsemble of 4, short", True,
        {**RANK1, "posterior": {"family": "rank1", "components": 4, "factors": "point"}},
    ),
}  # fmt: skip

AS_CONFIGURED: Values = {"n_epochs": 30, "lr_start": 1e-3}
BAYESIAN_AS_CONFIGURED: Values = {**AS_CONFIGURED, "layer_type": "bbb", "beta_type": 0.03}
CONFIGURED: dict[str, Method] = {  # color images by the settings of config_bayesian.py and config_frequentist.py
    "configured_twin": Method("frequentist, as configured", False, AS_CONFIGURED),
    "configured_dropout": Method("frequentist, dropout, as configured", False, AS_CONFIGURED, network="{}_dropout"),
    "configured_mc_dropout": Method(
        "MC dropout, as configured", False, networks_of="configured_dropout", dropout_at_work=True
    ),
    "configured_laplace": Method(
        "Laplace of the last layer, as configured", False, networks_of="configured_twin", laplace=True
    ),
    "configured": Method("Gaussian, as configured", True, BAYESIAN_AS_CONFIGURED),
    **{
        f"configured_patch_{strength}": Method(
            f"Gaussian, as configured, patch prior of {strength:,}", True,
            {**BAYESIAN_AS_CONFIGURED, "patch_prior": float(strength)},
        )
        for strength in (100, 300, 1000, 3000, 10_000)
    },
}  # fmt: skip

OF_LENET = ("CIFAR10", "lenet")
NARROW_START: Values = {"priors": {"posterior_rho_initial": (-7, 0.1)}}
COLDER: Values = {"temperature": 3e-4}
AT_ONE_OF_LENET: Values = {"layer_type": "lrt", "temperature": 1.0, "weight_decay": 2.4e-3}  # the twin's decay

OWN_TABLES = (*AT_ONE, *SHORT, *CONFIGURED)  # methods that are not rows of the table of complete runs

METHODS: dict[str, Method] = {
    **AT_ONE,
    **SHORT,
    **CONFIGURED,
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
    **{
        f"patch_{strength:.0e}".replace("e+0", "e"): Method(
            f"Gaussian bbb, β = 0.03, patch prior of {strength:,}",
            True,
            {"layer_type": "bbb", "beta_type": 0.03, "patch_prior": float(strength)},
        )
        for strength in (10_000, 100_000, 1_000_000)
    },
    "frequentist_by_patches": Method("frequentist, filters from patches", False, BY_PATCHES),
    "bbb_0.03_by_patches": Method(
        "Gaussian bbb, β = 0.03, filters from patches", True, {"layer_type": "bbb", "beta_type": 0.03, **BY_PATCHES}
    ),
    "by_patches_1e4": Method(
        "Gaussian bbb, β = 0.03, filters from patches, patch prior of 10,000",
        True,
        {"layer_type": "bbb", "beta_type": 0.03, "patch_prior": 10_000.0, **BY_PATCHES},
    ),
    "laplace": Method("Laplace of the last layer", False, networks_of="frequentist", laplace=True),
    "twin_searched": Method("frequentist, searched", False, searched="frequentist"),
    "twin_of_lenet": Method(
        "frequentist, settings of LeNet on CIFAR-10", False, searched="frequentist", searched_on=OF_LENET
    ),
    **{
        name: Method(
            f"Gaussian, settings of LeNet on CIFAR-10{title}", True, changes, searched="bayesian", searched_on=OF_LENET
        )
        for name, title, changes in (
            ("of_lenet", "", {}),
            ("narrow_start_of_lenet", ", σ from 0.0009", NARROW_START),
            ("colder_narrow_start_of_lenet", ", σ from 0.0009, T = 0.0003", {**NARROW_START, **COLDER}),
            ("colder_of_lenet", ", T = 0.0003", COLDER),
        )
    },
    "dropout_of_lenet": Method(
        "frequentist, dropout, settings of LeNet on CIFAR-10",
        False,
        network="{}_dropout",
        searched="frequentist",
        searched_on=OF_LENET,
    ),
    "mc_dropout_of_lenet": Method(
        "MC dropout, settings of LeNet on CIFAR-10", False, networks_of="dropout_of_lenet", dropout_at_work=True
    ),
    "swag_of_lenet": Method(
        "SWAG, settings of LeNet on CIFAR-10",
        False,
        SWAG,
        searched="frequentist",
        searched_on=OF_LENET,
        collects=True,
    ),
    "laplace_of_lenet": Method(
        "Laplace of the last layer, settings of LeNet on CIFAR-10", False, networks_of="twin_of_lenet", laplace=True
    ),
    "dropout_searched": Method("frequentist, dropout, searched", False, network="{}_dropout", searched="dropout"),
    "mc_dropout_searched": Method("MC dropout, searched", False, networks_of="dropout_searched", dropout_at_work=True),
    "laplace_searched": Method("Laplace of the last layer, searched", False, networks_of="twin_searched", laplace=True),
    "searched": Method("Gaussian, searched", True, searched="bayesian"),
    "twin_at_rate": Method(  # the control of the search of 3Conv3FC
        "frequentist, rate and decay of the Gaussian's search",
        False,
        {"optimizer": "sgd", "lr_schedule": "cosine", "lr_start": 0.0462, "weight_decay": 1.273e-3},
    ),
    "patch_searched": Method("Gaussian, searched, patch prior of 30", True, {"patch_prior": 30.0}, searched="bayesian"),
    **{
        f"{name}_of_lenet": Method(
            f"{title}, settings of LeNet on CIFAR-10",
            True,
            {
                **AT_ONE_OF_LENET,
                "posterior": {"family": "rank1", **options},
                "priors": {"prior_sigma": prior_sigma},
            },
            searched="bayesian",
            searched_on=OF_LENET,
        )
        for name, title, options, prior_sigma in (
            ("rank1", "rank-1, β = 1", {}, 0.1),
            ("narrow_rank1", "rank-1, β = 1, prior σ of 0.03", {}, 0.03),
            ("rank1_4", "rank-1 of 4, β = 1", {"components": 4}, 0.1),
            ("batch_ensemble", "BatchEnsemble of 4", {"components": 4, "factors": "point"}, 0.1),
        )
    },
    "last_layer_of_lenet": Method(
        "Bayesian last layer, β = 1, settings of LeNet on CIFAR-10",
        True,
        {**AT_ONE_OF_LENET, "bayesian_layers": "last"},
        searched="bayesian",
        searched_on=OF_LENET,
    ),
    "last_layer": Method(
        "Bayesian last layer, β = 1", True, {"layer_type": "lrt", "beta_type": 1.0}, network="{}_last_layer"
    ),
}


@dataclass(frozen=True)
class Block:
    """A data set and a network, with the same splits, augmentation and epochs for every method.

    Attributes:
        dataset: the data set's name.
        net_type: a key of `models.NETWORKS`, or the name of a factory in `experiments.networks`.
        seeds: the number of runs per method; they have the seeds 0, 1, …
        common: settings of every method.
        bayesian: settings of every Bayesian method.
        frequentist: settings of every frequentist method.
        searched_by: settings of the runs of its search that differ from those of the block.
    """

    dataset: str
    net_type: str
    seeds: Mapping[str, int]
    common: Values
    bayesian: Values = field(default_factory=dict)
    frequentist: Values = field(default_factory=dict)
    searched_by: Values = field(default_factory=dict)


SEARCHED_SEEDS = dict.fromkeys(("twin_searched", "dropout_searched", "mc_dropout_searched", "searched"), 3)
SHORT_SEEDS = dict.fromkeys(SHORT, 1) | {
    **dict.fromkeys(("short_dropout", "short_mc_dropout", "short_swag", "short_laplace"), 3),
    **dict.fromkeys(("short_last_layer", "short_rank1"), 3), "short_twin": 5, "short_mean_field": 5,
}  # fmt: skip
CONFIGURED_SEEDS = dict.fromkeys(CONFIGURED, 1) | {"configured_twin": 3, "configured_laplace": 3, "configured": 3}
AGAINST_NOISE = {  # tried on CIFAR-10 alone
    "short_patch_10", "short_patch_300", "short_learned", "short_narrow", "short_narrow_patch_3",
    "short_narrow_patch_10", "short_narrow_patch_30", "short_narrow_patch_100", "short_smooth", "short_fan_in",
    "short_warmer", "short_twin_by_patches", "short_narrow_by_patches", "short_noisy",
}  # fmt: skip
OF_LENET_SEEDS = dict.fromkeys((  # of wide networks
    "twin_of_lenet", "dropout_of_lenet", "mc_dropout_of_lenet", "swag_of_lenet", "laplace_of_lenet", "of_lenet",
    "narrow_start_of_lenet", "colder_narrow_start_of_lenet", "narrow_rank1_of_lenet",
), 1)  # fmt: skip
BLOCKS = (
    Block(
        "MNIST",
        "lenet",
        {
            "frequentist": 5, "dropout": 3, "mc_dropout": 3, "ensemble": 1, "bbb_1": 3, "bbb_0.3": 1, "bbb_0.1": 1,
            "bbb_0.03": 3, "bbb_0.01": 1, "lrt_1": 3, "lrt_0.3": 1, "lrt_0.1": 1, "lrt_0.03": 3, "lrt_0.01": 3,
            "alpha": 3, "last_layer": 3, "bbb_ensemble": 1, "laplace": 3, "patch_1e4": 1, "patch_1e5": 3,
            "patch_1e6": 1, "frequentist_by_patches": 3, "bbb_0.03_by_patches": 3, "by_patches_1e4": 3,
            "twin_of_lenet": 3, "of_lenet": 3, "twin_searched": 3, "searched": 3, **dict.fromkeys(AT_ONE, 1),
            **{name: seeds for name, seeds in SHORT_SEEDS.items() if name not in AGAINST_NOISE},
        },
        {"n_epochs": 30, "batch_size": 256, "lr_start": 3e-3},
        searched_by={"n_epochs": 10},
    ),
    Block(
        "FashionMNIST",
        "lenet",
        dict.fromkeys(("short_twin", "short_laplace", "short_mean_field"), 2),
        {"batch_size": 256},
    ),
    Block(
        "CIFAR10",
        "lenet",
        {
            "frequentist": 5, "dropout": 1, "mc_dropout": 1, "ensemble": 1, "bbb_1": 1, "bbb_0.3": 1, "bbb_0.1": 1,
            "bbb_0.03": 1, "bbb_0.01": 1, "bbb_0.003": 1, "lrt_1": 1, "lrt_0.1": 1, "lrt_0.03": 1, "lrt_0.01": 1,
            "lrt_0.003": 3, "alpha": 1, "last_layer": 1, "lrt_ensemble": 1, "patch_searched": 3,
            **SEARCHED_SEEDS, **dict.fromkeys(AT_ONE, 1), **SHORT_SEEDS, **CONFIGURED_SEEDS,
        },
        {"n_epochs": 60, "batch_size": 128, "lr_start": 2e-3},
        searched_by={"n_epochs": 20},
    ),
    Block(
        "CIFAR10",
        "alexnet",
        {
            "frequentist": 1, "dropout": 1, "mc_dropout": 1, "bbb_0.003": 1, "lrt_0.003": 1, "twin_searched": 1,
            "searched": 1, "colder_of_lenet": 1, **OF_LENET_SEEDS,
        },
        {"n_epochs": 20, "batch_size": 128, "lr_start": 1e-3},
        {"priors": {"prior_sigma": 0.1}},
        searched_by={"n_epochs": 7, "amp": True},
    ),
    Block(
        "CIFAR10",
        "3conv3fc",
        {
            "frequentist": 1, "bbb_0.003": 1, "lrt_0.003": 1, **OF_LENET_SEEDS, "twin_of_lenet": 2,
            "narrow_start_of_lenet": 2, "rank1_of_lenet": 1, "rank1_4_of_lenet": 1, "batch_ensemble_of_lenet": 1,
            "twin_searched": 1, "searched": 2, "twin_at_rate": 2,
        },
        {"n_epochs": 12, "batch_size": 128, "lr_start": 1e-3},
        {"priors": {"prior_sigma": 0.1}},
        searched_by={"n_epochs": 6, "amp": True},
    ),
    Block(
        "CIFAR10",
        "resnet18",
        dict.fromkeys(("twin_of_lenet", "laplace_of_lenet", "last_layer_of_lenet", "narrow_rank1_of_lenet"), 1),
        {"n_epochs": 8, "batch_size": 128, "amp": True},
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
        {"twin_of_lenet": 1, "of_lenet": 1, "twin_searched": 3, "searched": 3},
        {"n_epochs": 60, "batch_size": 128, "lr_start": 2e-3},
        searched_by={"n_epochs": 15},
    ),
    Block(
        "CIFAR100",
        "alexnet",
        {"twin_of_lenet": 1, "narrow_start_of_lenet": 1},
        {"n_epochs": 20, "batch_size": 128},
    ),
)  # fmt: skip


def network(block: Block, method: Method) -> str:
    """The `net_type` of a method's runs on a block."""
    if method.network is None and block.net_type in NETWORKS:
        return block.net_type
    name = block.net_type.lstrip("0123456789")  # as no name in Python begins with a digit
    return f"experiments.networks:{(method.network or '{}').format(name)}"


@dataclass(frozen=True)
class Experiment:
    """One method on one data set and network, with one seed."""

    block: Block
    method_name: str
    seed: int

    @property
    def method(self) -> Method:
        """The method that `method_name` names."""
        return METHODS[self.method_name]

    @property
    def name(self) -> str:
        """The name of its results file and of its checkpoint folder."""
        return f"{self.block.dataset}-{self.block.net_type}-{self.method_name}-{self.seed}"

    @property
    def sources(self) -> tuple[Experiment, ...]:
        """The experiments whose networks it predicts with; itself if it trains a network."""
        method = self.method
        if method.networks_of is None:
            return (self,)
        seeds = range(method.members) if method.members > 1 else (self.seed,)
        return tuple(Experiment(self.block, method.networks_of, seed) for seed in seeds)

    def settings(self) -> dict[str, Any]:
        """The settings that the run changes; all others have the configuration's value.

        Raises:
            UserError: its method needs a search that there has not been.
        """
        block, method = self.block, self.method
        family = block.bayesian if method.bayesian else block.frequentist
        searched = method.searched_on or (block.dataset, block.net_type)
        found = recipe(*searched, method.searched) if method.searched else {}
        run = {"net_type": network(block, method), "seed": self.seed}
        settings = {**block.common, **family, **found, **method.settings, **run}
        if "priors" in found:  # of which a method changes some
            settings["priors"] = {**found["priors"], **method.settings.get("priors", {})}
        return settings


def experiments() -> Iterator[Experiment]:
    """All experiments of the plan, ordered by seed, so that every method soon has a first result."""
    for seed in range(max(max(block.seeds.values()) for block in BLOCKS)):
        for block in BLOCKS:
            yield from (Experiment(block, method, seed) for method, seeds in block.seeds.items() if seed < seeds)
