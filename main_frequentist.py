"""Train the frequentist twin of a Bayesian CNN, keep the best network by validation, test it once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import config_frequentist
from support import report_user_errors
from training.settings import Settings, from_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Settings from config_frequentist.py and the command line, then the run; a user's mistake exits with code 2."""
    with report_user_errors():
        given = sys.argv[1:] if arguments is None else arguments
        settings = from_config(Settings, config_frequentist, given, __doc__ or "")
        from training.loop import run  # not before the settings are checked: it takes seconds to import

        run(settings)


if __name__ == "__main__":
    main()
