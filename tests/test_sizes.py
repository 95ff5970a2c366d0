"""Images of any size and channels: read, cropped, trained on, saved, predicted and exported; torchvision's networks."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import bayesian_settings, frequentist_settings, run_files, same, weights
from PIL import Image
from scipy.io import savemat
from torch import nn
from torchvision import datasets, models
from torchvision.transforms.v2 import functional as transforms

from images import SOURCES, ImageFiles, load_data, random_crop, to_channels, to_pixels
from inference import Classifier, ImageSets, MeanNetwork, evaluate, export_network, load_test_data, load_training_data
from layers import weight_posteriors
from models import FACTORIES, NETWORKS, build, load_network
from moments import Moments
from support import UserError
from training import BayesianSettings, RunFiles, run, start
from training.network import build_network, describe, load_weights, set_to_train


def paint(folder: Path, each: int, size: tuple[int, int], mode: str = "RGB") -> Path:
    """`folder/<class>/*.jpg` of height and width `size`: red or blue on the left, noise on the right."""
    random = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = random.integers(0, 120, (*size, 3), dtype=np.uint8)
            pixels[:, : size[1] // 2, channel] = 250
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index}.jpg")
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in color of 40×60 pixels: 20 for training and 8 for tests of each of two classes."""
    root = tmp_path_factory.mktemp("images") / "wide"
    paint(root / "train", 20, (40, 60))
    paint(root / "test", 8, (40, 60))
    return root


@pytest.mark.parametrize("net_type", NETWORKS)
def test_other_sizes_have_the_parameters_of_32_and_a_fixed_grid(net_type: str) -> None:
    torch.manual_seed(0)
    small = build(net_type, False, 5, 3)
    torch.manual_seed(0)
    large = build(net_type, False, 5, 3, image_size=(96, 48))
    assert same(small.state_dict(), large.state_dict())
    assert not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in small)
    images = torch.randn(2, 3, 32, 32)
    large.eval()
    # At 32×32 the pooling has nothing to do; a constant image of another size has the maps of its inside everywhere.
    torch.testing.assert_close(large(images), small(images))
    assert large(torch.randn(2, 3, 96, 48)).shape == (2, 5)


@pytest.mark.parametrize(("side", "count"), [(3, 5), (5, 5), (7, 5), (12, 5), (4, 1)])
def test_moments_pass_through_adaptive_pooling_of_any_ratio(side: int, count: int) -> None:
    """Of inputs that move together, the deviation of an output is the mean of those in its window."""
    pool, variance = nn.AdaptiveAvgPool2d(count), torch.rand(1, 2, side, side)
    basis = torch.eye(side * side).view(-1, 1, side, side)
    jacobian = pool(basis).flatten(1).T  # of an output by an input
    expected = (variance.sqrt().flatten(2) @ jacobian.T).square().view(1, 2, count, count)
    output = pool(Moments(torch.zeros_like(variance), variance))
    torch.testing.assert_close(output.variance, expected)


def test_a_folder_is_read_at_the_size_and_channels_that_are_asked_for(wide: Path) -> None:
    path = wide / "test" / "red" / "3.jpg"
    picture = Image.open(path)
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    own = load_data(str(wide), "data", 0.2, 0, image_size="own")
    assert own.image_size == (40, 60) and own.report().startswith("wide: 2 classes, color 40×60; train 32 (blue: ")
    index = [torch.equal(image, whole) for image in own.test.images].index(True)
    stretched = load_data(str(wide), "data", 0.2, 0, image_size=(48, 24)).test.images[index]
    assert torch.equal(stretched, torch.from_numpy(np.array(picture.resize((24, 48), 2))).permute(2, 0, 1))
    center = load_data(str(wide), "data", 0.2, 0, image_size=(40, 40), center_crop=True).test.images[index]
    assert torch.equal(center, whole[:, :, 10:50])
    grey = load_data(str(wide), "data", 0.2, 0, image_size="own", channels=1)
    assert (
        grey.channels == 1 and (grey.test.images[index].int() - to_channels(whole[None], 1)[0].int()).abs().max() <= 1
    )
    lazy = load_data(str(wide), "data", 0.2, 0, 0, image_size=(40, 40), center_crop=True)
    assert isinstance(lazy.test.images, ImageFiles) and torch.equal(lazy.test.images[index], center)
    assert lazy.fingerprint == own.fingerprint
    assert load_data(str(wide), "data", 0.2, 0).image_size == (32, 32)


