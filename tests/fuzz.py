"""Damaged and forged files and random command lines are read, or refused in one line; killed runs lose nothing.

    python -m tests.fuzz --seconds 600 --what files flags kills

A fault is a traceback, more than 10 seconds for a file, or more than 2 GiB of memory. The exit code is 1 if there was
one. Cases are drawn by the seed; the suite runs the first few of them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import benchmarks.__main__
import experiments.__main__
import inference.export
import inference.prune
import main_bayesian
import main_frequentist
import uncertainty_estimation
import visualize_mean_var
from images import ImageFiles
from models import load_network, read_checkpoint, write_checkpoint
from recording import read_recording
from support import UserError
from tests.conftest import ROOT, bayesian_settings, draw_pictures, run_files
from tests.kills import kill_runs
from training import comparison, read_results, resume, run, start

SECONDS, GIBIBYTES = 10, 2
SCRIPT_SECONDS = 120  # of a command line, which may be one that trains and draws
Outcomes = Iterator[str]  # one per case; a fault begins with 'FAULT'
Alter = Callable[[random.Random, Path, Path], None]  # chance, a good file, where a bad one goes

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**9, 0.5, -1.5, 1e308, 1e-320, math.nan, math.inf,
    "", "x", "x" * 5000, "two\nlines", "σ\u202e", "nul\0", "\ud800", "../..", "os:system", "__class__",
    [], {}, [[]], [0] * 1000, {"a": {"b": {}}}, {"": 0}, [1, "two", None],
)  # fmt: skip
TENSORS = (
    torch.zeros(()), torch.zeros(1), torch.zeros(0, 3), torch.full((6, 1, 5, 5), math.nan), torch.ones(7, 7).int(),
    torch.zeros(3, dtype=torch.bool), torch.zeros(2, dtype=torch.complex64), torch.randn(10, 84),
    torch.zeros(5056, dtype=torch.uint8), torch.full((2, 2), math.inf).half(),
)  # fmt: skip


class Hang(BaseException):
    """A case took too long; not an Exception, which the code under test may catch."""


# Files


def flip(chance: random.Random, good: Path, bad: Path) -> None:
    """Flip up to eight bits."""
    data = bytearray(good.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    bad.write_bytes(data)


def cut(chance: random.Random, good: Path, bad: Path) -> None:
    """Cut the end off, or a piece out."""
    data = good.read_bytes()
    start = chance.randrange(len(data))
    end = len(data) if chance.random() < 0.5 else chance.randrange(start, len(data))
    bad.write_bytes(data[:start] + data[end:])


def splice(chance: random.Random, good: Path, bad: Path) -> None:
    """Overwrite, or insert, a piece of the file or of noise at another place."""
    data = good.read_bytes()
    length = min(chance.randint(1, 4096), len(data))
    start, at = chance.randrange(len(data) - length + 1), chance.randrange(len(data))
    piece = data[start : start + length] if chance.random() < 0.5 else chance.randbytes(length)
    bad.write_bytes(data[:at] + piece + data[at + length * chance.randint(0, 1) :])


def forge(chance: random.Random, value: Any, extra: tuple[Any, ...] = ()) -> Any:
    """Nested plain values with one of them replaced, renamed, left out or doubled."""
    holder, key = None, None
    inner = value
    while isinstance(inner, (dict, list, tuple)) and inner and (holder is None or chance.random() < 0.85):
        if isinstance(inner, tuple):
            return _forged_tuple(chance, holder, key, inner, value, extra)
        holder, key = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = holder[key]
    if holder is None:
        return chance.choice(VALUES)
    act = chance.randrange(6)
    if act == 0:
        del holder[key]
    elif act == 1 and isinstance(holder, dict):
        holder[chance.choice(("more", "", "x" * 3000, 7))] = holder.pop(key)
    elif act == 2 and isinstance(holder, list):
        holder.extend(holder * chance.randint(1, 3))
    elif act == 3 and isinstance(inner, Tensor) and inner.numel():
        holder[key] = chance.choice((inner.double(), inner.flatten()[:-1].clone(), inner[None], inner.flatten()))
    else:
        holder[key] = chance.choice(VALUES + extra)
    return value


def _forged_tuple(
    chance: random.Random, holder: Any, key: Any, inner: tuple[Any, ...], value: Any, extra: tuple[Any, ...]
) -> Any:
    items = forge(chance, list(inner), extra)
    if holder is None:
        return items
    holder[key] = tuple(items) if isinstance(items, list) else items
    return value


def forge_checkpoint(chance: random.Random, good: Path, bad: Path) -> None:
    """Change up to three values, with a checksum that fits."""
    content = copy.deepcopy(read_checkpoint(good))
    for _ in range(chance.randint(1, 3)):
        content = forge(chance, content, TENSORS)
    try:
        write_checkpoint(bad, content if isinstance(content, dict) else {"content": content})
    except (UserError, UnicodeEncodeError, ValueError):  # it cannot be written, or not with a checksum
        torch.save(content, bad)


def repack(chance: random.Random, good: Path, bad: Path) -> None:
    """Damage one part of the archive, with a CRC-32 that fits."""
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in parts if name.endswith("data.pkl"))
    name = pickle if chance.random() < 0.8 else chance.choice(list(parts))
    part, whole = bad.with_suffix(".part"), bad.with_suffix(".whole")
    whole.write_bytes(parts[name] or b"\0")
    chance.choice((flip, flip, cut, splice))(chance, whole, part)
    parts[name] = part.read_bytes()
    with zipfile.ZipFile(bad, "w") as archive:
        for each, data in parts.items():
            archive.writestr(each, data)


def forge_recording(chance: random.Random, good: Path, bad: Path) -> None:
    """Change the description or a row, with a checksum that fits, or the tables."""
    shutil.copy(good, bad)
    with closing(sqlite3.connect(bad)) as database, database:
        act = chance.randrange(4)
        if act == 0:
            table, (name, other) = chance.choice((("moments", ("mean", "variance")), ("posterior", ("mean", "std"))))
            step, blob = database.execute(f"SELECT step, {other} FROM {table} LIMIT 1").fetchone()
            value = chance.choice((b"", b"123", chance.randbytes(2000), "text", 7, b"\xff" * len(blob)))
            checksum = zlib.crc32(b"%d" % step + (value if isinstance(value, bytes) else b"") + blob)
            database.execute(f"UPDATE {table} SET {name} = ?, crc32 = ?", (value, checksum))
        elif act == 1:
            database.execute(
                chance.choice(
                    (
                        "CREATE VIEW v AS SELECT 1",
                        "DROP TABLE posterior",
                        "UPDATE moments SET step = -step",
                        "UPDATE posterior SET crc32 = 'text'",
                        "DELETE FROM about",
                        "PRAGMA user_version = 2147483647",
                    )
                )
            )
        else:
            about = json.loads(database.execute("SELECT json FROM about").fetchone()[0])
            for _ in range(chance.randint(1, 2)):
                about = forge(chance, about)
            text = json.dumps(about)
            database.execute("UPDATE about SET json = ?, crc32 = ?", (text, zlib.crc32(text.encode())))


def forge_old_recording(chance: random.Random, good: Path, bad: Path) -> None:
    """Change an attribute or an array of an HDF5 recording, with a checksum that fits."""
    shutil.copy(good, bad)
    with h5py.File(bad, "r+") as file:
        data: dict[str, Any] = {}
        file.visititems(lambda name, item: data.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        if chance.random() < 0.7:
            name = chance.choice([name for name in file.attrs if name != "crc32"])
            values = ("text", 7, -1, 2**62, [1, 2], [2**40, 2**40], 0.5, [math.nan], "{}", "[" * 5000, [], "\ud800")
            with contextlib.suppress(TypeError, ValueError):
                file.attrs[name] = chance.choice(values)
        else:
            name = chance.choice(list(data))
            shape = [chance.choice((0, 1, size, size + 1)) for size in data[name].shape]
            del file[name]
            kind = chance.choice(("f4", "f8", "u1", "i8", "S5", "?"))
            data[name] = file.create_dataset(name, data=np.zeros(shape, kind))
        about = [repr((name, np.asarray(value).tolist())) for name, value in file.attrs.items() if name != "crc32"]
        for path, array in data.items():
            about.append(repr((path, array.dtype.str, array.shape[1:] if "/" in path else array[()].tolist())))
        value = 0
        for text in sorted(about):
            value = zlib.crc32(text.encode(errors="surrogatepass"), value)
        file.attrs["crc32"] = value


def forge_results(chance: random.Random, good: Path, bad: Path) -> None:
    """Change up to three values of the JSON, or write JSON of another shape."""
    content = json.loads(good.read_text())
    for _ in range(chance.randint(1, 3)):
        content = forge(chance, content)
    text = json.dumps(content)
    bad.write_text(chance.choice((text, text, text, text.replace("1", "1" * 5000, 1), "[" * 100_000, "{}", "null")))


def forge_image(chance: random.Random, good: Path, bad: Path) -> None:
    """Write another format, mode or size under the name, often damaged too."""
    mode = chance.choice(("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"))
    size = chance.choice(((1, 1), (1, 3000), (32, 32), (300, 7)))
    with contextlib.suppress(OSError, ValueError, KeyError):
        Image.new(mode, size).save(bad, chance.choice(("PNG", "GIF", "TIFF", "BMP", "JPEG", "WEBP", "PPM", "EPS")))
        if chance.random() < 0.7:
            whole = Path(shutil.copy(bad, bad.with_suffix(".whole")))
            flip(chance, whole, bad)
        return
    splice(chance, good, bad)


@dataclass(frozen=True)
class Target:
    """A kind of file: a good one, how else it is altered than by damage, and what reads it."""

    good: Path
    forgeries: tuple[Alter, ...]
    read: Callable[[Path], object]


def targets(folder: Path) -> dict[str, Target]:
    """Every kind of file, from a run on small pictures in the folder."""
    pictures = folder / "bars"
    for name, each in (("train", 20), ("test", 5)):
        draw_pictures(pictures / name, each)
    settings = bayesian_settings(pictures, folder / "runs", n_epochs=1, batch_size=20, record_mean_var=True)
    settings = replace(settings, record_layers=["fc3"], device="cpu", valid_ens=1, test_ens=1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(settings)
    state, setup = start(replace(settings, resume=True))
    files = run_files(settings)
    results = files.reports / "results.json"

    def read_last(path: Path) -> None:
        resume(state, replace(setup, files=replace(setup.files, last=path)))

    def draw(path: Path) -> None:
        read_recording(path)
        _main(visualize_mean_var.main, ["--filename", str(path), "--plot_type=weights", "--save_plots"])

    def prune(path: Path) -> None:
        load_network(path)
        flags = ["--weights_path", str(path), "--num_samples=1", "--fraction=0.5", "--data_dir", str(folder)]
        _main(inference.prune.main, flags)

    image = next(pictures.rglob("*.png"))
    read_images = [lambda path, channels=channels: ImageFiles([path], channels)[0] for channels in (1, 3)]
    return {
        "checkpoint": Target(files.best, (forge_checkpoint, repack), load_network),
        "pruned checkpoint": Target(files.best, (forge_checkpoint,), prune),
        "last.pt": Target(files.last, (forge_checkpoint, forge_checkpoint, repack), read_last),
        "recording": Target(files.reports / "fc3.sqlite", (forge_recording, forge_recording), draw),
        "old recording": Target(ROOT / "tests" / "data" / "fc.h5", (forge_old_recording, forge_old_recording), draw),
        "results": Target(
            results, (forge_results,) * 3, lambda path: comparison(read_results(path), read_results(results))
        ),
        "image": Target(image, (forge_image,), read_images[0]),
        "color image": Target(image, (forge_image,), read_images[1]),
    }


def fuzz_files(folder: Path, seed: int) -> Outcomes:
    """Alter a file of each kind in turn, and read it."""
    kinds = targets(folder)
    for number in itertools.count():
        chance = random.Random(f"{seed} {number}")
        name, target = list(kinds.items())[number % len(kinds)]
        bad = folder / f"bad{target.good.suffix}"
        bad.unlink(missing_ok=True)
        alter = chance.choice((flip, cut, splice, *target.forgeries, *target.forgeries))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alter(chance, target.good, bad)
            outcome = _outcome(target.read, bad)
        yield f"{outcome[:5]} {name}, {alter.__name__}, case {number} of seed {seed}: {outcome}"


def _outcome(read: Callable[[Any], object], case: Any, seconds: float = SECONDS) -> str:
    """'read', 'refused', or what is at fault."""
    clear_peak = Path("/proc/self/clear_refs")
    if clear_peak.exists():
        clear_peak.write_text("5")

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    outcome = "read"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read(case)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            return f"FAULT not one line: {error}"
        outcome = "refused"
    except Hang:
        return f"FAULT more than {seconds} s"
    except BaseException:
        return f"FAULT {traceback.format_exc()}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()) if clear_peak.exists() else None
    if peak and int(peak[1]) > GIBIBYTES * 2**20:
        return f"FAULT {int(peak[1]) / 2**20:.1f} GiB, {outcome}"
    return outcome


# Command lines

WORDS = (
    "", "0", "1", "-1", "2", "3.5", "1e308", "1e400", "nan", "inf", "9" * 400, "1" + "0" * 5000, "True", "False",
    "None", "auto", "cpu", "cuda:99", "meta", "mps", "xla", "lenet", "alexnet", "LeNet", "resnet18", "os:system",
    "no.module:none", "conv1", "fc3", "relu", "softplus", "bbb", "lrt", "flipout", "Blundell", "Soenderby", "cosine",
    "(1, 1)", "(0,)", "[]", "[[", "{", "{'prior_sigma': 0.1}", "{'prior_sigma': -1}", "{'prior': {'family': 'Normal'}}",
    "{'prior': {'family': 'Laplace', 'loc': 0, 'scale': 1}}", "{'prior': {'family': 'Distribution'}}", "{'a': 1}",
    "[" * 500, "x" * 300, "x" * 5000, "/", ".", "..", "/dev/null", "/dev/zero", "/proc/self/mem", "/nonexistent/a",
    "README.md", "a/" * 3000, "σ∞\u202e", "two\nlines", "\x1b[31m", "\udcff", "\ud800", "nul\0", "-", "--", "--x",
    "=", "%s", "%(default)s", "'", "\\", "*", "~", "0x10", "1_000", "٣", "１",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A script, the words that a command line of it begins with, and those that keep it short at its end."""

    main: Callable[[list[str]], object]
    first: tuple[tuple[str, ...], ...] = ((),)
    last: tuple[tuple[str, ...], ...] = ((),)


