"""A classifier takes images as they are; ensembles and dropout are predictives of several of its kind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import Tensor, nn

from experiments.networks import with_dropout
from images import ImageFiles, normalize
from inference import (
    METHODS,
    SHIPPED,
    Classifier,
    classifier,
    dropout_predictive,
    ensemble_predictive,
    posterior_predictive,
    shipped,
)
from layers import sampling
from likelihoods import Predictive
from models import Description, build, save_network
from support import UserError, World

CLASSES = tuple("abcdefghij")
WIDE = {"posterior_rho_initial": (-2.0, 0.1)}
FIELDS = tuple(Predictive.__annotations__)


def bayesian(channels: int = 1, mean: float = 0.3) -> Classifier:
    net = build("lenet", True, 10, channels, priors=WIDE)
    return Classifier(net, CLASSES, (mean,) * channels, (0.25,) * channels)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (7, 1, 32, 32), dtype=torch.uint8)


def save(images: Tensor, folder: Path) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    return paths


def assert_equal(one: Predictive, other: Predictive) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("channels", [1, 3])
def test_it_equals_the_predictive_of_images_normalized_by_hand(channels: int) -> None:
    trained = bayesian(channels)
    images = torch.randint(256, (5, channels, 32, 32), dtype=torch.uint8)
    expected = posterior_predictive(trained.net, normalize(images, trained.mean, trained.std), 6, seed=3)
    assert_equal(trained.predict(images, 6, 3), expected)


def test_chunks_and_processes_change_nothing_but_the_last_digits(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = bayesian()
    whole = trained.predict(images, 4)
    monkeypatch.setattr(classifier, "chunk_size", lambda size, of_small: 3)
    chunked = trained.predict(images, 4)
    for name in FIELDS:
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_tensors_pictures_paths_and_files_are_the_same_images(images: Tensor, tmp_path: Path) -> None:
    trained, paths = bayesian(), save(images, tmp_path)
    expected = trained.predict(images, 3)
    pictures = [Image.open(path) for path in paths]
    for same in (pictures, tuple(pictures), paths, [str(path) for path in paths], ImageFiles(list(map(str, paths)), 1)):
        assert_equal(trained.predict(same, 3), expected)
    assert_equal(trained.predict(ImageFiles(list(map(str, paths)), 1), 3, workers=2), expected)
    order = [5, 0, 3]
    some = trained.predict([paths[index] for index in order], 3)
    torch.testing.assert_close(some.probs, expected.probs[order], rtol=1e-4, atol=1e-6)


def test_one_image_is_a_batch_of_one(images: Tensor, tmp_path: Path) -> None:
    trained, (path, *_) = bayesian(), save(images, tmp_path)
    expected = trained.predict(images[:1], 3)
    assert expected.probs.shape == (1, 10)
    for same in (images[0], Image.open(path), path, str(path)):
        assert_equal(trained.predict(same, 3), expected)
    assert expected.labels.shape == (1,)
    assert trained.classes[expected.labels[0]] == CLASSES[int(expected.probs[0].argmax())]


def test_pictures_are_converted_and_resized_to_what_the_network_takes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    path = tmp_path / "colored.png"
    picture.save(path)
    for trained, mode in ((bayesian(1), "L"), (bayesian(3), "RGB")):
        converted = np.array(picture.convert(mode).resize((32, 32), Image.Resampling.BILINEAR))
        tensor = torch.from_numpy(converted.reshape(32, 32, -1)).permute(2, 0, 1)
        for same in (picture, path):
            assert_equal(trained.predict(same, 2), trained.predict(tensor, 2))


def test_what_it_cannot_take_is_refused_in_one_line(images: Tensor, tmp_path: Path) -> None:
    trained = bayesian()
    (path,) = save(images[:1], tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    refused: list[tuple[Any, type[Exception], str]] = [
        (images.float(), ValueError, "expected uint8 images, got torch.float32, whose range is unknown"),
        (
            images.expand(-1, 3, -1, -1),
            ValueError,
            "expected images [n, 1, 32, 32] or one image [1, 32, 32], got [7, 3",
        ),
        (images[..., :28], ValueError, "got [7, 1, 32, 28]"),
        (images[0, 0], ValueError, "got [32, 32]"),
        (
            ImageFiles([str(path)], 3),
            ValueError,
            "expected image files read with 1 channels of 32×32 pixels, got 3 of 32×32",
        ),
        (images.numpy(), TypeError, "expected a uint8 tensor, PIL images, or paths of image files, got ndarray"),
        ([images[0], images[1]], TypeError, "got Tensor"),
        (7, TypeError, "got int"),
        (tmp_path / "none.png", UserError, "cannot read the image"),
        (tmp_path / "broken.png", UserError, "cannot read the image"),
        ([], UserError, "expected at least 1 images"),
    ]
    for wrong, error, message in refused:
        with pytest.raises(error) as raised:
            trained.predict(wrong)
        assert message in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        trained.predict(images, 0)
    with pytest.raises(UserError, match="expected at least 8 images, one per process, got 7"):
        trained.predict(images, world=World(size=8))


def test_it_is_in_the_checkpoint(images: Tensor, tmp_path: Path) -> None:
    trained, path = bayesian(), tmp_path / "model_lenet.pt"
    description = Description("lenet", True, {"priors": WIDE}, CLASSES, trained.mean, trained.std)
    save_network(path, trained.net, description)
    loaded = Classifier.load(str(path))
    assert (loaded.classes, loaded.mean, loaded.std) == (CLASSES, trained.mean, trained.std)
    assert loaded.image_shape == (1, 32, 32)
    assert_equal(loaded.predict(images, 3), trained.predict(images, 3))
    with pytest.raises(UserError, match="there is no checkpoint"):
        Classifier.load(tmp_path / "none.pt")


def test_networks_that_come_with_the_library_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (shipped.FOLDER / "README.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        assert Classifier.load(name).decisions is not None and f"| `{name}` |" in page
    classifier = Classifier.load("lenet-mnist")
    digit = classifier.predict(ROOT / "docs" / "images" / "digit.png")
    assert classifier.classes[digit.labels[0]] == "3" and digit.accepted.all()
    noise = torch.randint(256, (20, 1, 32, 32), dtype=torch.uint8)
    assert classifier.predict(noise).accepted.double().mean() < 0.2
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    (tmp_path / "lenet-mnist.pt").write_bytes(b"other")
    with pytest.raises(UserError, match="lenet-mnist that comes with the library is missing or damaged: install it"):
        Classifier.load("lenet-mnist")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet-mnist").write_bytes(b"a file of the user")
    with pytest.raises(UserError, match="lenet-mnist is not a readable checkpoint"):
        Classifier.load("lenet-mnist")


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_of_posteriors_is_the_mixture_of_their_predictives(images: Tensor, method: str) -> None:
    members = [bayesian(mean=mean) for mean in (0.2, 0.3, 0.5)]  # each normalizes by its own constants
    mixture = ensemble_predictive(members, images, 25, seed=4, method=method)
    alone = [member.predict(images, 25, seed=4 + index, method=method) for index, member in enumerate(members)]
    for name in ("probs", "expected_log_probs", "expected_entropy"):
        mean = torch.stack([getattr(predictive, name) for predictive in alone]).mean(0)
        torch.testing.assert_close(getattr(mixture, name), mean)
    assert (mixture.mutual_information > torch.stack([p.mutual_information for p in alone]).mean(0)).all()


def test_an_ensemble_of_twins_has_one_sample_per_member(images: Tensor, tmp_path: Path) -> None:
    members = [
        Classifier(build("lenet", False, 10, 1).eval(), CLASSES, (mean,), (std,))
        for mean, std in ((0.2, 0.2), (0.3, 0.5), (0.6, 0.1))
    ]
    with torch.no_grad():
        probs = torch.stack([m.net(normalize(images, m.mean, m.std)).softmax(-1) for m in members])
    ensemble = ensemble_predictive(members, images)
    torch.testing.assert_close(ensemble.probs, probs.mean(0))
    torch.testing.assert_close(ensemble.epistemic_softmax, probs.var(0, correction=0).sum(-1), rtol=1e-4, atol=1e-7)
    assert_equal(ensemble_predictive(members, save(images, tmp_path)), ensemble)
    assert_equal(ensemble_predictive(members[:1], images), members[0].predict(images))


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_of_unlike_posteriors_is_the_mean_of_its_members(images: Tensor, method: str) -> None:
    """A deterministic network has one sample; by moments, a mixture has draws of each component."""
    torch.manual_seed(0)
    posteriors: list[Any] = ["gaussian", *({"family": "rank1", "components": count} for count in (2, 3))]
    nets = [build("lenet", True, 10, 1, posterior=posterior, priors=WIDE) for posterior in posteriors]
    members = [Classifier(net, CLASSES, (0.3,), (0.25,)) for net in (*nets, build("lenet", False, 10, 1).eval())]
    mixture = ensemble_predictive(members, images, 6, seed=4, method=method)
    alone = [member.predict(images, 6, seed=4 + index, method=method) for index, member in enumerate(members)]
    for name in ("probs", "expected_log_probs", "expected_entropy"):
        mean = torch.stack([getattr(predictive, name) for predictive in alone]).mean(0)
        torch.testing.assert_close(getattr(mixture, name), mean)


def test_an_ensemble_of_none_or_of_unlike_members_is_refused(images: Tensor) -> None:
    trained = bayesian()
    other = Classifier(trained.net, CLASSES[::-1], trained.mean, trained.std)
    for members in ([], [trained, other], [trained, bayesian(3)]):
        with pytest.raises(ValueError, match="expected at least one classifier, and all with the same classes"):
            ensemble_predictive(members, images)


def dropout(rate: float = 0.5) -> Classifier:
    return Classifier(with_dropout("lenet", rate)(10, 1).eval(), CLASSES, (0.3,), (0.25,))


def test_dropout_passes_depend_on_the_seed_and_leave_nothing_behind(images: Tensor) -> None:
    trained, state = dropout(), torch.get_rng_state()
    once, again, other = (dropout_predictive(trained, images, 25, seed).probs for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state()) and not any(module.training for module in trained.net.modules())


def test_dropout_is_the_mean_of_its_passes(images: Tensor) -> None:
    trained = dropout()
    torch.manual_seed(3)
    with torch.no_grad():
        trained.net.train()  # dropout is its only layer that has two modes
        inputs = normalize(images, trained.mean, trained.std)
        passes = torch.stack([trained.net(inputs).softmax(-1) for _ in range(6)])
    predictive = dropout_predictive(trained, images, 6, seed=3)
    torch.testing.assert_close(predictive.probs, passes.mean(0))
    torch.testing.assert_close(predictive.epistemic_softmax, passes.var(0, correction=0).sum(-1), rtol=1e-4, atol=1e-7)
    assert trained.net.training


def test_batch_norm_stays_in_evaluation_while_dropout_is_active(images: Tensor) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout2d(0.0), nn.Flatten(), nn.Linear(1024, 10))
    trained = Classifier(net, CLASSES, (0.3,), (0.25,))
    assert_equal(dropout_predictive(trained, images, 1), trained.predict(images))
    assert torch.equal(net[0].running_mean, torch.zeros(1))


def test_dropout_of_a_network_without_it_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a network with dropout layers, got one without"):
        dropout_predictive(bayesian(), images)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_every_kind_of_dropout_is_torchs(kind: type[nn.Module], rate: float, images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(1, 5, 3), kind(rate), nn.Flatten(), nn.Linear(5 * 900, 10))
    trained = Classifier(net.train(), CLASSES, (0.3,), (0.25,))
    torch.manual_seed(7)
    with torch.no_grad():
        inputs = normalize(images, trained.mean, trained.std)
        passes = torch.stack([net(inputs).softmax(-1) for _ in range(3)])
    torch.testing.assert_close(dropout_predictive(trained, images, 3, seed=7).probs, passes.mean(0))


def test_threads_that_share_a_network_predict_what_each_does_alone(images: Tensor) -> None:
    """Also while another thread draws from the global generator, and one switches sampling off."""
    sampled, dropped = bayesian(), dropout()
    inputs = normalize(images, sampled.mean, sampled.std)
    questions: list[Callable[[int], Predictive]] = [
        lambda seed: sampled.predict(images, 4, seed),
        lambda seed: posterior_predictive(sampled.net, inputs, 4, seed=seed),
        lambda seed: dropout_predictive(dropped, images, 4, seed),
        lambda seed: ensemble_predictive([sampled, dropped], images, 4, seed),
    ]
    alone = [question(seed) for question in questions for seed in range(6)]
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            torch.manual_seed(5)
            torch.rand(3)
            with sampling(sampled.net, False):
                sampled.net(inputs)

    noise = threading.Thread(target=disturb)
    noise.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(question, seed) for question in questions for seed in range(6)]
            together = [task.result(timeout=100) for task in tasks]
    finally:
        over.set()
        noise.join()
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)
