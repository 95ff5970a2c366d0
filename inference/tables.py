"""What an evaluation found, printed as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_batches(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Print the uncertainties of every mini-batch of one set of images, the rows of `batch_means`, and their means."""
    print(f"{name:<20}{'softmax':>24}{'normalized':>26}\n{'batch':<20}" + f"{'epistemic':>13}{'aleatoric':>13}" * 2)
    for index, row in enumerate(rows):
        print(f"{index + 1:<20}" + "".join(f"{value:>13.6f}" for value in row.values()))
    means = (sum(row[trace] for row in rows) / len(rows) for trace in rows[0])
    print(f"{'mean of batches':<20}" + "".join(f"{mean:>13.6f}" for mean in means))


def print_summary(report: Mapping[str, Any]) -> None:
    """Print the scores of all networks in a report of `evaluate`, side by side."""
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