def commands(folder: Path) -> dict[str, Command]:
    """Every script, with files of a run in the folder for it to read."""
    kinds = targets(folder)
    short = ("--n_epochs=1", "--batch_size=40", "--num_workers=0", "--compile=False", "--deterministic=False",
             f"--checkpoint_dir={folder / 'fuzzed'}", f"--data_dir={folder}", "--tensorboard=False")  # fmt: skip
    samples = ("--train_ens=1", "--valid_ens=1", "--test_ens=1", "--net_type=lenet")
    none, tiny = f"--dataset={folder / 'none'}", f"--dataset={folder / 'bars'}"
    weights, last = (("--weights_path", str(kinds[kind].good)) for kind in ("checkpoint", "last.pt"))
    log = ("--filename", str(kinds["recording"].good))
    ends = (none, f"--not_mnist_dir={folder / 'none'}", "--num_samples=1", f"--save_dir={folder / 'out'}")
    known = (tiny, f"--ood_dir={folder / 'bars' / 'test'}", *ends[2:], "--num_batches=1", "--batch_size=10")
    return {
        "main_bayesian": Command(main_bayesian.main, last=((*short, none), (*short, none), (*short, *samples, tiny))),
        "main_frequentist": Command(main_frequentist.main, last=((*short, none), (*short, "--net_type=lenet", tiny))),
        "uncertainty_estimation": Command(uncertainty_estimation.main, ((), weights, last), (ends, ends, known)),
        "visualize_mean_var": Command(visualize_mean_var.main, ((), log), (("--save_plots", f"--save_dir={folder}"),)),
        "inference.prune": Command(
            inference.prune.main, ((), weights, last), (("--num_samples=1", f"--save_path={folder / 'pruned.pt'}"),)
        ),
        "inference.export": Command(
            inference.export.main, ((), last), ((f"--save_dir={folder / 'out'}", f"--data_dir={folder}"),)
        ),
        "experiments": Command(_with_arguments(experiments.__main__.main), (("list",), (), ("lists",))),
        "benchmarks": Command(_with_arguments(benchmarks.__main__.main), (("step",), ()), (("--rounds=1",),)),
    }


