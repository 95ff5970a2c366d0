"""Train the frequentist twin of a Bayesian CNN and test it; `--help` tells the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import config_frequentist
from support import report_user_errors
from training.loop import run
from training.settings import Settings, from_config


def main(arguments: Sequence[str] | None = None) -> None:
    with report_user_errors():
        run(from_config(Settings, config_frequentist, sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
