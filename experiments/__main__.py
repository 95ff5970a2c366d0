"""Run the experiments of experiments/plan.py that have no results yet, or make tables and figures of the results.

run     run the missing experiments one after the other. Start this command once per free core: each process takes
        experiments that no other process is running. Ctrl-C saves; the same command continues.
search  search for the settings that the plan wants of every network and data set, by validation; start it once per free
        core, as run. It needs `pip install optuna`.
ablate  train on the embedded digits with the planned settings and one setting changed at a time; validation only
list    list the experiments of the plan, and whether they have results
report  write experiments/results/*.json into the tables of docs/results.md and experiments/README.md, and draw the
        figures
table   print one table of the results.json files of any runs, as `table 'checkpoints/**/results.json'`: a row for runs
        that differ by their seed alone, and a column for every setting in which rows differ
"""

from __future__ import annotations

import argparse

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

from experiments import report, tables
from experiments.ablations import run_ablations
from experiments.plan import Experiment, experiments
from experiments.running import ExperimentFiles, run_missing
from support import OneLineParser, UserError, argument, report_user_errors, whole


def main() -> None:
    """Run the command; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", choices=["run", "search", "ablate", "list", "report", "table"])
    add("paths", nargs="*", metavar="PATH", help="table: files, perhaps with * and **; quote them then")
    add(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="run, search, list: only names that contain one of these texts",
    )
    add("--trials", type=argument(whole(1)), default=12, help="search: per network, data set and family (%(default)s)")
    ExperimentFiles.add_flags(parser)
    with report_user_errors():
        args = parser.parse_args()
        files = ExperimentFiles.from_arguments(args)
        if bool(args.paths) != (args.command == "table"):
            raise UserError("expected paths of results.json files after `table`, and after no other command")
        if args.command == "table":
            print(tables.render(tables.read_matching(args.paths)), end="")
        elif args.command == "report":
            report.write(report.read(files.results))
        elif args.command == "ablate":
            run_ablations(report.ABLATIONS, files.checkpoints)
        elif args.command == "search":
            try:
                from experiments import search
            except ImportError as error:
                raise UserError(f"{error}: install it with `pip install optuna`") from error
            search.run_searches(search.chosen_blocks(args.only), files, trials=args.trials)
        else:
            chosen = [each for each in experiments() if any(text in each.name for text in args.only)]
            if not chosen:
                raise UserError(f"no experiment's name contains {' or '.join(args.only)}: `list` shows all names")
            if args.command == "run":
                run_missing(chosen, files)
            else:
                print("\n".join(_line(experiment, files) for experiment in chosen))


def _line(experiment: Experiment, files: ExperimentFiles) -> str:
    return f"{'done   ' if files.result(experiment).exists() else 'missing'}  {experiment.name}"


if __name__ == "__main__":
    main()
