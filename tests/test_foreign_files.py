"""Files that are broken or hold something else: one line that names them, never a wrong network, image or log."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import resource
import shutil
import socket
import sqlite3
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, same
from PIL import EpsImagePlugin, ExifTags, Image
from torch import nn

from images import ImageFiles, files, load_data, read_images, to_pixels
from layers import BBBLinear
from models import FORMAT, Description, build, load_network, read_checkpoint, save_network, write_checkpoint
from recording import read_recording, recording
from support import UserError
from training import BayesianSettings, Setup, State, restore, start

RGB = (0.1, 0.2, 0.3)
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
        (lambda path: write_checkpoint(path, content(mean=RGB, std=RGB)), "size mismatch|Error.s. in loading"),
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


def _shared() -> list[Any]:
    """Forty lists, each twice in the next one: 2^40 values for who walks through it."""
    values: list[Any] = [1]
    for _ in range(40):
        values = [values, values]
    return values


def _selfish() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


def _archive(pickle: bytes, *members: tuple[str, bytes]) -> Callable[[Path], object]:
    """Writes the archive of a pickle, as torch.save does."""

    def write(path: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
            for name, data in (("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n"), *members):
                archive.writestr(f"archive/{name}", data)

    return write


def _tensor(storage: bytes, sizes: bytes, strides: bytes) -> bytes:
    """The pickle of a tensor over `storage` float32 values."""
    identity = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0\x30X\3\0\0\0cpu" + storage + b"tQ"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\0" + sizes + strides
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )  # fmt: skip


def _saved(make: Callable[[], Any]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of sparse and quantized tensors
            torch.save({"format": FORMAT, "weights": make()}, path)

    return write


FOUR = ("data/0", bytes(16))
BILLION = b"\x8a\x05\0\0\0\0\2"  # 2^33
FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "stride 0": (_saved(lambda: torch.zeros(1).expand(3 * 10**9)), "whose elements overlap"),
    "overlap": (_saved(lambda: torch.zeros(10**6).as_strided((10**6 - 999, 1000), (1, 1))), "whose elements overlap"),
    "many views": (_saved(lambda: [torch.zeros(10**6)] * 10**4), "tensors are larger than the file"),
    "sparse": (_saved(lambda: torch.sparse_coo_tensor(size=(10**9, 10**9))), "something else than plain values"),
    "meta": (_saved(lambda: torch.zeros(10**12, device="meta")), "something else than plain values"),
    "quantized": (_saved(lambda: torch.quantize_per_tensor(torch.ones(9), 1, 0, torch.qint8)), "something else than"),
    "conjugate": (_saved(lambda: torch.ones(9, dtype=torch.complex64).conj()), "a tensor that is not dense"),
    "negative": (_saved(lambda: torch.ones(9, dtype=torch.complex64).conj().imag), "a tensor that is not dense"),
    "shared lists": (_saved(_shared), "nested too deeply"),
    "in itself": (_saved(_selfish), "nested too deeply"),
    "deep": (_archive(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."), "nested too deeply"),
    "deep and wide": (_saved(lambda: [[[0] * 3000] * 300] * 3000), "nested too deeply, or are too many"),
    "many values": (_archive(b"\x80\x02](" + b"K\0" * 2**22 + b"e."), "more than 1,048,576 values"),
    "one string many times": (_saved(lambda: ["x" * 10**6] * 10**5), "tensors are larger than the file"),
    "one key many times": (_saved(lambda: [{"x" * 10**6: 0}] * 10**5), "tensors are larger than the file"),
    "huge integer": (_saved(lambda: 10**600), "something else than plain values"),
    "bytearray": (_archive(b"\x80\x02c__builtin__\nbytearray\n" + BILLION + b"\x85R."), "something else than plain"),
    "set": (_saved(lambda: {1, 2}), "something else than plain values"),
    "copies": (_archive(b"\x80\x02ccollections\nOrderedDict\n](]K\0K\0eh\0\x85R."), "is not a readable checkpoint"),
    "key": (_saved(lambda: {(1, 2): 3}), "the key of a dict"),
    "attributes": (_archive(b"\x80\x02ccollections\nOrderedDict\n)R}X\1\0\0\0aK\0sb."), "it sets attributes"),
    "memo": (_archive(b"\x80\x02Nr\xff\xff\xff\xff0."), "opcode POP"),
    "storage": (_archive(_tensor(BILLION, b"K\4\x85", b"K\1\x85"), FOUR), "the size of a tensor's data"),
    "size": (_archive(_tensor(b"K\4", BILLION + b"\x85", b"K\1\x85"), FOUR), "larger than its data"),
    "negative size": (_archive(_tensor(b"K\4", b"J\xff\xff\xff\xff\x85", b"K\1\x85"), FOUR), "an impossible shape"),
    "dimensions": (_archive(_tensor(b"K\4", b"(" + b"K\1" * 999 + b"t", b"(" + b"K\1" * 999 + b"t"), FOUR), "dense"),
    "no pickle": (lambda path: zipfile.ZipFile(path, "w").close(), "is an empty archive"),
    "two pickles": (_archive(b"\x80\x02N.", ("data.pkl", b"\x80\x02N.")), "its parts are ambiguous"),
    "another pickle": (_archive(b"\x80\x02N.", ("Data.pkl", b"\x80\x02N.")), "its parts are ambiguous"),
    "pipe": (lambda path: os.mkfifo(path), "it is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
}


@pytest.mark.parametrize(("write", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_checkpoint_is_refused_within_seconds_and_little_memory(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    write(path)
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(UserError, match=message) as refused:
        load_network(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # KiB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", 5)}, "classes: expected a non-empty string"),
        ({"classes": ()}, "classes: expected a tuple that is not empty"),
        ({"classes": ["c"] * 10**5, "net_type": "3conv3fc"}, "values, its weights are"),
        ({"mean": (math.nan,)}, "mean: expected a number"),
        ({"mean": 10**9}, "mean: expected a tuple"),
        ({"std": (0.0,)}, "std: expected a number > 0"),
        ({"std": (math.inf,)}, "std: expected a number > 0"),
        ({"std": (1.0, 1.0)}, "of the same channels, got 1 and 2"),
        ({"bayesian": 1}, "must be a string, two bools and two dicts"),
        ({"architecture": []}, "must be a string, two bools and two dicts"),
        ({"more": 1}, "more"),
        ({"architecture": {"alpha_shape": (10**9, 1)}}, "alpha_shape"),
        ({"architecture": {"priors": {"prior": {"family": "Normal", "loc": "x"}}}}, "does not hold a network"),
        ({"architecture": {1: 2}}, "does not hold a network"),
    ],
)
def test_a_forged_description_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_checkpoint(path, content(**changes))
    with pytest.raises(UserError, match=message) as refused:
        load_network(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 1100


def test_tied_and_transposed_weights_of_every_kind_are_read(tmp_path: Path) -> None:
    weight = torch.randn(8, 3, 4, 4)
    values = {
        "tied": [weight, weight],
        "transposed": weight.permute(3, 1, 0, 2),
        "channels_last": weight.to(memory_format=torch.channels_last),
        "slice": weight[:, 1:, ::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.0),
        "parameter": nn.Parameter(torch.ones(3)),
        "kinds": [torch.ones(3, dtype=kind) for kind in (torch.half, torch.bfloat16, torch.int8, torch.complex64)],
        "values": (None, True, -1, 2**63, 0.5, math.inf, "σ"),
    }
    write_checkpoint(tmp_path / "model.pt", values)
    assert same(read_checkpoint(tmp_path / "model.pt"), {"format": FORMAT, **values})


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*model.pt: it holds a tensor whose elements overlap: keep"):
        write_checkpoint(tmp_path / "model.pt", {"weights": {"a": torch.zeros(1).expand(5)}})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(finished_run: BayesianSettings) -> tuple[State, Setup, dict[str, Any]]:
    """A run like the finished one, and the content of that one's last.pt."""
    state, setup = start(finished_run)
    return state, setup, read_checkpoint(setup.files.last)


