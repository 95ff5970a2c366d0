"""Run the experiments of experiments/plan.py that have no results yet, or make tables and pictures of the results.

run     do what is missing, one experiment after the other; start it as often as there are cores to spare, each
        process takes what no other has. Ctrl-C saves; the same command goes on.
ablate  the embedded digits by the planned settings with one thing changed at a time, validation only
list    every experiment of the plan, and whether it has results
report  experiments/results/*.json as the tables of README.md and experiments/README.md, and as pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import report
from experiments.ablations import run_ablations
from experiments.plan import Experiment, experiments
from experiments.running import ExperimentFiles, run_missing
from support import OneLineParser, UserError, report_user_errors

ROOT = Path(__file__).parent


def main() -> None:
    """Parse and do; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("what", choices=["run", "ablate", "list", "report"])
    add("--only", nargs="+", default=[""], metavar="TEXT", help="of run and list: names that contain one of these")
    add("--data_dir", type=Path, default=Path("data"), help="where downloaded data lies or goes (%(default)s)")
    add("--not_mnist", type=Path, default=Path("data/notMNIST_small"), help="the unknown images (%(default)s)")
    add("--checkpoint_dir", type=Path, default=Path("checkpoints/experiments"), help="(%(default)s)")
    add(
        "--folder",
        nargs="+",
        default=[],
        metavar="DATASET=FOLDER",
        help="a data set that lies as a folder with train/<class>/* and test/<class>/* images",
    )
    with report_user_errors():
        given = parser.parse_args()
        places = ExperimentFiles(
            ROOT / "results", given.checkpoint_dir, given.data_dir, given.not_mnist, dict(map(_folder, given.folder))
        )
        if given.what == "report":
            report.write(report.read(places.results))
        elif given.what == "ablate":
            run_ablations(report.ABLATIONS, places.checkpoints)
        else:
            chosen = [found for found in experiments() if any(text in found.name for text in given.only)]
            if not chosen:
                raise UserError(f"no experiment's name contains {' or '.join(given.only)}: list shows them all")
            if given.what == "run":
                run_missing(chosen, places)
            else:
                print("\n".join(_line(experiment, places) for experiment in chosen))


def _folder(text: str) -> tuple[str, str]:
    name, found, folder = text.partition("=")
    if not found:
        raise UserError(f"--folder: expected DATASET=FOLDER, got {text!r}")
    return name, folder


def _line(experiment: Experiment, places: ExperimentFiles) -> str:
    return f"{'done   ' if places.result(experiment).exists() else 'missing'}  {experiment.name}"


if __name__ == "__main__":
    main()
