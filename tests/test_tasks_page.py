"""Every command and every snippet of docs/tasks.md runs, from top to bottom."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Script, draw_pictures
from test_readme import blocks, commands

from examples import segmentation
from images import SOURCES

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
OPTIONAL = ("safetensors",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folders_and_commands_of_the_page(folder: Path, script: Script) -> None:
    """For one epoch; the photos are pictures of bars, the shapes those of the example's test."""
    photos, labels, numbers, uncertainty, shapes = map(tuple, commands(PAGE))
    small = ("--n_epochs", 1, "--valid_ens", 1, "--test_ens", 2)
    for split, each in (("train", 20), ("test", 4)):
        draw_pictures(folder / "photos" / split, each, mode="RGB")
    here = {word: str(folder / word) for word in ("photos", "digits", "checkpoints/labels", "checkpoints/brightness")}
    (digits,) = (block for block in blocks("python", PAGE) if "targets.csv" in block)
    exec(compile(digits, "tasks.md", "exec"), {})
    flags = {photos: ("--checkpoint_dir", folder / "p", "--batch_size", 16)}
    answers = [
        script(*(here.get(word, word) for word in words[1:]), *flags.get(words, ()), *small)
        for words in (photos, labels, numbers)
    ]
    assert "photos: 2 classes, color 64×64" in answers[0].stdout
    assert "digits: 2 labels, grey; train 900 (even: " in answers[1].stdout and "auroc" in answers[1].stdout
    assert "coverage_90" in answers[2].stdout
    (snippet,) = (block for block in blocks("python", PAGE) if "Regressor.load" in block)
    exec(compile(snippet, "tasks.md", "exec"), {})
    words = [here.get(word, word.replace("checkpoints/", f"{folder}/checkpoints/")) for word in uncertainty[1:]]
    answer = script(*words, "--num_samples", 2)
    assert "AUROC against digits test" in answer.stdout and "noise  " in answer.stdout
    assert (folder / "checkpoints/brightness/digits/bayesian/lenet/uncertainty/intervals_bayesian.png").exists()
    assert shapes[1:3] == ("-m", "examples.segmentation")


def test_the_example_of_maps(folder: Path) -> None:
    """For an epoch of the sixteenth of its images."""
    with pytest.MonkeyPatch.context() as patch:
        draw_many = segmentation.draw_many
        patch.setattr(segmentation, "draw_many", lambda count, *how, **more: draw_many(count // 16 + 2, *how, **more))
        results = segmentation.main(folder / "shapes", epochs=1)
    assert 0 <= results["iou"] <= 1 and 0 <= results["unknown mutual information"] <= 1
    assert (folder / "shapes" / "maps.png").exists()


def test_the_snippets_of_your_own_loop(folder: Path) -> None:
    """From `sample_parameters` on; those whose package is not installed are left out, and said so."""
    snippets = [block for block in blocks("python", PAGE) if "load_data" not in block and "Regressor" not in block]
    names: dict[str, object] = {}
    missing = [package for package in OPTIONAL if find_spec(package) is None]
    for snippet in snippets:
        if not any(f"{package}" in snippet for package in missing):
            snippet = snippet.replace("torch.compile(net)", 'torch.compile(net, backend="eager", fullgraph=True)')
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(snippet, "tasks.md", "exec"), names)
    logits = names["logits"]
    assert isinstance(logits, torch.Tensor) and logits.shape == (32, 10)
    average = names["average"]
    assert isinstance(average, torch.nn.Module) and average.n_averaged == 3
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_what_the_page_names_is_there() -> None:
    for path in re.findall(r"\]\((images/[^)]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for name in ("FashionMNIST", "KMNIST", "EMNIST", "SVHN", "STL10"):
        assert name in SOURCES and f"`{name}`" in PAGE
