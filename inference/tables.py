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
    for other, gain in report["gains"].items():
        print(f"{next(iter(networks))} against {other}: accuracy {100 * gain['accuracy_gain']:+.2f} points (McNemar's "
              f"test: p = {gain['mcnemar_p']:.2g}), NLL lower by {gain['nll_gain']:.4f} (95 % interval "
              f"{gain['nll_gain_low']:.4f} to {gain['nll_gain_high']:.4f})")  # fmt: skip
    for unknown, count in report["unknown_images"].items():
        print(f"\n{report['known']} against {unknown} ({count:,} images)")
        print(f"{'':<26}" + "".join(f"{family:^33}" for family in networks))
        print(f"{'score':<26}" + f"{'AUROC':>9}{'AUPR':>9}{'FPR95':>9}      " * len(networks))
        for score in first["novelty"][unknown]:
            rows = (network["novelty"][unknown][score] for network in networks.values())
            cells = (f"{row['auroc']:>9.4f}{row['aupr']:>9.4f}{row['fpr95']:>9.4f}      " for row in rows)
            print(f"{score:<26}" + "".join(cells))
    for family, network in networks.items():
        if "decisions" in network:
            _print_decisions(family, network["decisions"])
        if "shift" in network:
            _print_shift(family, network["shift"], report["corruptions"][family])
    how = "by moments" if report["prediction"] == "moments" else f"with {report['samples']} samples"
    print(f"\npredicted in {report['prediction_seconds']:.1f} s {how}")


def _print_decisions(family: str, decisions: Mapping[str, Any]) -> None:
    """What the decisions of a network come to, one row per set of images."""
    print(f"\n{family}, calibrated on {decisions['images']:,} validation images: temperature "
          f"{decisions['temperature']:.3g}, accepted up to a {decisions['score']} of {decisions['threshold']:.3g} "
          f"(risk {decisions['risk']:.2%}), sets of {1 - decisions['alpha']:.0%}")  # fmt: skip
    columns = ("accepted", "accepted_risk", "lac_coverage", "lac_size", "adaptive_coverage", "adaptive_size")
    print(f"{'':<20}" + "".join(f"{column.replace('_', ' '):>19}" for column in columns))
    for name, scores in decisions["scores"].items():
        print(f"{name:<20}" + "".join(f"{scores[c]:>19.4f}" if c in scores else f"{'':>19}" for c in columns))


def _print_shift(family: str, shift: Mapping[str, Any], corruptions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Each kind of corruption, from no severity to the highest, and whether the network is honest under it."""
    columns = ["accuracy", "nll", "ece", "entropy"]
    calibrated = all("lac_coverage" in row for rows in corruptions.values() for row in rows)
    columns += ["accepted", "accepted_risk", "lac_coverage"] if calibrated else []
    print(f"\n{family} under corruption: without it → at severity 5")
    heads = "".join(f"{name.replace('_', ' '):>18}" for name in columns)
    print(f"{'':<16}{heads}{'overconfidence':>16}  honest")
    for kind, rows in corruptions.items():
        cells = "".join(f"{f'{rows[0][name]:.3f} → {rows[-1][name]:.3f}':>18}" for name in columns)
        honest = "yes" if kind in shift["honest"] else "NO" if kind in shift["harmful"] else "harmless"
        print(f"{kind:<16}{cells}{shift['overconfidence'][kind]:>16.3f}  {honest}")
    overconfidence = sum(shift["overconfidence"].values()) / len(shift["overconfidence"])
    mean = ", ".join(f"{name} {value:.4f}" for name, value in shift["mean"].items())
    print(f"honest under {len(shift['honest'])} of the {len(shift['harmful'])} kinds that raise its error")
    print(f"at severity 5, confidence exceeds accuracy by {overconfidence:.3f} on average")
    print(f"mean of severities 3 to 5: {mean}")
    if calibrated:
        print("the risk and the coverage are promised for images like those of validation, not for corrupted ones")
