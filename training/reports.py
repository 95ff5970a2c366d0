"""The reports of a run: a line per epoch, `history.csv`, `history.png`, `results.json`, two runs side by side."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from support import BLUE, ORANGE, UserError, figure_style, number, save_figure, write_text
from training.settings import Role, names_with

Row = dict[str, float]  # the figures of one epoch, by name
SCORES = {"accuracy": "{:.2%}", "nll": "{:.4f}", "brier": "{:.4f}", "ece": "{:.4f}"}  # that are compared, and how shown
FIGURES = {"parameters": "{:,}", "epochs": "{}", "training_seconds": "{:,.0f}"}


def epoch_line(row: Row, epochs: int, best: bool) -> str:
    """The line that is printed after an epoch.

    Args:
        row: the figures of the epoch.
        epochs: the number of epochs of the whole run.
        best: whether its validation NLL is the best so far.
    """
    bayesian = f"  kl {row['train_kl']:,.0f}" if "train_kl" in row else ""
    bayesian += f"  elbo {row['valid_elbo']:.3f}" if bayesian and "valid_elbo" in row else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}.0f}/{epochs}  "
        f"train nll {row['train_nll']:.4f} {_figure(row, 'train')}  "
        f"valid nll {row['valid_nll']:.4f} {_figure(row, 'valid')}{bayesian}  "
        f"{row['seconds']:.1f} s{'  best' if best else ''}"
    )


def _figure(row: Row, split: str) -> str:
    accuracy = f"{split}_accuracy"
    return f"acc {row[accuracy]:.2%}" if accuracy in row else f"rmse {row[f'{split}_rmse']:.4g}"


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write one row per epoch to `history.csv` in the folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    write_text(folder / "history.csv", text.getvalue())


@figure_style()
def plot_history(folder: Path, rows: Sequence[Row], title: str) -> Path:
    """Draw the rows of `history.csv` as `history.png` in the folder, and return its path."""
    bayesian = "train_kl" in rows[0]
    panels = 3 if bayesian else 2
    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else None
    figure_name = "accuracy" if "valid_accuracy" in rows[0] else "rmse"
    for ax, quantity, label in ((axes[0], "nll", "NLL (nats per example)"), (axes[1], figure_name, figure_name)):
        for split, name, color, style in (("train", "training", BLUE, "-"), ("valid", "validation", ORANGE, "--")):
            values = [row[f"{split}_{quantity}"] for row in rows]
            ax.plot(epochs, values, style, color=color, marker=marker, label=name)
        ax.set(xlabel="epoch", ylabel=label)
        ax.legend()
    if figure_name == "accuracy":  # the NLL of a density can be below 0
        axes[0].set_yscale("log")
    if bayesian:
        kls = [row["train_kl"] for row in rows]
        axes[2].plot(epochs, kls, color=BLUE, marker=marker)
        axes[2].set(xlabel="epoch", ylabel="KL(q‖p) (nats)", yscale="log" if max(kls) > 0 else "linear")
    figure.suptitle(title)
    return save_figure(figure, folder / "history.png")


@figure_style()
def plot_confusion(folder: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Path:
    """Draw a confusion matrix as `confusion.png` in the folder, and return its path.

    Args:
        folder: where the picture goes.
        matrix: rows the true classes, columns the predicted ones; numbers of images.
        classes: the names of the classes.
        title: of the picture.
    """
    count = len(classes)
    side = min(12.0, 2.4 + 0.38 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.subplots()
    shares = [[value / max(1, sum(row)) for value in row] for row in matrix]
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.grid(False)
    figure.colorbar(image, ax=ax, shrink=0.8, label="fraction of the class")
    step = -(-count // 40)  # names that can be read
    names = [name[:16] for name in classes]
    ax.set_xticks(range(0, count, step), names[::step], rotation=90, fontsize=8)
    ax.set_yticks(range(0, count, step), names[::step], fontsize=8)
    if count <= 20:
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                if value:
                    color = "white" if shares[row][column] > 0.5 else "black"
                    ax.text(column, row, f"{value:,}", ha="center", va="center", color=color, fontsize=7)
    ax.set(xlabel="predicted", ylabel="true", title=title)
    return save_figure(figure, folder / "confusion.png")


class Curves:
    """Curves for TensorBoard: a file of events, to which every epoch adds its figures, or the test those of the run.

    A reader stops at the record that a killed run has half written, so a resumed run and the test write new files.

    Torch's SummaryWriter writes in a thread, which answers a full disk with a traceback.

    Args:
        folder: where the file goes.

    Raises:
        UserError: tensorboard is missing, or the file cannot be written; also from the methods.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._write(file_version="brain.Event:2")

    def add(self, row: Row) -> None:
        """Add the figures of an epoch."""
        self._write_scalars({name.replace("_", "/", 1): value for name, value in row.items()}, step=int(row["epoch"]))

    def add_results(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Add the scores of the test, and the settings as TensorBoard's hyperparameters, to compare runs by.

        Args:
            settings: what is no number, text or truth value is shown as JSON.
            scores: by name, `test/…` in TensorBoard.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for name, value in settings.items()
        }
        tagged = {f"test/{name}": value for name, value in scores.items()}
        for summary in hparams(plain, tagged):
            self._write(summary=summary)
        self._write_scalars(tagged)

    def _write_scalars(self, scalars: Mapping[str, float], **event: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(summary=Summary(value=values), **event)

    def _write(self, **event: Any) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # slow to import, and few runs need it
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise UserError(
                "curves need tensorboard: pip install tensorboard, or 'bayesian-cnn[tensorboard]'"
            ) from error

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                RecordWriter(stream).write(Event(wall_time=time.time(), **event).SerializeToString())
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """The content of a run's `results.json`.

    Raises:
        UserError: the file is missing, or is not the results of a run.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for name in FIGURES:
            number(0)(results[name])
        number(-math.inf)(results["test"]["nll"])
        for name, value in results["test"].items():
            number(-math.inf)(value)
            if name in SCORES and name != "nll":
                number(0)(value)
        results["settings"].items()
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: train that network to its end first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the results of a run: delete it and train again") from error
    return results


def comparison(bayesian: dict[str, Any], frequentist: dict[str, Any]) -> str:
    """The results of both families side by side, with the shared settings in which they differ.

    Args:
        bayesian: content of the `results.json` of the Bayesian run.
        frequentist: that of the frequentist run.

    Returns:
        A table as text, several lines.
    """
    lines = [f"{'test':<18}{'bayesian':>12}{'frequentist':>14}"]
    for name in (name for name in bayesian["test"] if name in frequentist["test"]):
        form = SCORES.get(name, "{:.4f}")
        shown = [form.format(results["test"][name]) for results in (bayesian, frequentist)]
        lines.append(f"{name.replace('_', ' '):<18}{shown[0]:>12}{shown[1]:>14}")
    for name, form in FIGURES.items():
        lines.append(
            f"{name.replace('_', ' '):<18}{form.format(bayesian[name]):>12}{form.format(frequentist[name]):>14}"
        )
    not_compared = names_with(Role.NOT_COMPARED)
    differences = [
        f"{name} {bayesian['settings'].get(name)!r} and {value!r}"
        for name, value in frequentist["settings"].items()
        if bayesian["settings"].get(name) != value and name not in not_compared
    ]
    if differences:
        lines.append(f"settings that differ: {', '.join(differences)}")
    return "\n".join(lines)