def test_own_is_refused_for_images_of_several_sizes_and_follows_their_orientation(wide: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        paint(tmp_path / "set" / split, 4, (40, 60))
    odd = tmp_path / "set" / "train" / "red" / "2.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    Image.open(odd).transpose(Image.Transpose.ROTATE_90).save(odd, exif=exif)
    assert load_data(str(tmp_path / "set"), "data", 0.25, 0, image_size="own").image_size == (40, 60)
    Image.new("RGB", (60, 40)).save(odd, "PNG", exif=b"Exif\0\0no TIFF")  # damaged: it says nothing
    assert load_data(str(tmp_path / "set"), "data", 0.25, 0, image_size="own").image_size == (40, 60)
    Image.new("RGB", (61, 40)).save(odd)
    with pytest.raises(
        UserError, match=r"no common size: .* is of 40×60 pixels, .*red/2.jpg of 40×61: give an"
    ) as error:
        load_data(str(tmp_path / "set"), "data", 0.25, 0, image_size="own")
    assert "\n" not in str(error.value)


def test_a_named_set_has_its_own_size_or_another_one() -> None:
    own, large = (load_data("MNIST5k", "data", 0.1, 0, image_size=size) for size in (None, (40, 64)))
    assert own.image_size == (32, 32) and large.image_size == (40, 64) and SOURCES["STL10"].size == (96, 96)
    color = load_data("MNIST5k", "data", 0.1, 0, channels=3)
    assert torch.equal(color.train.images, own.train.images.expand(-1, 3, -1, -1))
    assert large.classes == own.classes and torch.equal(large.test.labels, own.test.labels)
    with pytest.raises(UserError, match="image_size own is for a folder of images: leave it out for the size of MNIST"):
        load_data("MNIST5k", "data", 0.1, 0, image_size="own")
    with pytest.raises(UserError, match="those of MNIST5k are square: give a square image_size, or leave out center_c"):
        load_data("MNIST5k", "data", 0.1, 0, image_size=(40, 64), center_crop=True)


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 64)), ([40, 64], (40, 64))])
def test_a_size_is_one_number_or_two_in_any_sequence(size: Any, expected: tuple[int, int]) -> None:
    assert load_data("MNIST5k", "data", 0.1, 0, image_size=size).image_size == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image_size": "64"}, "image_size: expected a number of pixels .*, or height,width, or 'own', got '64'"),
        ({"image_size": (64, 0)}, r"image_size: expected a number of pixels .*, got \(64, 0\)"),
        ({"channels": "3"}, "channels: expected 1, 3 or 'auto', got '3'"),
        ({"channels": 2}, "channels: expected 1, 3 or 'auto', got 2"),
    ],
)
def test_other_sizes_and_channels_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data("MNIST5k", "data", 0.1, 0, **how)


