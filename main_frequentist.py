"""Train the frequentist twin of a Bayesian CNN, keep the best network by validation, test it once."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import config_frequentist
import training
from support import report_user_errors


def main(arguments: Sequence[str] | None = None, config: types.ModuleType = config_frequentist) -> None:
    """Settings from a configuration and the command line, then the run; a user's mistake exits with code 2."""
    with report_user_errors():
        flags = sys.argv[1:] if arguments is None else arguments
        training.run(training.from_config(training.Settings, config, flags, __doc__ or ""))


if __name__ == "__main__":
    main()
