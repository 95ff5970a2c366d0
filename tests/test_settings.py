"""Settings from a config file and the command line, and the errors for wrong ones."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Script, new_interpreter

import config_bayesian
import config_frequentist
import main_bayesian
import main_frequentist
from experiments.plan import BLOCKS
from experiments.recipes import recipe
from support import UserError
from training import BayesianSettings, Role, Settings, from_config, names_with


def config(**changes: object) -> types.ModuleType:
    module = types.ModuleType("my_config")
    vars(module).update({k: v for k, v in vars(config_bayesian).items() if not k.startswith("__")}, **changes)
    return module


def test_every_setting_can_be_given_on_the_command_line() -> None:
    flags = {
        "dataset": "CIFAR10", "data_dir": "elsewhere", "net_type": "alexnet", "activation_type": "softplus",
        "n_epochs": 5, "lr_start": 0.1, "lr_schedule": "cosine", "batch_size": 7, "valid_size": 0.3,
        "random_shift": 4, "random_flip": True, "num_workers": 3, "seed": 9, "device": "cuda:1", "amp": True,
        "compile": True, "deterministic": True, "patience": 2, "resume": True, "checkpoint_dir": "there",
        "tensorboard": True, "skip_broken": True,
        "layer_type": "flipout", "posterior": "alpha", "alpha_shape": (1, 1),
        "priors": {"posterior_log_alpha_initial": -4.0},
        "beta_type": "Blundell",
        "lr_spread_factor": 2.0, "train_ens": 2, "valid_ens": 3, "test_ens": 4, "record_mean_var": True,
        "recording_freq_per_epoch": 8, "record_layers": ["conv1", "fc3"], "init_from": "some.pt", "moped": 0.2,
        "prior_at_means": True, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 1e-4, "warmup_epochs": 2.0,
        "curvature_decay": 0.9, "temperature": 0.5, "image_size": (48, 64), "center_crop": True, "channels": 3,
        "random_crop": 0.25, "bayesian_layers": "fc*", "freeze": True, "task": "multilabel", "likelihood": "bernoulli",
        "first_filters": "random",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    settings = from_config(BayesianSettings, config_bayesian, words)
    assert vars(settings) == {
        **flags,
        "prior_from": None,
        "weights": None,
        "patch_prior": "auto",
    }  # others exclude them
    assert from_config(BayesianSettings, config_bayesian, ["--patch_prior", "30"]).patch_prior == 30
    for name in ("prior_from", "weights"):
        assert getattr(from_config(BayesianSettings, config_bayesian, [f"--{name}", "some.pt"]), name) == "some.pt"
    default = from_config(BayesianSettings, config_bayesian)
    assert all(getattr(default, name) != value for name, value in flags.items())


def test_flags_read_as_people_write_them() -> None:
    def parse(*words: str) -> BayesianSettings:
        return from_config(BayesianSettings, config_bayesian, words)

    assert parse("--amp").amp and parse("--amp=true").amp and not parse("--amp", "False").amp
    assert parse("--beta_type", "0.5").beta_type == 0.5 and parse("--beta_type", "Soenderby").beta_type == "Soenderby"
    assert parse("--alpha_shape", "1,1").alpha_shape == (1, 1) and parse("--alpha_shape", "None").alpha_shape is None
    assert parse("--record_mean_var", "--record_layers", "conv1,fc3").record_layers == ["conv1", "fc3"]
    assert parse("--lr_start", "1").lr_start == 1.0
    assert parse("--checkpoint_dir", "2024").checkpoint_dir == "2024"
    assert parse("--record_mean_var", "--record_layers", "0").record_layers == ["0"]


def test_the_two_config_files_agree_on_what_makes_a_fair_comparison() -> None:
    frequentist = from_config(Settings, config_frequentist)
    bayesian = from_config(BayesianSettings, config_bayesian)
    differences = {name for name, value in vars(frequentist).items() if getattr(bayesian, name) != value}
    assert differences == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net_type": "LeNet"}, "net_type: expected one of .*did you mean 'lenet'.*, got 'LeNet'"),
        ({"lr_start": "0.1"}, "lr_start: expected a number > 0, got '0.1'"),
        ({"lr_start": 0.0}, "lr_start: expected a number > 0, got 0.0"),
        ({"lr_start": float("nan")}, "lr_start: expected a number > 0, got nan"),
        ({"valid_size": 1}, "valid_size: expected a number > 0 and < 1, got 1"),
        ({"batch_size": 2.5}, "batch_size: expected an integer ≥ 1, got 2.5"),
        ({"train_ens": 0}, "train_ens: expected an integer from 1 to 100000, got 0"),
        ({"train_ens": True}, "train_ens: expected an integer from 1 to 100000, got True"),
        ({"amp": "yes"}, "amp: expected True or False, got 'yes'"),
        ({"random_flip": "often"}, "random_flip: expected 'auto' or True or False, got 'often'"),
        ({"device": "gpu"}, "device: expected 'auto' or a device such as cpu or cuda:0, got 'gpu'"),
        ({"beta_type": "blundell"}, "beta_type: expected a number .*did you mean 'Blundell'.*, got 'blundell'"),
        ({"beta_type": -0.1}, "beta_type: expected a number ≥ 0, got -0.1"),
        ({"alpha_shape": (0, 1)}, "alpha_shape: expected None or a shape such as"),
        (
            {"priors": {"prior_sigmas": 1}},
            "priors: unknown prior 'prior_sigmas': did you mean 'prior_sigma'",
        ),
        ({"priors": 3}, "priors: priors must be a dict, got 3"),
        ({"record_layers": [1]}, "record_layers: expected None or names of layers"),
        (
            {"prior_from": "a.pt", "priors": {"posterior_rho_initial": (-7, 0.1)}},
            "prior_from says where the posterior starts: leave out posterior_rho_initial of priors",
        ),
        ({"weights": "a.pt", "first_filters": "patches"}, "first_filters 'patches' says .*: leave out one of them"),
        (
            {"weights": "a.pt", "prior_at_means": True, "priors": {"prior_mu": 5.0}},
            "prior_at_means says .* and so does prior_mu: leave out one of them",
        ),
        ({"beta_type": 0, "temperature": 0.1}, "temperature scales a part of the KL, whose weight beta_type is 0"),
        ({"patch_prior": 1.0, "prior_from": "a.pt"}, "patch_prior and prior_from both say .*: leave out one of them"),
        ({"prior_from": "a.pt", "init_from": "b.pt"}, "prior_from says where .* does init_from: leave out one of them"),
        (
            {"prior_from": "a.pt", "prior_at_means": True},
            "prior_from says where .* does prior_at_means: leave out one of them",
        ),
        (
            {"prior_from": "a.pt", "alpha_shape": (1, 1)},
            "the alpha posterior has a prior of its own: leave out alpha_shape or prior_from",
        ),
        (
            {"prior_from": "a.pt", "priors": {"learn_prior_sigma": True}},
            "prior_from replaces the prior: leave out learn_prior_sigma of priors",
        ),
        (
            {"prior_from": "a.pt", "priors": {"prior_sigma": 0.1}},
            "prior_from replaces the prior: leave out prior_sigma of priors",
        ),
        (
            {"alpha_shape": (1, 1), "priors": {"prior_sigma": 0.1}},
            "the alpha posterior has a prior of its own: leave out prior_sigma of priors",
        ),
        (
            {"posterior": "alpha", "priors": {"prior_mu": 0.1}},
            "the alpha posterior has a prior of its own: leave out prior_mu of priors",
        ),
        ({"record_layers": ["fc3"]}, "record_layers says what record_mean_var records: give record_mean_var too"),
        ({"moped": 0.1}, "moped is for a run that starts from a frequentist network: give init_from or weights too"),
        (
            {"beta_type": "Soenderby", "n_epochs": 1},
            "beta_type 'Soenderby' warms the KL up .* n_epochs is 1: give more",
        ),
        ({"priors": {"prior": {"family": "Laplac"}}}, "priors: unknown family 'Laplac' of the prior"),
        ({"seed": None}, "seed: expected an integer ≥ 0, got None"),
        ({"seed": -1}, "seed: expected an integer ≥ 0, got -1"),
        ({"dataset": ""}, "dataset: expected a non-empty string, got ''"),
        ({"dataset": 5}, "dataset: expected a non-empty string, got 5"),
        ({"data_dir": None}, "data_dir: expected a non-empty string, got None"),
        ({"checkpoint_dir": ["here"]}, "checkpoint_dir: expected a non-empty string"),
        ({"net_type": None}, "net_type: expected one of lenet"),
        ({"net_type": "my.module:"}, "net_type: expected one of lenet"),
        ({"activation_type": "tanh"}, "activation_type: expected one of"),
        ({"n_epochs": 0}, "n_epochs: expected an integer ≥ 1, got 0"),
        ({"n_epochs": -3}, "n_epochs: expected an integer ≥ 1, got -3"),
        ({"n_epochs": 1e3}, "n_epochs: expected an integer ≥ 1, got 1000.0"),
        ({"n_epochs": float("inf")}, "n_epochs: expected an integer ≥ 1, got inf"),
        ({"lr_start": float("inf")}, "lr_start: expected a number > 0, got inf"),
        ({"lr_start": -1e-3}, "lr_start: expected a number > 0, got -0.001"),
        ({"lr_start": True}, "lr_start: expected a number > 0, got True"),
        ({"lr_schedule": "step"}, "lr_schedule: expected one of constant, linear, cosine"),
        ({"lr_schedule": None}, "lr_schedule: expected one of constant, linear, cosine"),
        ({"optimizer": "sdg"}, "optimizer: expected one of adam, sgd, ivon"),
        (
            {"optimizer": "ivon", "beta_type": "Blundell"},
            "optimizer 'ivon' needs a β that .*: give Standard or a number",
        ),
        ({"optimizer": "ivon", "beta_type": 0}, "optimizer 'ivon' needs a β that is above 0"),
        ({"temperature": 0}, "temperature: expected a number > 0, got 0"),
        ({"curvature_decay": 1.0}, "curvature_decay: expected a number ≥ 0 and < 1, got 1.0"),
        ({"momentum": 1}, "momentum: expected a number ≥ 0 and < 1, got 1"),
        ({"momentum": -0.1}, "momentum: expected a number ≥ 0"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number ≥ 0, got -0.0001"),
        ({"warmup_epochs": "five"}, "warmup_epochs: expected a number ≥ 0, got 'five'"),
        ({"warmup_epochs": 3, "n_epochs": 3}, "warmup_epochs 3 leaves none of n_epochs 3: give fewer"),
        ({"batch_size": 0}, "batch_size: expected an integer ≥ 1, got 0"),
        ({"batch_size": "64"}, "batch_size: expected an integer ≥ 1, got '64'"),
        ({"valid_size": 0}, "valid_size: expected a number > 0 and < 1, got 0"),
        ({"valid_size": 1.5}, "valid_size: expected a number > 0 and < 1, got 1.5"),
        ({"valid_size": float("nan")}, "valid_size: expected a number > 0 and < 1, got nan"),
        ({"random_shift": -1}, "random_shift: expected an integer ≥ 0, got -1"),
        ({"random_shift": 0.5}, "random_shift: expected an integer ≥ 0, got 0.5"),
        ({"random_shift": 32}, "random_shift 32 moves images of 32×32 pixels out of sight: give at most 31"),
        (
            {"random_shift": 24, "image_size": (48, 24)},
            "random_shift 24 moves images of 48×24 pixels out of sight: give at most 23",
        ),
        ({"image_size": 0}, "image_size: expected None or 'own' or a number of pixels from 1 to 4096, or height,width"),
        ({"image_size": (32, 32, 3)}, "image_size: expected None or 'own' or a number of pixels"),
        ({"channels": 2}, "channels: expected 'auto' or 1 or 3, got 2"),
        ({"random_crop": 0}, "random_crop: expected a number > 0 and ≤ 1, got 0"),
        ({"init_from": "a.pt", "weights": "b.pth"}, "init_from says where training starts, and so does weights"),
        ({"seed": 2**63}, f"seed: expected an integer ≥ 0, got {2**63}"),
        ({"random_flip": 1}, "random_flip: expected 'auto' or True or False, got 1"),
        ({"num_workers": -2}, "num_workers: expected an integer from 0 to 1000, got -2"),
        ({"device": ""}, "device: expected 'auto' or a non-empty string, got ''"),
        ({"device": 0}, "device: expected 'auto' or a non-empty string, got 0"),
        ({"compile": 1}, "compile: expected True or False, got 1"),
        ({"resume": None}, "resume: expected True or False, got None"),
        ({"tensorboard": "on"}, "tensorboard: expected True or False, got 'on'"),
        ({"patience": -1}, "patience: expected an integer ≥ 0, got -1"),
        ({"patience": 2.0}, "patience: expected an integer ≥ 0, got 2.0"),
        ({"layer_type": "mc"}, "layer_type: expected one of lrt, bbb, flipout"),
        ({"layer_type": None}, "layer_type: expected one of lrt, bbb, flipout"),
        ({"alpha_shape": 1}, "alpha_shape: expected None or a shape such as"),
        ({"alpha_shape": ()}, "alpha_shape: expected None or a shape such as"),
        ({"alpha_shape": (1.0, 1)}, "alpha_shape: expected None or a shape such as"),
        ({"beta_type": float("nan")}, "beta_type: expected a number ≥ 0, got nan"),
        ({"beta_type": float("inf")}, "beta_type: expected a number ≥ 0, got inf"),
        ({"beta_type": None}, "beta_type: expected a number ≥ 0, got None"),
        ({"lr_spread_factor": 0}, "lr_spread_factor: expected a number > 0, got 0"),
        ({"lr_spread_factor": float("nan")}, "lr_spread_factor: expected a number > 0, got nan"),
        ({"train_ens": -1}, "train_ens: expected an integer from 1 to 100000, got -1"),
        ({"valid_ens": 0}, "valid_ens: expected 'moments' or an integer from 1 to 100000, got 0"),
        ({"test_ens": 0}, "test_ens: expected 'moments' or an integer from 1 to 100000, got 0"),
        ({"test_ens": "many"}, "test_ens: expected 'moments' or an integer from 1 to 100000, got 'many'"),
        ({"record_mean_var": 1}, "record_mean_var: expected True or False, got 1"),
        ({"recording_freq_per_epoch": 0}, "recording_freq_per_epoch: expected an integer ≥ 1, got 0"),
        ({"record_layers": []}, "record_layers: expected None or names of layers"),
        ({"record_layers": ""}, "record_layers: expected None or names of layers"),
        ({"init_from": 3}, "init_from: expected None or a non-empty string, got 3"),
        ({"init_from": "m.pt", "moped": 0}, "moped: expected None or a number > 0, got 0"),
        ({"init_from": "m.pt", "moped": float("nan")}, "moped: expected None or a number > 0, got nan"),
        ({"prior_at_means": True}, "prior_at_means is for a run that starts from a frequentist network"),
        ({"priors": {"prior_sigma": -1}}, "priors: prior_sigma must be above 0, got -1"),
        ({"priors": {"prior_sigma": float("nan")}}, "priors: prior_sigma must be finite, got nan"),
        ({"priors": {"prior_mu": float("inf")}}, "priors: prior_mu must be finite, got inf"),
        ({"priors": {"posterior_rho_initial": (1, 2, 3)}}, "priors: posterior_rho_initial must be a pair"),
        ({"priors": {"posterior_rho_initial": (0, float("nan"))}}, "priors: posterior_rho_initial must be finite"),
        ({"priors": {"prior": "Laplace"}}, "priors: prior must be of torch.distributions, got 'Laplace'"),
        ({"priors": ["prior_sigma"]}, "priors: priors must be a dict, got"),
        ({"train_ens": 10**9}, "train_ens: expected an integer from 1 to 100000, got 1000000000"),
        ({"num_workers": 10**9}, "num_workers: expected an integer from 0 to 1000, got 1000000000"),
        ({"lr_start": 10**400}, "lr_start: expected a number > 0, got 1000"),
        ({"beta_type": 10**400}, "beta_type: expected a number ≥ 0, got 1000"),
        ({"priors": {"prior_sigma": 10**400}}, "priors: prior_sigma must be finite, got 1000"),
        ({"priors": {"prior": {"family": "Distribution"}}}, "priors: unknown family 'Distribution' of the prior"),
        ({"priors": {"prior": {"family": "ExponentialFamily"}}}, "priors: unknown family 'ExponentialFamily' of the"),
        ({"priors": {"prior": {"family": "Wishart", "df": 3.0}}}, "priors: the prior .* cannot be made: Exactly one"),
        (
            {"priors": {"prior": {"family": "Cauchy", "loc": 10**400, "scale": 1.0}}},
            "priors: the prior .* cannot be made",
        ),
        (
            {"priors": {"prior": {"family": "ScaleMixture", "pi": 0.5, "sigma1": 10**400, "sigma2": 1.0}}},
            "priors: the prior .* needs pi, sigma1 and sigma2",
        ),
        (
            {"priors": {"prior": {"family": "Independent", "base_distribution": 3, "reinterpreted_batch_ndims": 1}}},
            "priors: the prior .* cannot be made",
        ),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    """In the config file, in `replace` and in the constructor; settings that contradict each other have no place."""
    default = from_config(BayesianSettings, config_bayesian)
    contradiction = ": expected" not in message and "priors: " not in message
    with pytest.raises(UserError, match=message if contradiction else f"my_config.py: {message}") as error:
        from_config(BayesianSettings, config(**changes))
    assert "\n" not in str(error.value)
    for make in (lambda: replace(default, **changes), lambda: BayesianSettings(**{**vars(default), **changes})):
        with pytest.raises(UserError, match=f"^{message}"):
            make()


def test_an_unknown_setting_in_the_file_is_named() -> None:
    with pytest.raises(UserError, match=r"my_config.py: unknown setting 'n_epoch': did you mean 'n_epochs'\?"):
        from_config(BayesianSettings, config(n_epoch=3))


def test_a_checked_value_is_kept_in_the_type_of_its_setting() -> None:
    settings = replace(from_config(BayesianSettings, config_bayesian), lr_start=1, alpha_shape=[1, 1], resume="true")
    assert isinstance(settings.lr_start, float) and settings.alpha_shape == (1, 1) and settings.resume is True
    assert isinstance(replace(settings, beta_type=1).beta_type, float) and replace(settings, priors=None).priors == {}
    assert replace(settings) == settings


def test_the_roles_of_settings() -> None:
    local = {"dataset", "data_dir", "checkpoint_dir", "resume"}
    not_compared = {"resume", "tensorboard", "num_workers", "data_dir", "checkpoint_dir"}
    assert names_with(Role.LOCAL) == local and names_with(Role.NOT_COMPARED) == not_compared
    assert names_with(Role.MAY_CHANGE_ON_RESUME) == not_compared | {"device", "n_epochs", "patience"}


def test_priors_are_kept_as_plain_values() -> None:
    laplace = torch.distributions.Laplace(0.0, 0.5)
    plain = {"family": "Laplace", "loc": 0.0, "scale": 0.5}
    assert from_config(BayesianSettings, config(priors={"prior": laplace})).priors == {"prior": plain}
    assert from_config(BayesianSettings, config(), ["--priors", str({"prior": plain})]).priors == {"prior": plain}
    assert from_config(BayesianSettings, config(priors=None)).priors == {}


def test_a_recipe_lies_over_the_file_and_under_the_flags() -> None:
    own = config(lr_start=0.5, recipes={"mine": {"n_epochs": 7, "priors": {"prior_sigma": 0.1}}})
    plain = from_config(BayesianSettings, own)
    assert from_config(BayesianSettings, own, ["--recipe", "mine"]) == replace(
        plain, n_epochs=7, priors={"prior_sigma": 0.1}
    )
    assert from_config(BayesianSettings, own, ["--n_epochs", "2", "--recipe=mine"]).n_epochs == 2


def test_the_recipe_for_color_images_is_what_the_searches_found() -> None:
    for kind, module in ((BayesianSettings, config_bayesian), (Settings, config_frequentist)):
        family = "bayesian" if kind is BayesianSettings else "frequentist"
        settings = vars(from_config(kind, module, ["--recipe", "color"]))
        block = next(block for block in BLOCKS if (block.dataset, block.net_type) == ("CIFAR10", "lenet"))
        found = {**block.common, **recipe(block.dataset, block.net_type, family)}
        for name, value in found.items():
            assert settings[name] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-3)), name


@pytest.mark.parametrize(
    ("recipes", "words", "message"),
    [
        ({"color": {}}, ["--recipe", "colour"], "my_config.py has no recipe 'colour': did you mean 'color'"),
        ({}, ["--recipe", "color"], "my_config.py has no recipe 'color'$"),
        ({"color": {}}, ["--recipe"], "--recipe: expected one argument"),
        ({3: {}}, [], "my_config.py: recipes must be a dict of dicts of settings, by their names"),
        ({"a": {3: 3}}, [], "my_config.py: recipes must be a dict of dicts of settings, by their names"),
        ({"color": 3}, [], "my_config.py: recipes must be a dict of dicts of settings, by their names"),
        ({"a": {"lr": 3}}, ["--recipe", "a"], "my_config.py: recipe 'a': unknown setting 'lr': did you mean"),
        ({"a": {"n_epochs": 0}}, ["--recipe", "a"], "my_config.py: recipe 'a': n_epochs: expected an integer ≥ 1, got"),
    ],
)
def test_a_wrong_recipe_is_named(recipes: Any, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_config(BayesianSettings, config(recipes=recipes), words)


def test_a_setting_missing_from_the_file_is_named() -> None:
    module = config()
    del module.n_epochs
    with pytest.raises(UserError, match="my_config.py: the setting 'n_epochs' is missing"):
        from_config(BayesianSettings, module)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_epoch", "3"], r"unknown setting '--n_epoch': did you mean --n_epochs\?"),
        (["--layer-type=bbb"], r"unknown setting '--layer-type=bbb': did you mean --layer_type\?"),
        (["--n_epochs", "three"], "--n_epochs: expected an integer ≥ 1, got 'three'"),
        (["--n_epochs"], "--n_epochs: expected one argument"),
        (["lenet"], "unexpected argument 'lenet'"),
    ],
)
def test_a_wrong_flag_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_config(BayesianSettings, config_bayesian, words)


def test_a_users_mistake_is_one_line_and_exit_code_2(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, arguments in (
        (main_bayesian.main, ["--beta_typ", "1"]),
        (main_bayesian.main, ["--dataset", "MNST"]),
        (main_bayesian.main, ["--alpha_shape", "7,1"]),
        (main_bayesian.main, ["--device", "meta"]),
        (main_bayesian.main, ["--n_epochs", "9" * 5000]),
        (main_bayesian.main, ["--priors", "x" * 5000]),
        (main_bayesian.main, ["--" + "x" * 5000]),
        (main_bayesian.main, ["--compare", "--checkpoint_dir", str(tmp_path)]),
        (main_bayesian.main, ["--resume", "--checkpoint_dir", str(tmp_path)]),
        (main_frequentist.main, ["--layer_type", "bbb"]),
        (main_frequentist.main, ["--compare"]),
        (main_frequentist.main, ["--optimizer", "ivon"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        output = capsys.readouterr()
        assert stop.value.code == 2
        assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("error: ")
        assert len(output.err) < 1100
    answer = script("main_bayesian.py", "--beta_typ", "1", expect=2, fresh=True)
    assert answer.stdout == "" and answer.stderr.count("\n") == 1 and answer.stderr.startswith("error: ")


def test_help_lists_every_setting(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main_bayesian.main(["--help"])
    assert stop.value.code == 0
    for text, kind in (
        (capsys.readouterr().out, BayesianSettings),
        (script("main_frequentist.py", "--help", fresh=True).stdout, Settings),
    ):
        assert all(f"--{setting} " in text for setting in kind.__dataclass_fields__)
        assert ("--compare " in text) == (kind is BayesianSettings)
    assert (ROOT / "config_bayesian.py").exists()


def test_settings_are_checked_before_the_loop_is_imported_and_nothing_but_pictures_needs_matplotlib() -> None:
    """So `--help` and the error for a wrong setting come without the second that the loop's libraries take."""
    code = (
        "import sys, training; training.from_config; assert 'training.loop' not in sys.modules\n"
        "import inference; assert 'matplotlib' not in sys.modules\n"
        "training.run\n"
    )
    answer = new_interpreter("-c", code)
    assert answer.returncode == 0, answer.stderr
