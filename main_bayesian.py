"""Train a Bayesian CNN by variational inference, keep the best network by validation, test it once."""

from __future__ import annotations

import types
from collections.abc import Sequence

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import config_bayesian
import training
from support import OneLineParser, report_user_errors


def main(arguments: Sequence[str] | None = None, config: types.ModuleType = config_bayesian) -> None:
    """Settings from a configuration and the command line, then the run; a user's mistake exits with code 2."""
    with report_user_errors():
        parser = OneLineParser(add_help=False, allow_abbrev=False)
        parser.add_argument(
            "--compare",
            action="store_true",
            help="train nothing: print the last results of the network and of its frequentist twin side by side",
        )
        args, flags = parser.parse_known_args(arguments)
        settings = training.from_config(training.BayesianSettings, config, flags, __doc__ or "", [parser])
        if args.compare:
            print(training.compare(settings))
        else:
            training.run(settings)


if __name__ == "__main__":
    main()