def test_a_random_crop_is_a_part_of_the_image() -> None:
    """Of a ramp, a part is a ramp: its slope is the length of its side, and it lies within the image."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(64, 64)
    images = torch.stack([ramp, ramp.T]).expand(200, 2, 64, 64)
    parts = random_crop(images, 0.25, torch.Generator().manual_seed(0))
    assert parts.dtype == torch.uint8 and parts.shape == images.shape
    values = parts.float() / 255
    width = (values[:, 0, 32, 48] - values[:, 0, 32, 16]) * 63 / 32
    height = (values[:, 1, 48, 32] - values[:, 1, 16, 32]) * 63 / 32
    share, ratio = width * height, width / height
    assert 0.22 < share.min() < 0.35 and 0.85 < share.max() <= 1.05
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.42
    again = random_crop(images, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(parts, again)
    whole = random_crop(images, 1.0, torch.Generator().manual_seed(0)).float()
    assert ((whole - images.float()).abs().mean((1, 2, 3)) < 12).all()  # only the ratio of the sides changes


@pytest.fixture(scope="module")
def trained(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> BayesianSettings:
    """A LeNet on the centers of 40×56 pixels of the wide images."""
    changes: dict[str, Any] = {"n_epochs": 2, "batch_size": 16, "random_crop": 0.5, "valid_ens": 1, "test_ens": 2}
    settings = bayesian_settings(
        wide, tmp_path_factory.mktemp("trained"), image_size=(40, 56), center_crop=True, random_shift=4, **changes
    )
    run(settings)
    return settings


def files(settings: BayesianSettings) -> Path:
    return Path(settings.checkpoint_dir) / "wide" / "bayesian" / "model_lenet.pt"


def test_the_size_travels_with_the_checkpoint(trained: BayesianSettings, wide: Path) -> None:
    path = files(trained)
    saved = load_network(path)
    assert saved.description.image_size == (40, 56) and saved.description.center_crop
    classifier = Classifier.load(path)
    assert classifier.image_shape == (3, 40, 56)
    picture = wide / "test" / "red" / "0.jpg"
    pixels = to_pixels(Image.open(picture), 3, (40, 56), center_crop=True)
    assert torch.equal(pixels, torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[:, :, 2:58])
    expected = classifier.predict(pixels, 3)
    for images in (picture, [Image.open(picture)], ImageFiles([picture], 3, (40, 56), True)):
        assert torch.equal(classifier.predict(images, 3).probs, expected.probs)
    with pytest.raises(ValueError, match="expected images \\[n, 3, 40, 56\\]"):
        classifier.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert load_training_data(saved, path, "data").image_size == (40, 56)
    test = load_test_data({path: saved}, str(wide), "data").test
    assert torch.equal(test.images[len(test) // 2], pixels) and len(classifier.predict(test.images).probs) == 16
    by_moments = classifier.predict(test.images, method="moments")
    drawn = classifier.predict(test.images, 200)
    assert (by_moments.probs - drawn.probs).abs().max() < 0.1


def test_unknown_images_come_at_the_size_of_the_known_ones(
    trained: BayesianSettings, wide: Path, tmp_path: Path
) -> None:
    paint(tmp_path / "others", 5, (30, 30))
    path = files(trained)
    data = load_test_data({path: load_network(path)}, str(wide), "data")
    sets = ImageSets.read(data, {"noise": "data", str(tmp_path / "others"): "data"})
    assert {name: tuple(images.shape[1:]) for name, images in sets.unknown.items()} == {
        "noise": (3, 40, 56),
        "others": (3, 40, 56),
    }
    expected = to_pixels(Image.open(tmp_path / "others" / "red" / "0.jpg"), 3, (40, 56), center_crop=True)
    assert any(torch.equal(image, expected) for image in sets.unknown["others"])
    _, report = evaluate({"bayesian": Classifier.load(path)}, sets, num_samples=2, corruptions=("fog", "elastic"))
    assert report["unknown_images"]["others"] == 10 and len(report["corruptions"]["bayesian"]["elastic"]) == 6


def test_an_exported_network_takes_the_height_and_width(trained: BayesianSettings, tmp_path: Path) -> None:
    saved = load_network(files(trained))
    network = MeanNetwork(saved.net, saved.description.mean, saved.description.std)
    path = export_network(network, 3, saved.description.image_size, tmp_path / "mean.pt2")
    images = torch.rand(5, 3, 40, 56)
    torch.testing.assert_close(torch.export.load(path).module()(images), network(images))


@pytest.mark.parametrize(("net_type", "least"), [("lenet", 16), ("alexnet", 29), ("3conv3fc", 23)])
def test_a_size_that_a_network_cannot_take_is_refused_with_the_least_that_it_can(
    net_type: str, least: int, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=rf"{net_type} cannot take images of shape .*: give an image_size of at least {least}$"
    ):
        start(bayesian_settings(pictures, tmp_path, net_type=net_type, image_size=(64, least - 1), random_shift=0))
    start(bayesian_settings(pictures, tmp_path, net_type=net_type, image_size=(64, least), random_shift=0))


@pytest.mark.parametrize(
    ("net_type", "size", "channels"),
    [
        ("resnet18", (32, 32), 1),
        ("resnet18", (96, 64), 3),
        ("mobilenet_v3_small", (64, 64), 1),
        ("vit_b_32", (64, 64), 3),
    ],
)
def test_networks_of_torchvision_are_built_by_their_names(net_type: str, size: tuple[int, int], channels: int) -> None:
    with torch.device("meta"):
        net = build(net_type, False, 7, channels, image_size=size)
        assert net(torch.zeros(2, channels, *size)).shape == (2, 7)
        bayesian = build(net_type, True, 7, channels, image_size=size)
    assert [name for name, _ in net.named_parameters()] == [
        name.removeprefix("0.") for name, _ in bayesian.named_parameters() if "posterior" not in name
    ]
    stem = net.get_submodule("conv1") if net_type == "resnet18" else None
    assert stem is None or stem.kernel_size == ((3, 3) if size == (32, 32) else (7, 7))


def test_every_network_of_torchvision_has_a_name() -> None:

    assert FACTORIES.keys() - {"unet"} | {"alexnet"} == {*models.list_models(module=models)}
    with torch.device("meta"), pytest.raises(UserError, match="vit_b_16 cannot be built .* square images, got 32×64"):
        build("vit_b_16", False, 3, 3, image_size=(32, 64))
    with torch.device("meta"), pytest.raises(UserError, match="its patches are of 14 pixels: give an image_size that"):
        build("vit_h_14", False, 3, 3, image_size=(32, 32))
    with torch.device("meta"):
        build("regnet_y_400mf", False, 3, 3, image_size=(64, 64))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of 1,000 classes in a file, as torchvision's are."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    net = models.resnet18(num_classes=1000)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), path)
    return path


class TestWeights:
    """A pretrained network in a file, its head replaced, the rest frozen."""

    def settings(self, wide: Path, folder: Path, pretrained: Path) -> BayesianSettings:
        changes: dict[str, Any] = {"net_type": "resnet18", "image_size": 64, "weights": str(pretrained), "n_epochs": 1}
        changes |= {"batch_size": 16, "valid_ens": 1, "test_ens": 2, "bayesian_layers": "last", "freeze": True}
        return bayesian_settings(wide, folder, **changes)

    def test_a_frozen_body_stays_and_its_bayesian_head_learns(
        self, wide: Path, tmp_path: Path, pretrained: Path
    ) -> None:
        settings = self.settings(wide, tmp_path, pretrained)
        start_net = start(settings)[0].net
        original = torch.load(pretrained, weights_only=True)
        run(settings)
        saved = load_network(tmp_path / "wide" / "bayesian" / "model_resnet18.pt")
        assert [name for name, _, _ in weight_posteriors(saved.net)] == ["0.fc.weight", "0.fc.bias"]
        state = saved.net.state_dict()
        for name, tensor in original.items():
            if not name.startswith("fc."):
                assert torch.equal(state[f"0.{name}"], tensor), name
        assert not torch.equal(state["0.fc.weight"], start_net.state_dict()["0.fc.weight"])
        assert saved.description.architecture["layers"] == "last"

    def test_moped_starts_from_the_weights(self, wide: Path, tmp_path: Path, pretrained: Path) -> None:
        settings = replace(
            self.settings(wide, tmp_path, pretrained), bayesian_layers="layer4.*", moped=0.1, freeze=False
        )
        data = load_data(str(wide), "data", 0.2, 0, image_size=(64, 64))
        net = build_network(settings, describe(settings, data))
        names = [name for name, _, _ in weight_posteriors(net)]
        assert names and all(name.startswith("0.layer4.") for name in names)
        for _, mean, posterior in weight_posteriors(net):
            torch.testing.assert_close(posterior.std(mean), 0.1 * mean.abs(), rtol=1e-3, atol=1e-6)
        assert all(parameter.requires_grad for parameter in net.parameters())

    def test_frozen_layers_are_in_evaluation_during_training(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Linear(3, 3))
        net.register_parameter("token", nn.Parameter(torch.zeros(3)))  # as vision transformers have
        net[:2].requires_grad_(False)
        net.token.requires_grad_(False)
        set_to_train(net)
        assert [layer.training for layer in net] == [False, False, True, True] and net.training

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: {"other": torch.zeros(3)} | state, "the weights of another network: it has other"),
            (lambda state: dict(list(state.items())[1:]), "another network: conv1.weight is not in it"),
            (
                lambda state: state | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
                r"\[64, 1, 7, 7\], that .*\[64, 3, 7, 7\]",
            ),
            (lambda state: {"model": state}, "is not a state_dict"),
            (lambda state: {"weights": state, "description": {}}, "is a checkpoint of this library: give init_from"),
            (lambda state: {}, "is not a state_dict"),
        ],
    )
    def test_weights_that_do_not_fit_are_refused_in_one_line(
        self, change: Any, message: str, pretrained: Path, tmp_path: Path
    ) -> None:
        torch.save(change(torch.load(pretrained, weights_only=True)), tmp_path / "other.pth")
        net = build("resnet18", False, 2, 3, image_size=(64, 64))
        with pytest.raises(UserError, match=message) as error:
            load_weights(net, str(tmp_path / "other.pth"))
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="cannot read the weights .*none.pth"):
            load_weights(net, str(tmp_path / "none.pth"))

    def test_a_file_of_before_batches_were_counted_is_read(self, pretrained: Path, tmp_path: Path) -> None:
        older = torch.load(pretrained, weights_only=True)
        older = {name: tensor for name, tensor in older.items() if not name.endswith("num_batches_tracked")}
        torch.save(older, tmp_path / "older.pth")
        net = build("resnet18", False, 1000, 3, image_size=(64, 64))
        load_weights(net, str(tmp_path / "older.pth"))
        assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in older.items())

    def test_safetensors_hold_weights_too(self, tmp_path: Path) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        net, other = build("lenet", False, 4, 1), build("lenet", True, 4, 1)
        safetensors.save_file(net.state_dict(), tmp_path / "lenet.safetensors")
        load_weights(other, str(tmp_path / "lenet.safetensors"))
        assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


def test_some_layers_of_a_network_of_ours_are_bayesian(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, n_epochs=1, bayesian_layers="fc*", layer_type="lrt")
    run(settings)
    saved = load_network(run_files(settings).best)
    assert {name.split(".")[1] for name, _, _ in weight_posteriors(saved.net)} == {"fc1", "fc2", "fc3"}
    frequentist = frequentist_settings(pictures, tmp_path, n_epochs=1)
    run(frequentist)
    again = replace(
        settings, init_from=str(run_files(frequentist).best), moped=0.05, checkpoint_dir=str(tmp_path / "2")
    )
    inner = start(again)[0].net.state_dict()
    for name, tensor in weights(run_files(frequentist).best).items():
        assert torch.equal(inner[f"0.{name}"], tensor)
    with pytest.raises(UserError, match="layers='conv9' selects no layer"):
        start(replace(settings, bayesian_layers="conv9"))


def idx(values: np.ndarray[Any, Any]) -> bytes:
    """An array of bytes in the format of MNIST."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a FashionMNIST of 30 and 10 images, with their archives; torchvision knows their checksums."""
    random, raw, resources = np.random.default_rng(0), tmp_path / "FashionMNIST" / "raw", []
    raw.mkdir(parents=True)
    for split, count in (("train", 30), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, values in (
            ("images-idx3", random.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", labels),
        ):
            archive = gzip.compress(idx(values))
            name = f"{split}-{kind}-ubyte"
            (raw / name).write_bytes(idx(values))
            (raw / f"{name}.gz").write_bytes(archive)
            resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    return tmp_path


def test_a_data_set_by_name_is_verified_against_its_archive(clothes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_data("FashionMNIST", clothes, 0.2, 0)
    assert before.classes[0] == "T-shirt/top" and before.counts["test"]["Bag"] == 1 and not before.flippable
    file = clothes / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    after = load_data("FashionMNIST", clothes, 0.2, 0)
    assert torch.equal(after.train.images, before.train.images)
    assert capsys.readouterr().err.count("is damaged: it is now") == 1
    raw = datasets.FashionMNIST(str(clothes), train=False).data
    assert torch.equal(after.test.images, transforms.resize(raw[:, None], [32, 32], antialias=True))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_emnist_is_upright_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files hold the transpose of every image; its archive holds files of other parts of it too."""
    random, raw = np.random.default_rng(0), tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    upright = {part: random.integers(0, 256, (count, 28, 28), dtype=np.uint8) for part, count in PARTS}
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for part, count in PARTS:
            labels = np.arange(count, dtype=np.uint8) % 47
            for kind, values in (
                ("images-idx3", np.ascontiguousarray(upright[part].transpose(0, 2, 1))),
                ("labels-idx1", labels),
            ):
                archive.writestr(f"gzip/emnist-balanced-{part}-{kind}-ubyte.gz", gzip.compress(idx(values)))
                archive.writestr(f"gzip/emnist-digits-{part}-{kind}-ubyte.gz", gzip.compress(idx(labels)))
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(raw / "gzip.zip"))
    for damaged in (False, True):
        data = load_data("EMNIST", tmp_path, 0.2, 0, image_size=(28, 28))
        assert len(data.classes) == 47 and data.classes[8:12] == ("8", "9", "A", "B") and not data.flippable
        assert torch.equal(data.test.images, torch.from_numpy(upright["test"])[:, None])
        assert data.test.labels.tolist() == list(range(10))
        assert ("is damaged: it is now" in capsys.readouterr().err) == damaged
        (raw / "emnist-balanced-test-images-idx3-ubyte").write_bytes(b"other bytes")


def test_svhn_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of MATLAB's format: images [32, 32, 3, n], and labels [n, 1] with 10 for the digit 0."""
    images, files = {}, {}
    for part, count in PARTS:
        pixels = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]})
        images[part], files[part] = pixels, ["http://127.0.0.1:9/", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    data = load_data("SVHN", tmp_path, 0.2, 0)
    assert data.channels == 3 and data.classes == tuple("0123456789")
    assert torch.equal(data.test.images, torch.from_numpy(images["test"].transpose(3, 2, 0, 1)))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(UserError, match="SVHN cannot be read without scipy: pip install scipy"):
            load_data("SVHN", tmp_path, 0.2, 0)
    refuses_other_bytes("SVHN", tmp_path, tmp_path / "test_32x32.mat")


def test_stl10_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each channel of an image is written column by column, and labels start at 1."""
    folder, images = tmp_path / "stl10_binary", {}
    folder.mkdir()
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for part, count in PARTS:
        images[part] = np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(images[part].transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes((np.arange(count) % 3 + 1).astype(np.uint8).tobytes())
    for attribute, names in (
        ("train_list", ("train_X", "train_y", "unlabeled_X")),
        ("test_list", ("test_X", "test_y")),
    ):
        files = [f"{name}.bin" for name in names]
        monkeypatch.setattr(datasets.STL10, attribute, [[file, md5(folder / file)] for file in files])
    monkeypatch.setattr(datasets.STL10, "url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    data = load_data("STL10", tmp_path, 0.2, 0)
    assert data.image_size == (96, 96) and data.classes == ("airplane", "bird", "car")
    assert torch.equal(data.test.images, torch.from_numpy(images["test"]))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    refuses_other_bytes("STL10", tmp_path, folder / "train_X.bin")


PARTS = (("train", 30), ("test", 10))


def refuses_other_bytes(name: str, folder: Path, file: Path) -> None:
    """A file with one other byte does not have its checksum, and is not read."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not in .* and could not be downloaded") as error:
        load_data(name, folder, 0.2, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_is_evaluated_on_images_of_its_own_channels(
    channels: int, pictures: Path, wide: Path, tmp_path: Path
) -> None:
    """Grey pictures for a network of color, and color ones for a network of grey."""
    root = pictures if channels == 3 else wide
    settings = bayesian_settings(root, tmp_path, channels=channels, n_epochs=1, batch_size=16)
    run(settings)
    path = RunFiles.for_run(settings, root.name, bayesian=True).best
    saved = load_network(path)
    data = load_test_data({path: saved}, str(root), "data")
    assert data.channels == channels == load_training_data(saved, path, "data").channels
    constants = (0.5,) * (4 - channels)
    other = saved._replace(description=replace(saved.description, mean=constants, std=constants))
    with pytest.raises(UserError, match="b.pt and a.pt are for other images or tasks"):
        load_test_data({Path("a.pt"): saved, Path("b.pt"): other}, str(root), "data")


def test_a_network_of_another_size_cannot_share_a_report(trained: BayesianSettings, wide: Path) -> None:
    saved = load_network(files(trained))
    other = saved._replace(description=replace(saved.description, image_size=(32, 32)))
    with pytest.raises(UserError, match="b.pt and a.pt are for other images or tasks"):
        load_test_data({Path("a.pt"): saved, Path("b.pt"): other}, str(wide), "data")
