"""uncertainty_estimation.py as a user runs it: a real process, real files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
from conftest import Script, draw_nothing, draw_pictures
from PIL import Image

import config_bayesian
import config_frequentist
import uncertainty_estimation
from images import load_data, normalize
from inference import Classifier, laplace, posterior_predictive
from likelihoods import nll
from models import load_network, read_checkpoint, write_checkpoint
from tests.processes import run_program, run_together
from training import BayesianSettings, Settings, from_config, run


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of both families, trained on the bars."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind, config in ((BayesianSettings, config_bayesian), (Settings, config_frequentist)):
        settings = from_config(kind, config)
        run(replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), n_epochs=6, batch_size=16))
    return folder / "bars"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A small notMNIST: folders A to J, with one broken picture among them."""
    root = tmp_path / "data" / "notMNIST_small"
    for seed, letter in enumerate("ABCDEFGHIJ", 10):  # other images than the known ones, of the seeds 0 and 1
        draw_pictures(tmp_path / letter, 2, seed=seed)
        (root / letter).mkdir(parents=True)
        for name in ("lying", "upright"):
            for picture in (tmp_path / letter / name).iterdir():
                picture.rename(root / letter / f"{name}{picture.name}")
    (root / "C" / "broken.png").write_bytes(b"\x89PNG")
    small = root / "D" / "upright000.png"
    Image.open(small).resize((9, 5)).save(small)  # any size is an image: the network's is made of it
    (root / "C" / "notes.txt").write_text("no picture")
    return tmp_path / "data"


def test_the_whole_report(script: Script, trained: Path, pictures: Path, letters: Path, tmp_path: Path) -> None:
    weights = trained / "bayesian" / "model_lenet.pt"
    out = tmp_path / "out"
    draw_pictures(tmp_path / "others", 8, seed=9)
    answer = script(
        "uncertainty_estimation.py", "--weights_path", weights, "--dataset", pictures, "--not_mnist_dir", letters,
        "--frequentist_weights", trained / "frequentist" / "model_lenet.pt", "--num_samples", 4, "--batch_size", 16,
        "--save_dir", out, "--rotate", "--noise", "--shift", "fog", "speckle_noise",
        "--unknown", "notMNIST", tmp_path / "others", "--also", f"again={weights}", "--laplace", fresh=True,
    ).stdout  # fmt: skip
    assert not set(out.iterdir()) - {out / "uncertainty.json", *out.glob("*.png")}  # nothing half written
    assert "skipped 1 unreadable of 41 images" in answer and "broken.png" in answer
    report = json.loads((out / "uncertainty.json").read_text())
    sets = {"notMNIST_small": 40, "others": 16}
    assert (report["known_images"], report["unknown_images"]) == (40, sets)
    assert report["skipped"] == {"bars test": 0, "notMNIST_small": 1, "others": 0}
    net, description, _ = load_network(weights)
    test = load_data(str(pictures), "data", 0.1, 0).test
    predictive = posterior_predictive(net, normalize(test.images, description.mean, description.std), 4)  # type: ignore[arg-type]
    rows = report["networks"]["bayesian"]["batches"]["bars test"]
    assert [row["epistemic_softmax"] for row in rows] == pytest.approx(
        [batch.mean().item() for batch in predictive.epistemic_softmax.split(16)], rel=1e-3
    )
    accuracy = (predictive.probs.argmax(-1) == test.labels).double().mean().item()
    assert report["networks"]["bayesian"]["known"]["accuracy"] == pytest.approx(accuracy)
    networks = report["networks"]
    assert networks["again"] == networks["bayesian"] != networks["frequentist"]
    assert report["gains"]["again"]["mcnemar_p"] == 1 and report["gains"]["again"]["nll_gain"] == 0
    twin = Classifier.load(trained / "frequentist" / "model_lenet.pt")
    drawn = laplace(twin, load_data(str(pictures), "data", 0.1, 0).train).predict(test.images, 4)
    assert networks["laplace"]["known"]["nll"] == pytest.approx(nll(drawn.probs, test.labels), rel=1e-4)
    assert networks["laplace"]["known"]["nll"] != networks["frequentist"]["known"]["nll"]
    assert f"NLL lower by {report['gains']['frequentist']['nll_gain']:.4f} (95 % interval " in answer
    for network in ("bayesian", "frequentist", "again"):
        assert report["rotation"][network][0]["accuracy"] == report["noise"][network][0]["accuracy"]
        for novelty in (report["networks"][network]["novelty"][name] for name in sets):
            assert len(novelty) == 9 and f"{novelty['total entropy']['auroc']:.4f}" in answer
        for kind, rows in report["corruptions"][network].items():
            assert kind in ("fog", "speckle_noise") and len(rows) == 6
            assert f"{rows[0]['nll']:.3f} → {rows[5]['nll']:.3f}" in answer
    named = [
        "scores_bayesian",
        "scores_frequentist",
        "scores_again",
        "reliability",
        "risk_coverage",
        "rotation",
        "noise",
        "corruptions",
    ]
    named += [f"corruptions_{quantity}" for quantity in ("accuracy", "nll", "ece", "entropy")]
    for name in [*named, "images_bayesian", "images_frequentist"]:
        assert matplotlib.image.imread(out / f"{name}.png")[..., :3].std() > 0.05  # not an empty page
        assert f"{name}.png" in answer


