"""The command `bayesian-cnn`: each subcommand runs one of the project's scripts, with that script's own flags."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from support import UserError, exit_on_interrupt, first_line, nearest, report_user_errors

HELP = """usage: bayesian-cnn COMMAND [flags]; COMMAND --help lists the flags

  train        train a Bayesian network; with --frequentist, its deterministic twin
  compare      print the last results of a network and of its twin side by side
  uncertainty  known images against unknown ones, rotated, noisy and corrupted
  calibrate    choose the temperature and the threshold of "unsure"
  classify     classify image files
  prune        remove the weights that carry no signal
  export       write networks for other machines: .pt2 and .onnx
  plot         draw the means and variances that a run has recorded

train and compare take --config my_config.py: a file of settings, of which it gives those that differ from the defaults.
--net_type package.module:factory is looked for in the current folder first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; a user's mistake exits with code 2."""
    exit_on_interrupt()
    with report_user_errors():
        command, *flags = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        if command in ("-h", "--help", "--version"):
            print(_version() if command == "--version" else HELP)
            return
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}: did you mean {nearest(command, COMMANDS)!r}?")
        sys.argv = [f"bayesian-cnn {command}", *flags]  # as the script's own process would have it
        sys.path.insert(0, str(Path.cwd()))  # where `python script.py` would find the user's modules
        COMMANDS[command](flags)


def _version() -> str:
    from bayesian_cnn import __version__

    return __version__


def _train(flags: list[str]) -> None:
    if "--frequentist" in flags:
        import config_frequentist
        import main_frequentist

        flags.remove("--frequentist")
        main_frequentist.main(flags, _config(flags, config_frequentist))
    else:
        import config_bayesian
        import main_bayesian

        main_bayesian.main(flags, _config(flags, config_bayesian))


def _compare(flags: list[str]) -> None:
    _train(["--compare", *flags])


def _config(flags: list[str], defaults: types.ModuleType) -> types.ModuleType:
    """The settings of the file that `--config` names, over the defaults; the flag is taken out of `flags`."""
    for index, flag in enumerate(flags):
        name, equals, path = flag.partition("=")
        if name == "--config":
            if not equals and index + 1 < len(flags):
                path = flags.pop(index + 1)
            if not path:
                raise UserError("argument --config: expected one argument")
            del flags[index]
            config = types.ModuleType(path.removesuffix(".py"))
            own = _executed(path)
            for variables in (vars(defaults), own):
                vars(config).update({name: value for name, value in variables.items() if not name.startswith("__")})
            recipes = own.get("recipes")
            if isinstance(recipes, dict):
                vars(config)["recipes"] = {**defaults.recipes, **recipes}
            return config
    return defaults


def _executed(path: str) -> dict[str, object]:
    try:
        return runpy.run_path(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {first_line(error)}: correct the file") from error


def _uncertainty(flags: list[str]) -> None:
    import uncertainty_estimation

    uncertainty_estimation.main(flags)


def _calibrate(flags: list[str]) -> None:
    from inference import calibrate

    calibrate.main(flags)


def _classify(flags: list[str]) -> None:
    from inference import classify

    classify.main(flags)


def _prune(flags: list[str]) -> None:
    from inference import prune

    prune.main(flags)


def _export(flags: list[str]) -> None:
    from inference import export

    export.main(flags)


def _plot(flags: list[str]) -> None:
    import visualize_mean_var

    visualize_mean_var.main(flags)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "uncertainty": _uncertainty,
    "calibrate": _calibrate,
    "classify": _classify,
    "prune": _prune,
    "export": _export,
    "plot": _plot,
}

if __name__ == "__main__":
    main()