def _with_arguments(main: Callable[[], object]) -> Callable[[list[str]], object]:
    def call(arguments: list[str]) -> object:
        before = sys.argv
        sys.argv = ["script", *arguments]
        try:
            return main()
        finally:
            sys.argv = before

    return call


def fuzz_flags(folder: Path, seed: int) -> Outcomes:
    """Call a script in turn with random flags."""
    scripts = commands(folder)
    options = {name: _options(command.main) for name, command in scripts.items()}
    for number in itertools.count():
        chance = random.Random(f"{seed} {number}")
        name, command = list(scripts.items())[number % len(scripts)]
        words = [*chance.choice(command.first)]
        for _ in range(chance.randint(0, 4)):
            option = chance.choice(options[name]) if chance.random() < 0.95 else chance.choice(WORDS)
            word = chance.choice(WORDS)
            words += chance.choice(
                ([option, word], [option, word], [f"{option}={word}"], [f"{option}={word}"], [option])
            )
        words += chance.choice(command.last) if name == "benchmarks" or chance.random() < 0.95 else ()
        if name.startswith("main_") and not any(word.startswith("--dataset=/") for word in words):
            words.append(f"--dataset={folder / 'none'}")
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = _outcome(partial(_main, command.main), words, SCRIPT_SECONDS)
        seconds = f"{time.perf_counter() - started:.1f} s"
        yield f"{outcome[:5]} {name}, case {number} of seed {seed}, {seconds}: {outcome} {words}"


