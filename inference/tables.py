"""What an evaluation found, printed as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_report(report: Mapping[str, Any], net_type: str, batch_size: int) -> None:
    """Print a report of `evaluate`: the uncertainties of every mini-batch, then the scores of all networks.

    Args:
        report: of `evaluate`.
        net_type: the architecture of the networks, for titles.
        batch_size: that the report was made with.
    """
    for family, network in report["networks"].items():
        print(f"\n{family} {net_type}: mean uncertainty per mini-batch of {batch_size}")
        for name, rows in network["batches"].items():
            _print_batches(name, rows)
    _print_summary(report)


def _print_batches(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """One set of images: the rows of `batch_means`, and their means."""
    print(f"{name:<20}{'softmax':>24}{'normalized':>26}\n{'batch':<20}" + f"{'epistemic':>13}{'aleatoric':>13}" * 2)
    for index, row in enumerate(rows):
        print(f"{index + 1:<20}" + "".join(f"{value:>13.6f}" for value in row.values()))
    means = (sum(row[trace] for row in rows) / len(rows) for trace in rows[0])
    print(f"{'mean of batches':<20}" + "".join(f"{mean:>13.6f}" for mean in means))


def _print_summary(report: Mapping[str, Any]) -> None:
    """The scores of all networks, side by side."""
    networks = report["networks"]
    first = next(iter(networks.values()))
    print(f"\n{report['known']} ({report['known_images']:,} images)")
    for name in first["known"]:
        cells = (f"{family} {network['known'][name]:<12.4g}" for family, network in networks.items())
        print(f"{name.replace('_', ' '):<26}" + "".join(cells))
    print(f"\n{report['known']} against {report['unknown']} ({report['unknown_images']:,} images)")
    print(f"{'':<26}" + "".join(f"{family:^33}" for family in networks))
    print(f"{'score':<26}" + f"{'AUROC':>9}{'AUPR':>9}{'FPR95':>9}      " * len(networks))
    for score in first["novelty"]:
        rows = (network["novelty"][score] for network in networks.values())
        print(f"{score:<26}" + "".join(f"{r['auroc']:>9.4f}{r['aupr']:>9.4f}{r['fpr95']:>9.4f}      " for r in rows))
    print(f"predicted in {report['prediction_seconds']:.1f} s with {report['samples']} samples")
