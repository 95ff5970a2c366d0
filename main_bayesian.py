"""Train a Bayesian CNN by variational inference, keep the best network by validation, test it once.

With --compare it trains nothing and prints the last results of the network and of its frequentist twin.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import config_bayesian
from support import report_user_errors
from training.settings import BayesianSettings, from_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Settings from config_bayesian.py and the command line, then the run; a user's mistake exits with code 2."""
    with report_user_errors():
        given = sys.argv[1:] if arguments is None else arguments
        flags = [flag for flag in given if flag != "--compare"]
        settings = from_config(BayesianSettings, config_bayesian, flags, __doc__ or "")
        from training.loop import compare, run  # not before the settings are checked: it takes seconds to import

        if len(flags) == len(given):
            run(settings)
        else:
            print(compare(settings))


if __name__ == "__main__":
    main()
