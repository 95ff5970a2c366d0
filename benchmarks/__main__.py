"""Run a benchmark and write benchmarks/results/<benchmark>.json and <benchmark>.md.

step       training step of this project's layers and of other libraries', as a ratio to the frequentist twin's
profile    where a step spends its time, as percentages of the twin's step, and the effect of channels_last
predict    prediction with T posterior samples, compared with T passes of the twin
moments    prediction by 1, 25 and 100 samples and by moments, compared with one pass of the twin; memory of a pass
single     prediction of one image: a pass of the twin, 25 samples drawn or kept, moments
last_layer prediction with 25 samples where only the last layer is Bayesian, compared with one pass of the twin
memory     peak memory that prediction adds to a process, by number of samples and images
epoch      a complete run of main_bayesian.py on MNIST, compared with its training steps alone
loader     training on JPEG files, compared with the same images in memory, by the number of workers that decode
record     training while means and variances are recorded, compared with training without recording
scale      parameters, FLOPs and bytes of a step, and the highest throughput on many accelerators that follows
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

from benchmarks import epoch, loader, predict, profile, scale, step
from benchmarks.measure import RESULTS
from models import NETWORKS
from support import OneLineParser, argument, report_user_errors, whole, write_json, write_text

Result = dict[str, Any]
BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Result], Callable[[Result], str]]] = {
    "step": (lambda args: step.measure(args.nets, args.activation, 256, args.rounds, args.compiled), step.render),
    "profile": (lambda args: profile.measure(args.nets, 256, args.rounds), profile.render),
    "predict": (lambda args: predict.measure(args.rounds), predict.render),
    "moments": (lambda args: predict.measure_moments(args.rounds), predict.render_moments),
    "single": (lambda args: predict.measure_single(args.rounds), predict.render_single),
    "last_layer": (lambda args: predict.measure_last_layer(args.rounds), predict.render_last_layer),
    "memory": (lambda args: predict.measure_memory(), predict.render_memory),
    "epoch": (lambda args: epoch.measure_epoch(), epoch.render_epoch),
    "record": (lambda args: epoch.measure_record(), epoch.render_record),
    "loader": (lambda args: loader.measure(args.rounds), loader.render),
    "scale": (lambda args: scale.measure(), scale.render),
}


def main() -> None:
    """Run the benchmark that the command line names; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=list(BENCHMARKS))
    add(
        "--rounds",
        type=argument(whole(2)),
        default=15,
        help="rounds that medians are taken over, of all but memory, epoch, record and scale (%(default)s)",
    )
    add("--nets", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="step, profile: networks to measure")
    add("--activation", choices=["softplus", "relu"], default="softplus", help="step: activation (%(default)s)")
    add("--compiled", action="store_true", help="step: also measure through torch.compile (takes minutes longer)")
    with report_user_errors():
        args = parser.parse_args()
        measure, render = BENCHMARKS[args.benchmark]
        result = measure(args)
        text = render(result)
        write_json(RESULTS / f"{args.benchmark}.json", result)
        write_text(RESULTS / f"{args.benchmark}.md", text)
        print(text)


if __name__ == "__main__":
    main()