def _state(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Changes the optimizer's state of the first parameter, of shape [6, 1, 5, 5]."""
    return lambda content: content["optimizer"]["state"][0].update(changes)


def _group(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["optimizer"]["param_groups"][0].update(changes)


def _progress(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["progress"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_state(exp_avg=torch.zeros(1)), "exp_avg of parameter 0 is not a torch.float32 tensor .6, 1, 5, 5."),
        (_state(exp_avg_sq=torch.zeros(6, 1, 5, 50)), "exp_avg_sq of parameter 0 is not a torch.float32 tensor"),
        (_state(exp_avg=torch.zeros(6, 1, 5, 5).double()), "exp_avg of parameter 0 is not a torch.float32 tensor"),
        (_state(exp_avg=[0.0]), "exp_avg of parameter 0 is not a torch.float32 tensor"),
        (_state(step=torch.zeros(5)), "step of parameter 0 is not a torch.float32 tensor"),
        (_state(step=3), "step of parameter 0 is not a torch.float32 tensor"),
        (_state(max_exp_avg_sq=torch.zeros(6, 1, 5, 5)), "state of parameter 0 holds"),
        (lambda content: content["optimizer"]["state"].update({99: {}}), "parameters that the network does not have"),
        (lambda content: content["optimizer"]["state"][0].pop("exp_avg"), "state of parameter 0 holds"),
        (lambda content: content["optimizer"].update(state=3), "cannot be resumed"),
        (lambda content: content["optimizer"]["param_groups"].pop(), "other parameters"),
        (_group(params=[0, 1]), "other parameters"),
        (_group(lr="fast"), "expected a number|a number ≥ 0"),
        (_group(betas=(0.9,)), "betas"),
        (_group(amsgrad=True), "amsgrad"),
        (_group(fused="yes"), "fused"),
        (_progress(epoch=10**9), "its history is not of 1000000000 epochs"),
        (_progress(epoch=2**64 - 1), "its epoch is 18446744073709551615: expected an integer"),
        (_progress(epoch=True), "its epoch is True: expected an integer"),
        (_progress(batch=-1), "its batch is -1: expected an integer from 0 to 9"),
        (_progress(batch=10), "its batch is 10: expected an integer from 0 to 9"),
        (_progress(batch=3), "its scheduler is at step 9, its progress at another one"),
        (_progress(steps=torch.zeros(10, 4)), "it is of a run with 10 batches per epoch, not 9"),
        (_progress(steps=torch.zeros(9, 5)), "it is of a run with 9 batches"),
        (_progress(steps=3), "it is of a run with 0 batches"),
        (_progress(seconds=math.nan), "its seconds is nan: expected a number"),
        (_progress(best_nll="low"), "its best_nll is 'low'"),
        (_progress(best_epoch=7), "its history is not of 1 epochs"),
        (_progress(history=[{"epoch": "one"}]), "a row that is not of figures"),
        (_progress(history=[3]), "a row that is not of figures"),
        (_progress(more=1), "more"),
        (lambda content: content.update(progress=3), "cannot be resumed"),
        (lambda content: content.update(scheduler={"last_epoch": 10**9}), "its scheduler is at step 1000000000"),
        (lambda content: content.update(weights=3), "cannot be resumed"),
        (lambda content: content.update(settings=3), "cannot be resumed"),
        (lambda content: content.update(random=[(torch.zeros(3, dtype=torch.uint8), None)]), "cannot be resumed"),
        (lambda content: content.update(random=3), "cannot be resumed"),
    ],
)
def test_a_forged_last_pt_is_one_line_before_it_is_used(
    change: Callable[[dict[str, Any]], object], message: str, finished: tuple[State, Setup, dict[str, Any]]
) -> None:
    state, setup, content = finished
    content = copy.deepcopy(content)
    change(content)
    with pytest.raises(UserError, match=message) as refused:
        restore(state, setup, content)
    assert str(setup.files.last) in str(refused.value) and "\n" not in str(refused.value)


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
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        lambda path: Image.fromarray(GREY).save(path, "PCX"),  # of a format that is not read
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


def test_a_postscript_file_with_the_name_of_a_picture_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ghostscript is called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / "picture.png"
    Image.fromarray(GREY).save(path, "EPS")
    with pytest.raises(UserError, match="cannot identify image file"):
        ImageFiles([path], 1)[0]
    with pytest.raises(UserError, match="holds no readable image .1 files look like one"):
        read_images(tmp_path, 1)


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just below the size of a bomb, each takes up to a gigabyte."""
    running, most = 0, []

    def slow(picture: Image.Image, channels: int, *how: Any) -> torch.Tensor:
        nonlocal running
        running += 1
        most.append(running)
        time.sleep(0.01)
        running -= 1
        return to_pixels(picture, channels, *how)

    monkeypatch.setattr(files, "to_pixels", slow)
    Image.fromarray(GREY).save(tmp_path / "picture.png")
    pictures = ImageFiles([tmp_path / "picture.png"] * 8, 1)
    assert pictures.decode_all().shape[0] == 8 and max(most) > 1
    most.clear()
    monkeypatch.setattr(files, "LARGE", 1000)
    assert pictures.decode_all().shape[0] == 8 and max(most) == 1


def test_all_16_bits_are_scaled_to_the_nearest_of_8() -> None:
    values = np.arange(2**16, dtype=np.uint16)[:, None].repeat(32, 1)
    rows = [to_pixels(Image.fromarray(chunk), 1)[0, :, 0] for chunk in np.split(values, 2048)]
    assert torch.equal(torch.cat(rows), (torch.arange(2**16).double() / 257).round().to(torch.uint8))


@pytest.mark.parametrize("name", ["over" * 70, "a\0b", "not\nthere", "no\udcff"])
def test_an_impossible_path_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (
        lambda: ImageFiles([f"{name}.png"], 1)[0],
        lambda: read_images(Path(name), 1),
        lambda: load_data(name, "data", 0.1, 0),
        lambda: load_data(f"{name}/set", "data", 0.1, 0),
    ):
        with pytest.raises(UserError) as refused:
            read()
        assert str(refused.value).isprintable() and len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_mutated_picture_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path, chance = tmp_path / "picture.png", random.Random(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(GREY).save(path, kind, exif=exif)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert ImageFiles([path], 1)[0].shape == (1, 32, 32)
            except UserError as error:
                refused += 1
                assert str(error).isprintable()
    assert refused > 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(GREY).resize((20, 30))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera so held does to the scene
    picture = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / "picture.png", exif=exif)
    pixels = ImageFiles([tmp_path / "picture.png"], 1)[0]
    assert torch.equal(pixels, to_pixels(upright, 1))
    with Image.open(tmp_path / "picture.png") as opened:
        assert torch.equal(to_pixels(opened, 1), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_says_nothing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "picture.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert torch.equal(ImageFiles([tmp_path / "picture.png"], 1)[0], torch.from_numpy(GREY)[None])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    layer = BBBLinear(3, 2, name="fc")
    with recording(layer, tmp_path, batches=4) as recorder:
        for _ in range(8):
            layer(torch.randn(2, 3))
            recorder.step()
    return tmp_path / "fc.sqlite"


@pytest.fixture
def old_log(tmp_path: Path) -> Path:
    """A recording of the earlier version, HDF5."""
    return Path(shutil.copy(ROOT / "tests" / "data" / "fc.h5", tmp_path))


@pytest.mark.parametrize(("name", "cuts", "flips", "all_refused"), [("log", 100, 400, 80), ("old_log", 50, 150, 50)])
def test_a_damaged_log_is_refused_or_whole_up_to_the_damage(
    name: str, cuts: int, flips: int, all_refused: int, request: pytest.FixtureRequest
) -> None:
    """Cut off, and with a bit flipped, at random places."""
    log: Path = request.getfixturevalue(name)
    whole, read = log.read_bytes(), read_recording(log)
    chance, refused, shorter = random.Random(0), 0, 0
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(cuts)]
    for _ in range(flips):
        at = chance.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    for bad in damaged:
        log.write_bytes(bad)
        try:
            recorded = read_recording(log)
        except UserError as error:
            assert str(log) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        shorter += len(recorded.epoch) < len(read.epoch) or len(recorded.posterior_epoch) < len(read.posterior_epoch)
        for array in ("epoch", "batch", "mean", "variance", "posterior_epoch"):
            values = getattr(recorded, array)
            np.testing.assert_array_equal(values, getattr(read, array)[: len(values)])
        for key, weight in recorded.weights.items():
            count = len(weight.mean)
            np.testing.assert_array_equal(weight.mean, read.weights[key].mean[:count])
            np.testing.assert_array_equal(weight.std, read.weights[key].std[:count])
        for attribute in ("settings", "kind", "layer", "order", "kept", "node_shape", "batches", "frequency"):
            assert getattr(recorded, attribute) == getattr(read, attribute)
        np.testing.assert_array_equal(recorded.nodes, read.nodes)
    print(f"{log.name}: {len(damaged)} damaged, {refused} refused, {shorter} read up to the damage")
    assert refused > all_refused and shorter > 0


def execute(log: Path, *statements: str) -> None:
    with closing(sqlite3.connect(log)) as database:
        for statement in statements:
            database.executescript(statement)


def describe(log: Path, **changes: Any) -> None:
    """Change what a recording says about itself, with a checksum that fits."""
    with closing(sqlite3.connect(log)) as database, database:
        about = json.dumps(json.loads(database.execute("SELECT json FROM about").fetchone()[0]) | changes)
        database.execute("UPDATE about SET json = ?, crc32 = ?", (about, zlib.crc32(about.encode())))


def replace_blob(log: Path, blob: Any) -> None:
    """Give the first record another mean, with a checksum that fits."""
    with closing(sqlite3.connect(log)) as database, database:
        (variance,) = database.execute("SELECT variance FROM moments WHERE step = 1").fetchone()
        values = blob, zlib.crc32(b"1" + bytes(blob) + variance)
        database.execute("UPDATE moments SET mean = ?, crc32 = ? WHERE step = 1", values)


def replace_by_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


HUGE = {"shape": [2**40], "kept": [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.write_bytes(b""), "another program's database"),
        (lambda log: execute(log, "PRAGMA application_id = 0"), "another program's database"),
        (lambda log: execute(log, "PRAGMA user_version = 3"), "recording of version 3: expected version 2"),
        (lambda log: execute(log, "CREATE VIEW v AS SELECT 1"), "its tables are not those of a recording"),
        (lambda log: execute(log, "CREATE TABLE more (a)"), "its tables are not those of a recording"),
        (lambda log: execute(log, "CREATE INDEX i ON moments (crc32)"), "its tables are not those of a recording"),
        (
            lambda log: execute(log, "CREATE TRIGGER t AFTER INSERT ON moments BEGIN DELETE FROM moments; END"),
            "its tables are not those of a recording",
        ),
        (lambda log: execute(log, "CREATE VIRTUAL TABLE f USING fts5(a)"), "its tables are not those of a recording"),
        (
            lambda log: execute(log, "ALTER TABLE moments ADD COLUMN g GENERATED ALWAYS AS (zeroblob(1000000000))"),
            "its tables are not those of a recording",
        ),
        (
            lambda log: execute(
                log,
                "ALTER TABLE moments RENAME TO hidden",
                "CREATE VIEW moments AS SELECT step, randomblob(9), variance, crc32 FROM hidden",
            ),
            "its tables are not those of a recording",
        ),
        (lambda log: execute(log, "DELETE FROM about"), "is not a readable recording"),
        (lambda log: execute(log, "INSERT INTO about SELECT * FROM about"), "is not a readable recording"),
        (lambda log: execute(log, "UPDATE about SET json = json || ' '"), "its description has another checksum"),
        (lambda log: replace_blob(log, b"1234"), "its rows differ in size"),
        (lambda log: describe(log, examples=3), "cannot reshape"),
        (lambda log: describe(log, examples=2**62), "an integer from 1 to 65536"),
        (lambda log: describe(log, examples=-1), "an integer from 1 to 65536"),
        (lambda log: describe(log, batches=0), "an integer ≥ 1"),
        (lambda log: describe(log, node_shape=[2**40, 2**40]), "a tensor too large"),
        (lambda log: describe(log, node_shape=[1] * 99), "a tensor too large"),
        (lambda log: describe(log, nodes=[1, 0]), "its indices are not those of its tensors"),
        (lambda log: describe(log, nodes=[0, 2]), "its indices are not those of its tensors"),
        (lambda log: describe(log, nodes=[-1, 0]), "its indices are not those of its tensors"),
        (lambda log: describe(log, weights={}), "weight"),
        (lambda log: describe(log, weights={"weight": HUGE, "bias": HUGE}), "cannot reshape"),
        (lambda log: describe(log, settings=3), "is not a readable recording"),
        (lambda log: log.unlink() or log.mkdir(), "it is not a regular file"),
        (lambda log: log.unlink() or log.symlink_to("/dev/zero"), "it is not a regular file"),
        (lambda log: replace_by_pipe(log), "it is not a regular file"),
        (lambda log: replace_by_pipe(log.with_name("fc.sqlite-journal")), "its journal is not a regular file"),
    ],
)
def test_a_foreign_log_is_one_line_that_names_it(change: Callable[[Path], object], message: str, log: Path) -> None:
    change(log)
    with pytest.raises(UserError, match=message) as refused:
        read_recording(log)
    assert str(log) in str(refused.value) and "\n" not in str(refused.value)


def test_a_log_that_overlaps_itself_is_refused(log: Path) -> None:
    """Two tables in the same pages: a small file that would be read as a large one."""
    execute(
        log,
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = "
        "(SELECT rootpage FROM sqlite_master WHERE name = 'moments') WHERE name = 'posterior'",
    )
    with pytest.raises(UserError, match="it is damaged: .*2nd reference to page"):
        read_recording(log)


def _link(file: h5py.File, name: str, link: Any) -> None:
    del file[name]
    file[name] = link


def _replace_dataset(file: h5py.File, name: str, **storage: Any) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values, **storage)


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
    layout[:] = h5py.VirtualSource(file.filename, "posterior/weight_mean", file[name].shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.create_dataset("bomb", (1 << 40,), "u1"), "its tables are larger than the file"),
        (
            lambda file: file.create_dataset("bomb", (1 << 40,), "u1", chunks=(1 << 20,), compression="gzip"),
            "bomb is compressed or lies in another file",
        ),
        (lambda file: _replace_dataset(file, "nodes", compression="gzip"), "nodes is compressed"),
        (lambda file: _replace_dataset(file, "nodes", external="/etc/passwd"), "nodes .* lies in another file"),
        (lambda file: _virtual(file, "nodes"), "nodes .* lies in another file"),
        (lambda file: _link(file, "nodes", h5py.ExternalLink("/etc/passwd", "nodes")), "another checksum"),
        (lambda file: _link(file, "nodes", h5py.SoftLink("/weight_kept")), "another checksum"),
        (lambda file: _link(file, "moments/mean", h5py.ExternalLink("other.h5", "mean")), "another checksum"),
        (lambda file: file.attrs.update(layer="other"), "another checksum"),
        (lambda file: file.attrs.update(format="mine"), "is not a recording: expected the format"),
    ],
)
def test_a_foreign_log_of_the_earlier_version_is_one_line(
    change: Callable[[h5py.File], object], message: str, old_log: Path
) -> None:
    with h5py.File(old_log, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message) as refused:
        read_recording(old_log)
    assert str(old_log) in str(refused.value) and "\n" not in str(refused.value)