def _options(main: Callable[[list[str]], object]) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["--help"])
    return sorted(set(re.findall(r"--\w+", text.getvalue())) - {"--help"})


def _main(main: Callable[[list[str]], object], words: list[str]) -> None:
    """Call a script: it must end by itself, or with code 0, or with code 2 and one line.

    Raises:
        UserError: it ended with code 2.
        AssertionError: it ended in another way.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main(words)
    except SystemExit as end:
        lines = [line for line in errors.getvalue().splitlines() if not line.startswith("warning: ")]
        if end.code == 2:
            assert len(lines) == 1 and lines[0].startswith("error: "), errors.getvalue()
            assert lines[0].isprintable() and len(lines[0]) < 1500, lines[0]
            raise UserError(lines[0]) from None
        assert end.code in (None, 0), f"exit code {end.code}: {errors.getvalue()}"


def fuzz_kills(folder: Path, seed: int) -> Outcomes:
    """Whole runs, killed at random moments and resumed: four kills per case, one for each kind of run."""
    for index in itertools.count(seed):
        try:
            kill_runs(4, index, folder / str(index))
            yield f"read after four kills, seed {index}"
        except AssertionError as error:
            yield f"FAULT {error}"


FUZZERS = {"files": fuzz_files, "flags": fuzz_flags, "kills": fuzz_kills}


def main() -> None:
    """Run the fuzzers that the command line names, and print how often each outcome came."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each of the fuzzers (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (%(default)s)")
    parser.add_argument("--what", nargs="+", choices=FUZZERS, default=["files", "flags"], help="(%(default)s)")
    args = parser.parse_args()
    faults = 0
    for what in args.what:
        outcomes: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where a script writes if a flag names no other place
            end = time.monotonic() + args.seconds
            for text in FUZZERS[what](Path(folder), args.seed):
                outcomes[text[:5]] += 1
                if text.startswith("FAULT"):
                    print(text, flush=True)
                if time.monotonic() > end:
                    break
            os.chdir(ROOT)
        faults += outcomes["FAULT"]
        print(f"{what}: {outcomes.total()} cases, {outcomes['read ']} read, {outcomes['refus']} refused, "
              f"{outcomes['FAULT']} faults", flush=True)  # fmt: skip
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    torch.set_num_threads(1)
    main()
