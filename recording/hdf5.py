"""Recordings of the earlier version: an HDF5 file per layer, with a checksum per row and one for the rest."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import UserError

SUFFIX = ".h5"
FORMAT = "recorded Bayesian layer, version 1"
Array = NDArray[Any]
Rows = tuple[Array, Array, Array]  # steps [rows], and the row's two arrays


def read(path: Path) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What a recording says about itself, and its rows before the first damaged or unwritten one.

    Raises:
        UserError: h5py is not installed, or the format is another one.
        ValueError: the file is damaged, or has what such a recording never has: links, compression, external storage.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path} is a recording of the earlier version: pip install h5py, or 'bayesian-cnn[hdf5]'"
        ) from error
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
        if attributes.get("format") != FORMAT:
            raise UserError(f"{path} is not a recording: expected the format {FORMAT!r}")
        data: dict[str, Any] = {}
        file.visititems(lambda name, item: data.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        for name, dataset in data.items():  # hard links alone are visited
            properties = dataset.id.get_create_plist()
            if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
                raise ValueError(f"{name} is compressed or lies in another file")
        if sum(dataset.nbytes for dataset in data.values()) > file.id.get_filesize():
            raise ValueError("its tables are larger than the file")
        if attributes.pop("crc32", None) != _head_checksum(attributes, data):
            raise ValueError("it is damaged: its description has another checksum")
        arrays = {name: dataset[()] for name, dataset in data.items()}
    batches = int(attributes["batches"])
    records, ends = (_whole_rows(arrays, table) for table in ("moments", "posterior"))
    keys = [key for key in ("weight", "bias") if f"{key}_shape" in attributes]
    about = {name: attributes[name] for name in ("layer", "kind", "kept")}
    about |= {
        "order": int(attributes["order"]),
        "frequency": int(attributes["frequency"]),
        "batches": batches,
        "settings": json.loads(attributes["settings"]),
        "node_shape": attributes["node_shape"].tolist(),
        "nodes": arrays["nodes"],
        "examples": records["mean"].shape[1],
        "weights": {key: {"shape": attributes[f"{key}_shape"].tolist(), "kept": arrays[f"{key}_kept"]} for key in keys},
    }
    steps = (records["epoch"].astype(np.int64) - 1) * batches + records["batch"]
    mean, std = (np.concatenate([ends[f"{key}_{moment}"] for key in keys], axis=1) for moment in ("mean", "std"))
    return about, {
        "moments": (steps, records["mean"], records["variance"]),
        "posterior": (ends["epoch"].astype(np.int64) * batches, mean, std),
    }


def _head_checksum(attributes: Mapping[str, Any], data: Mapping[str, Any]) -> int:
    """Of all that was written once: attributes, arrays outside the tables, and the types of the tables' columns."""
    about = [repr((name, np.asarray(value).tolist())) for name, value in attributes.items()]
    for path, array in data.items():
        about.append(repr((path, array.dtype.str, array.shape[1:] if "/" in path else array[()].tolist())))
    return _checksum([text.encode() for text in sorted(about)])


def _whole_rows(arrays: Mapping[str, Array], table: str) -> dict[str, Array]:
    columns = {name.removeprefix(f"{table}/"): array for name, array in arrays.items() if name.startswith(f"{table}/")}
    checksums = columns.pop("crc32")
    count = 0
    while count < len(checksums) and columns["epoch"][count] > 0:
        if _checksum([columns[name][count].tobytes() for name in sorted(columns)]) != checksums[count]:
            break
        count += 1
    return {name: column[:count] for name, column in columns.items()}


def _checksum(cells: Sequence[bytes]) -> int:
    value = 0
    for cell in cells:
        value = zlib.crc32(cell, value)
    return value
