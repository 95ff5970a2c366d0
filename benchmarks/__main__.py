"""Measure and write benchmarks/results/<what>.json and <what>.md.

step     a training step of this project's layers and of other libraries', as a ratio to the frequentist twin's
profile  where a step spends its time, as shares of the twin's step, and what channels_last does to it
predict  T posterior samples against T twin passes
memory   what T posterior samples of n images add to the memory of a process
epoch    a whole run of main_bayesian.py on MNIST against its bare training steps
record   training with means and variances recorded against without
scale    parameters, FLOPs and bytes of a step, and what many accelerators would make of them
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import epoch, predict, profile, scale, step
from benchmarks.measure import RESULTS
from models import NETWORKS
from support import OneLineParser, report_user_errors, write_json, write_text

Result = dict[str, Any]
BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Result], Callable[[Result], str]]] = {
    "step": (lambda given: step.measure(given.nets, given.activation, 256, given.rounds, given.compiled), step.render),
    "profile": (lambda given: profile.measure(given.nets, 256, given.rounds), profile.render),
    "predict": (lambda given: predict.measure(given.rounds), predict.render),
    "memory": (lambda given: predict.measure_memory(), predict.render_memory),
    "epoch": (lambda given: epoch.measure_epoch(), epoch.render_epoch),
    "record": (lambda given: epoch.measure_record(), epoch.render_record),
    "scale": (lambda given: scale.measure(), scale.render),
}


def main() -> None:
    """Parse, measure, write, print."""
    parser = OneLineParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=15, help="of step, profile and predict: medians are over so many")
    parser.add_argument("--nets", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="of step and profile")
    parser.add_argument("--activation", choices=["softplus", "relu"], default="softplus", help="of step")
    parser.add_argument("--compiled", action="store_true", help="of step: torch.compile's rows too (minutes more)")
    with report_user_errors():
        given = parser.parse_args()
        if given.rounds < 2:
            parser.error(f"--rounds must be at least 2, got {given.rounds}: ratios are given with their quartiles")
        measure, render = BENCHMARKS[given.what]
        result = measure(given)
        text = render(result)
        write_json(RESULTS / f"{given.what}.json", result)
        write_text(RESULTS / f"{given.what}.md", text)
        print(text)


if __name__ == "__main__":
    main()