def test_a_number_of_batches_and_any_other_unknown_set(
    trained: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_pictures(tmp_path / "others", 15, seed=9)
    arguments = (
        "--weights_path", trained / "bayesian" / "model_lenet.pt", "--dataset", pictures,
        "--ood_dir", tmp_path / "others", "--num_samples", 2, "--batch_size", 10, "--num_batches", 2,
    )  # fmt: skip
    answer = run_program("uncertainty_estimation.py", *arguments, prepare=draw_nothing)
    assert answer.returncode == 0, answer.stderr
    beside = trained / "bayesian" / "lenet" / "uncertainty" / "uncertainty.json"
    first = json.loads(beside.read_text())
    assert [len(b) for b in first["networks"]["bayesian"]["batches"].values()] == [2, 2]
    draw_nothing(monkeypatch.setattr)
    uncertainty_estimation.main([str(argument) for argument in arguments])
    second = json.loads(beside.read_text())
    assert first["networks"] == second["networks"]  # the same seed, the same figures
    assert answer.stdout.count(" s with 2 samples\n") == capsys.readouterr().out.count(" s with 2 samples\n") == 1
    uncertainty_estimation.main([str(argument) for argument in (*arguments, "--prediction", "moments")])
    assert " s by moments\n" in capsys.readouterr().out


def test_a_folder_with_the_name_of_an_unknown_set_is_the_folder(
    trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    draw_pictures(Path("noise"), 5, seed=9)
    weights = trained / "bayesian" / "model_lenet.pt"
    uncertainty_estimation.main([
        f"--weights_path={weights}", f"--dataset={pictures}", "--ood_dir=noise", "--num_samples=1", "--save_dir=out"
    ])  # fmt: skip
    assert json.loads(Path("out", "uncertainty.json").read_text())["unknown_images"] == {"noise": 10}


def test_two_processes_share_the_images_and_tell_the_same(trained: Path, pictures: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "others", 15, seed=9)
    arguments = [
        "uncertainty_estimation.py", "--weights_path", trained / "bayesian" / "model_lenet.pt", "--dataset", pictures,
        "--ood_dir", tmp_path / "others", "--num_samples", 3, "--batch_size", 10, "--rotate",
    ]  # fmt: skip
    reports, outputs = [], []
    for size in (1, 2):
        folder = tmp_path / f"out{size}"
        answers = run_together(size, *arguments, "--save_dir", folder, prepare=draw_nothing)
        assert all(answer.returncode == 0 for answer in answers), answers
        reports.append(json.loads((folder / "uncertainty.json").read_text()))
        outputs.append("".join(answer.stdout for answer in answers))
    alone, together = (report["networks"]["bayesian"] for report in reports)
    for name, rows in alone["batches"].items():
        for row, other in zip(rows, together["batches"][name], strict=True):
            assert other == pytest.approx(row, rel=1e-3, abs=1e-6)
    separation, shared = (each["novelty"]["others"]["total entropy"] for each in (alone, together))
    assert shared == pytest.approx(separation, rel=1e-3)
    assert [row["accuracy"] for row in reports[0]["rotation"]["bayesian"]] == pytest.approx(
        [row["accuracy"] for row in reports[1]["rotation"]["bayesian"]]
    )
    assert [output.count("mean of batches") for output in outputs] == [2, 2]  # the leader alone speaks


def test_the_embedded_digits_against_letters(letters: Path, tmp_path: Path) -> None:
    settings = from_config(BayesianSettings, config_bayesian)
    run(
        replace(
            settings, dataset="MNIST5k", checkpoint_dir=str(tmp_path), n_epochs=1, lr_start=3e-3, record_mean_var=False
        )
    )
    weights = tmp_path / "MNIST5k" / "bayesian" / "model_lenet.pt"
    answer = run_program(
        "uncertainty_estimation.py", "--weights_path", weights, "--dataset", "MNIST5k",
        "--not_mnist_dir", letters / "notMNIST_small", "--num_samples", 3, "--save_dir", tmp_path / "out",
        prepare=draw_nothing,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    report = json.loads((tmp_path / "out" / "uncertainty.json").read_text())
    assert (report["known_images"], report["unknown_images"]) == (1000, {"notMNIST_small": 40})
    assert report["networks"]["bayesian"]["known"]["accuracy"] > 0.5
    assert set(report["networks"]["bayesian"]["batches"]) == {"MNIST5k test", "notMNIST_small"}


def test_a_users_mistake_ends_the_process_with_one_line_and_code_2(script: Script, tmp_path: Path) -> None:
    answer = script("uncertainty_estimation.py", "--weights_path", tmp_path / "none.pt", expect=2)
    assert answer.stderr.startswith("error: there is no checkpoint") and answer.stderr.count("\n") == 1
    assert answer.stdout == ""


def test_every_mistake_is_reported_in_one_line(
    trained: Path, pictures: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, twin = (trained / family / "model_lenet.pt" for family in ("bayesian", "frequentist"))
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where a folder should go")
    text = tmp_path / "text.pt"
    text.write_text("no network")
    content = read_checkpoint(weights)
    key = next(key for key in content["weights"] if key.endswith("conv1.weight"))
    content["weights"][key][0] = math.nan
    diverged = tmp_path / "diverged.pt"
    write_checkpoint(diverged, content)
    nothing = tmp_path / "nothing"
    (nothing / "A").mkdir(parents=True)
    shutil.copy(text, nothing / "A" / "a.png")
    quick = ["--weights_path", weights, "--dataset", pictures, "--num_samples", 1, "--num_batches", 1]
    for arguments, message in (
        (["--num_batches", "foo"], "--num_batches: expected an integer ≥ 1, got 'foo'"),
        (["--num_samples", 0], "--num_samples: expected an integer ≥ 1"),
        (["--seed", 10**20], "--seed: expected an integer ≥ 0"),
        (["--num_sample", 3], "unrecognized arguments: --num_sample 3"),
        (["--weights_path", twin], "does not hold a bayesian network"),
        ([*quick, "--laplace"], "--laplace is of a trained twin: give --frequentist_weights too"),
        (
            [*quick, "--laplace", "--frequentist_weights", twin, "--also", f"laplace={twin}"],
            "there is a network named laplace by --laplace",
        ),
        (
            [*quick, "--laplace", "--frequentist_weights", twin, "--prediction", "moments", "--ood_dir", letters],
            "moments and an export with uncertainty expect Bayesian layers, got a LaplaceNetwork",
        ),
        (["--weights_path", weights, "--frequentist_weights", weights], "does not hold a frequentist network"),
        ([*quick, "--not_mnist_dir", letters, "--save_dir", occupied], "cannot write"),
        (["--weights_path", text], "is not a readable checkpoint"),
        (["--weights_path", diverged], f"{diverged} has weights that are not finite ({key})"),
        (["--weights_path", weights, "--net_type", "alexnet"], "holds a lenet, not a alexnet: give --net_type lenet"),
        (["--weights_path", weights, "--net_type", "lennet"], "did you mean 'lenet'"),
        (["--weights_path", weights, "--dataset", "MNIST5k"], "is for other classes (2) than MNIST5k (10)"),
        (["--weights_path", weights, "--dataset", pictures, "--not_mnist_dir", nothing], "has no notMNIST_small"),
        (
            ["--weights_path", weights, "--dataset", pictures, "--ood_dir", tmp_path / "none"],
            "there is no folder of this name",
        ),
        (["--weights_path", weights, "--dataset", pictures, "--ood_dir", nothing], "holds no readable image"),
        ([*quick, "--ood_dir", pictures / "test"], "test has no image that is not among the known ones"),
        ([*quick, "--ood_dir", pictures / "train"], "train has no image that is not among the known ones"),
        ([*quick, "--unknown", "FashionMNST"], "unknown set 'FashionMNST': did you mean 'FashionMNIST'"),
        ([*quick, "--unknown", "SVHN", "--data_dir", nothing], f"SVHN is not in {nothing}: download it there"),
        (
            [*quick, "--also", "no path"],
            "--also: expected NAME=PATH with a name of letters, digits, - and _, got 'no path'",
        ),
        ([*quick, "--also", f"bayesian={twin}"], "there are two networks named bayesian: give each a name of its own"),
        ([*quick, "--also", f"a={tmp_path / 'none.pt'}"], "there is no checkpoint"),
        ([*quick, "--shift", "fgo"], "--shift: unknown corruption 'fgo': did you mean 'fog'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            uncertainty_estimation.main([str(argument) for argument in arguments])
        stderr = capsys.readouterr().err
        assert stopped.value.code == 2 and message in stderr and stderr.count("\n") == 1, stderr
