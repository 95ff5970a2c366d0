"""Every command and snippet of the README and the docs runs; some do in test_distributed.py and test_continual.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Script, draw_nothing, draw_pictures

from layers import kl_divergence
from tests.processes import run_program

README = (ROOT / "README.md").read_text(encoding="utf-8")
UNCERTAINTY = (ROOT / "docs" / "uncertainty.md").read_text(encoding="utf-8")
GUIDE = ["index", "networks", "training", "unknown", "alternatives", "recording", "deployment"]
PAGES = [README, *((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in GUIDE)]
TESTED_ELSEWHERE = {"uncertainty", "lightning", "continual", "tasks", "one-pass"}


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(*pages: str) -> list[list[str]]:
    """Those of some pages, or of the README and the guide; each is there once."""
    lines = "\n".join("\n".join(blocks("bash", page)) for page in pages or PAGES).splitlines()
    words = [tuple(words) for line in lines if (words := shlex.split(line, comments=True))]
    return [list(command) for command in dict.fromkeys(words)]


def test_no_page_has_commands_or_snippets_that_no_test_runs() -> None:
    names = {
        path.stem for path in (ROOT / "docs").glob("*.md") if re.search("^```(bash|python)$", path.read_text(), re.M)
    }
    assert names <= {*GUIDE, *TESTED_ELSEWHERE}


def test_the_readme_is_short_and_its_results_are_those_of_the_page() -> None:
    assert README.count("\n") <= 200
    full = {
        tuple(cells[:3]): cells
        for line in (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
        if len(cells := line.strip("| ").split(" | ")) == 14
    }
    rows = [cells for line in README.splitlines() if len(cells := line.strip("| ").split(" | ")) == 7][2:]
    assert len(rows) == 10
    for *start, accuracy, nll, ece, auroc in rows:
        cells = full[tuple(start)]
        assert [accuracy, nll, ece, auroc] == [
            cells[3],
            cells[4],
            cells[6],
            cells[7 if "frequentist" in start[1] else 8],
        ]


def test_the_snippets_run_one_after_the_other(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder of their own, with the network of the first command after one epoch instead of thirty."""
    (train,) = (words for words in commands() if words == ["make", "train"])
    recipe = dry_run(train[1]).splitlines()[-1].split()[1:]
    script(*recipe, "--n_epochs", 1, "--valid_ens", 1, "--test_ens", 2, "--checkpoint_dir", tmp_path / "checkpoints")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    ran: set[str] = set()
    for page in PAGES:
        names: dict[str, object] = {}
        for snippet in blocks("python", page):
            if snippet not in ran:
                exec(compile(snippet, "page.md", "exec"), names)
                ran.add(snippet)
    assert len(ran) >= 7 and "Classifier.load" in blocks("python")[0]
    assert re.match(r"\d tensor\([01]\.\d+\)\ntensor\(\[.+\]\) tensor\(\[.+\]\)\n", capsys.readouterr().out)


def test_a_network_is_trained_by_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python", (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(snippet, "lightning.md", "exec"), names)
    trainer, net = names["trainer"], names["net"]
    assert trainer.global_step == 3 * 7 and {"kl", "valid_nll", "valid_accuracy"} <= trainer.callback_metrics.keys()
    assert kl_divergence(net) < trainer.callback_metrics["kl"]  # of the last step, before it


