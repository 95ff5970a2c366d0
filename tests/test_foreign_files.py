"""Files that are broken or hold something else: one line that names them, never a wrong network, image or log."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from images import ImageFiles
from layers import BBBLinear
from models import FORMAT, Description, build, load_network, save_network, write_checkpoint
from recording.recorder import read_recording, recording
from support import UserError

DESCRIPTION = Description("lenet", True, {}, tuple("0123456789"), (0.5,), (0.5,))


def content(**changes: Any) -> dict[str, Any]:
    """What a checkpoint of LeNet holds, with changes of its description."""
    return {"description": {**vars(DESCRIPTION), **changes}, "weights": build("lenet", True, 10, 1).state_dict()}


def test_the_checkpoint_that_the_cases_below_damage_loads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt", content())
    assert load_network(tmp_path / "model.pt").description.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "is not a readable checkpoint"),
        (lambda path: path.write_text("<html>404</html>"), "is not a readable checkpoint"),
        (lambda path: path.mkdir(), "is not a readable checkpoint"),
        (lambda path: np.savez(path.open("wb"), weights=np.ones(3)), "is not a readable checkpoint"),
        (lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path), f"expected format {FORMAT}, found None"),
        (lambda path: torch.save([1, 2], path), f"expected format {FORMAT}, found None"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "is not a readable checkpoint"),
        (lambda path: torch.save({**content(), "format": FORMAT + 1}, path), f"found {FORMAT + 1}"),
        (lambda path: torch.save({**content(), "format": FORMAT}, path), "is damaged"),
        (lambda path: write_checkpoint(path, content(net_type="alexnet")), "Error.s. in loading state_dict"),
        (lambda path: write_checkpoint(path, content(classes=("cat", "dog"))), "size mismatch|Error.s. in loading"),
        (lambda path: write_checkpoint(path, content(mean=(0.1, 0.2, 0.3))), "size mismatch|Error.s. in loading"),
        (lambda path: write_checkpoint(path, content(bayesian=False)), "does not hold a network"),
        (lambda path: write_checkpoint(path, content(net_type="os:system")), "holds a network that 'os:system' makes"),
        (lambda path: write_checkpoint(path, content(net_type=["lenet"])), "holds a network that"),
        (lambda path: write_checkpoint(path, content(architecture={"layers": 3})), "does not hold a network"),
        (lambda path: write_checkpoint(path, content(architecture={"priors": {"prior_sigma": -1}})), "prior_sigma"),
        (lambda path: write_checkpoint(path, content(classes=None)), "does not hold a network"),
        (lambda path: write_checkpoint(path, {"description": 3, "weights": {}}), "does not hold a network"),
        (lambda path: write_checkpoint(path, {"description": content()["description"]}), "does not hold a network"),
        (lambda path: write_checkpoint(path, content() | {"weights": {"fc": "text"}}), "does not hold a network"),
    ],
)
def test_a_foreign_checkpoint_is_one_line_that_names_it(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(UserError, match=message) as refused:
        load_network(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_keeps_its_own_classes_and_channels(tmp_path: Path) -> None:
    net = build("lenet", True, 3, 3)
    save_network(
        tmp_path / "model.pt", net, Description("lenet", True, {}, ("a", "b", "c"), (0.1, 0.2, 0.3), (1, 1, 1))
    )
    again, description, _ = load_network(tmp_path / "model.pt")
    assert description.classes == ("a", "b", "c")
    assert again.state_dict()["conv1.weight"].equal(net.state_dict()["conv1.weight"])


GREY = np.linspace(0, 255, 32 * 32).reshape(32, 32).round().astype(np.uint8)


def _tiff(pixels: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pixels).save(path, "TIFF")


def _png(picture: Image.Image) -> Callable[[Path], object]:
    return lambda path: picture.save(path, "PNG")


@pytest.mark.parametrize(
    "write",
    [
        _png(Image.fromarray(GREY)),
        _png(Image.fromarray(GREY).convert("RGB")),
        _png(Image.fromarray(GREY).convert("RGBA")),
        _png(Image.fromarray(GREY).convert("LA")),
        _png(Image.fromarray(GREY).convert("P")),
        _png(Image.fromarray(GREY.astype(np.uint16) * 257)),
        _tiff(GREY.astype(np.int32) * 257),
        lambda path: Image.fromarray(GREY).convert("CMYK").save(path, "TIFF"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_any_mode_gives_the_same_pixels(
    write: Callable[[Path], object], channels: int, tmp_path: Path
) -> None:
    write(tmp_path / "picture")
    image = ImageFiles([str(tmp_path / "picture")], channels)[0]
    assert image.shape == (channels, 32, 32)
    assert (image.int() - torch.from_numpy(GREY).int()).abs().max() <= 1


def _cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:500])


def _bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no picture"),
        lambda path: path.mkdir(),
        _cut,
        _bomb,
        _tiff(np.full((32, 32), np.nan, np.float32)),
        _tiff(np.full((32, 32), 0.5, np.float32)),
        _tiff(np.full((32, 32), -1, np.int32)),
        _tiff(np.full((32, 32), 1 << 20, np.int32)),
    ],
)
def test_a_file_that_is_no_picture_is_one_line_that_names_it(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for channels in (1, 3):
            with pytest.raises(UserError, match="^cannot read the image .*picture.png: ") as refused:
                ImageFiles([str(path)], channels)[0]
            assert "\n" not in str(refused.value)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    layer = BBBLinear(3, 2, name="fc")
    with recording(layer, tmp_path, batches=4) as recorder:
        for _ in range(8):
            layer(torch.randn(2, 3))
            recorder.step()
    return tmp_path / "fc.h5"


def test_a_damaged_log_is_refused_or_whole_up_to_the_damage(log: Path) -> None:
    """Cut off at 50 lengths, and with a bit flipped at 150 places."""
    whole, read = log.read_bytes(), read_recording(log)
    chance, refused, shorter = random.Random(0), 0, 0
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(50)]
    for _ in range(150):
        at = chance.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    for bad in damaged:
        log.write_bytes(bad)
        try:
            found = read_recording(log)
        except UserError as error:
            assert str(log) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        count = len(found.epoch)
        shorter += count < len(read.epoch)
        for name in ("epoch", "batch", "mean", "variance"):
            np.testing.assert_array_equal(getattr(found, name), getattr(read, name)[:count])
        assert (found.settings, found.kind, found.nodes.tolist()) == (read.settings, read.kind, read.nodes.tolist())
    assert refused > 50 and shorter > 0


def test_a_log_that_unpacks_to_more_than_it_weighs_is_refused(log: Path) -> None:
    with h5py.File(log, "r+") as file:
        file.create_dataset("bomb", (1 << 40,), "u1", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(UserError, match="its tables are larger than the file"):
        read_recording(log)
