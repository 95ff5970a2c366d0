"""Fit, on the validation images, what turns a network's uncertainties into decisions, and add it to the checkpoint.

First the temperature that its logits are divided by; then, with it, the threshold up to which predictions are accepted
at the risk that you name; then sets of classes. `Classifier.load` uses all of it. The images are those that the
training held out; the test images are not looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import torch
from torch import Tensor

from images import Split, chunk_size
from inference.classifier import Classifier, load_finite_network
from inference.decisions import Decisions, decision_scores, fit_decisions, fit_temperature
from inference.evaluation import load_training_data, require_classification
from inference.prediction import posterior_outputs, summarize
from likelihoods import SCORES, scores
from models import write_checkpoint
from support import OneLineParser, argument, number, report_user_errors, tune_cpu, whole

BATCH = 256  # images per forward pass


def parse(flags: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.calibrate", description=__doc__, allow_abbrev=False)
    add, share = parser.add_argument, argument(number(0, 1, exclusive=True))
    add("weights_path", type=Path, metavar="model.pt", help="a checkpoint of main_bayesian.py or main_frequentist.py")
    add("--risk", type=share, default=0.01, help="fraction of the accepted predictions that may be wrong (%(default)s)")
    add("--score", choices=SCORES, default="total entropy", help="the uncertainty that has a threshold (%(default)s)")
    add("--alpha", type=share, default=0.1, help="fraction of images whose set may miss the right class (%(default)s)")
    add("--num_samples", type=argument(whole(1)), default=25, help="posterior samples per prediction (%(default)s)")
    add("--seed", type=argument(whole(0)), default=0, help="of the samples (%(default)s)")
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies (%(default)s)")
    add("--save_path", type=Path, help="where the calibrated checkpoint goes (in place of the given one)")
    return parser.parse_args(flags)


def run(args: argparse.Namespace) -> Decisions:
    """Fit the decisions, write the checkpoint, and print what they come to on the validation images."""
    tune_cpu()
    path: Path = args.weights_path
    saved = load_finite_network(path, net_type=args.net_type)
    require_classification(saved, path)
    valid = load_training_data(saved, path, args.data_dir).valid
    classifier = Classifier.from_description(saved.net, saved.description, path)
    logits = sampled_logits(classifier, valid, args.num_samples, args.seed)
    temperature = fit_temperature(logits, valid.labels)
    predictive = summarize(logits, temperature=temperature)
    decisions = fit_decisions(predictive, valid.labels, temperature, args.score, args.risk, args.alpha)
    save_path = args.save_path or path
    write_checkpoint(save_path, saved.content | decisions.to_content())
    before, after = scores(summarize(logits), valid.labels), scores(predictive, valid.labels)
    come_to = decision_scores(decisions, predictive, valid.labels)
    print(f"{len(valid):,} validation images, {args.num_samples} samples\n"
          f"temperature  {temperature:.4g}: nll {before['nll']:.4f} to {after['nll']:.4f}, "
          f"ece {before['ece']:.4f} to {after['ece']:.4f}\n"
          f"threshold    {args.score} {decisions.threshold:.4g}: {come_to['accepted']:.2%} accepted, of which "
          f"{come_to['accepted_risk']:.2%} are wrong\n"
          f"sets         {1 - args.alpha:.0%}: {come_to['lac_size']:.2f} classes (adaptive: "
          f"{come_to['adaptive_size']:.2f})\nwritten to {save_path}")  # fmt: skip
    return decisions


def sampled_logits(classifier: Classifier, split: Split, num_samples: int, seed: int) -> Tensor:
    """The logits of draws from the posterior, [samples, n, classes], as `Classifier.predict` averages them."""
    with torch.no_grad():
        chunks = (classifier.normalize(pixels) for pixels, _ in split.batches(chunk_size(split.image_size)))
        outputs = (posterior_outputs(classifier.net, chunk, num_samples, BATCH, seed) for chunk in chunks)
        return torch.cat([torch.stack([output.cpu() for output in each]) for each in outputs], 1)


def main(flags: Sequence[str] | None = None) -> None:
    """Calibrate by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if flags is None else flags))


if __name__ == "__main__":
    main()