def dry_run(target: str) -> str:
    """The commands of a target of the Makefile, as make prints them."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    process = subprocess.run(
        ["make", "-n", "-B", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return process.stdout


def test_the_two_commands_are_those_of_the_makefile() -> None:
    make = [words for words in commands() if words[0] == "make"]
    assert make == [["make", "train"], ["make", "test"]]
    recipes = {target: dry_run(target) for _, target in make}
    assert "pip install -q -r requirements.txt" in recipes["train"]
    assert recipes["train"].splitlines()[-1].split()[1:] == [
        "main_bayesian.py",
        "--dataset",
        "MNIST5k",
        "--net_type",
        "lenet",
        "--lr_start",
        "3e-3",
    ]
    assert [tool in recipes["test"] for tool in ("ruff check", "ruff format --check", "mypy", "-m pytest")] == [
        True
    ] * 4


def test_the_scripts_run_as_written(script: Script, tmp_path: Path, pictures: Path) -> None:
    """On small data and for one epoch: MNIST is not available everywhere, and all of it takes minutes."""
    small = ["--dataset", str(pictures), "--checkpoint_dir", str(tmp_path), "--batch_size", "32"]
    python = [words for words in commands() if words[0] == "python"]
    training = [words for words in python if words[1].startswith("main_")]
    assert len(training) >= 5
    for words in training:
        epochs = [] if "--compare" in words else ["--n_epochs", "1"]
        script(*words[1:], *small, *epochs)
    drawing = [words for words in python if words[1] == "visualize_mean_var.py"]
    assert len(drawing) == 2
    for words in drawing:
        flags = [word.replace("checkpoints/recorded/MNIST", str(tmp_path / pictures.name)) for word in words[1:]]
        script(*flags, "--save_dir", tmp_path / "pictures")
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".png", ".gif"}


def test_the_uncertainty_script_runs_as_written(script: Script, tmp_path: Path, pictures: Path) -> None:
    """With weights, digits and letters made by the test, because MNIST is not available everywhere."""
    small = ["--dataset", str(pictures), "--checkpoint_dir", str(tmp_path), "--n_epochs", "1"]
    for name in ("main_bayesian.py", "main_frequentist.py"):
        script(name, *small)
    (command,) = (words for words in commands() if words[1:2] == ["uncertainty_estimation.py"])
    flags = [word.replace("checkpoints/MNIST", str(tmp_path / pictures.name)) for word in command[1:]]
    draw_pictures(tmp_path / "others", 20, seed=9)
    few = ["--dataset", pictures, "--ood_dir", tmp_path / "others", "--num_samples", 2]
    answer = run_program(*flags, *few, prepare=draw_nothing)
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / pictures.name / "bayesian"
    assert {"rotation", "noise"} <= json.loads(
        (folder / "lenet" / "uncertainty" / "uncertainty.json").read_text()
    ).keys()
    modules = [words for words in commands() if words[0] == "python" and words[1] == "-m"]
    assert [words[2] for words in modules] == ["inference.prune", "inference.export"]
    for words in modules:
        flags = [word.replace("checkpoints/MNIST", str(tmp_path / pictures.name)) for word in words[1:]]
        script(*flags, "--num_samples", 2)
    assert (folder / "model_lenet.pruned.png").exists() and (folder / "model_lenet.predictive.onnx").exists()


def test_the_page_about_uncertainties_runs_from_top_to_bottom(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With networks of one epoch on the bars in place of those on the digits, and bars of others as letters."""
    small = {"MNIST5k": str(pictures), "notMNIST": str(draw_pictures(tmp_path / "letters", 20, seed=9))}
    data = tmp_path / "checkpoints" / pictures.name

    def run(words: list[str], *flags: object) -> str:
        words = [small.get(word, word.replace("checkpoints/MNIST5k", str(data))) for word in words]
        answer = run_program(*words[1:], *flags, prepare=draw_nothing)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    recipe = ["python", "main_bayesian.py", "--dataset", "MNIST5k"]
    train, calibrate, classify, evaluate = commands(UNCERTAINTY)
    for words in (recipe, train):
        run(words, "--n_epochs", 1, "--batch_size", 32, "--checkpoint_dir", tmp_path / "checkpoints")
    assert "accepted, of which" in run(calibrate, "--risk", 0.4, "--num_samples", 2)
    assert run(classify, "--num_samples", 2).startswith("docs/images/digit.png  ")
    answer = run(evaluate, "fog", "--num_samples", 2, "--num_batches", 1, "--batch_size", 50)
    assert "honest under" in answer and "calibrated on 20 validation images" in answer
    for name in re.findall(r"images/(\w+\.png)", UNCERTAINTY):
        assert (ROOT / "docs" / "images" / name).exists(), name
    (snippet,) = blocks("python", UNCERTAINTY)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    data.rename(tmp_path / "checkpoints" / "MNIST5k")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "uncertainty.md", "exec"), {})
    assert re.fullmatch(r"(lying|upright|I do not know)\ntensor\(.*\) tensor\(.*\)\n", capsys.readouterr().out)
