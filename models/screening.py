"""What a checkpoint may hold, checked before torch loads it: a file from elsewhere can be made to exhaust the machine.

`torch.load(weights_only=True)` runs no code of the file's, but it allocates what the file asks for, and it builds
tensors that are larger than the file, sparse or quantized. So the archive and its pickle are read here first, with a
stand-in for every tensor, and refused unless they are of the kind that `torch.save` writes for plain values and dense
tensors. The time and memory that this takes are bounded by `MOST_STEPS`, whatever the file says.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MOST_STEPS = 2**20  # of the pickle, and of a walk through its values: last.pt takes a hundred per parameter tensor
MOST_DEPTH = 32
MOST_DIMENSIONS = 64  # torch's own bound
MOST_PICKLE = 2**26  # bytes
SHARED = 8  # tensors and strings may share memory, but have at most this multiple of the file's size together
ITEM_SIZES = {
    "torch BFloat16Storage": 2,
    "torch BoolStorage": 1,
    "torch ByteStorage": 1,
    "torch CharStorage": 1,
    "torch ComplexDoubleStorage": 16,
    "torch ComplexFloatStorage": 8,
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch IntStorage": 4,
    "torch LongStorage": 8,
    "torch ShortStorage": 2,
}
ORDERED_DICT, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names."""

    text: str


class _Storage(NamedTuple):
    item_size: int
    items: int


@dataclass(frozen=True)
class _Dense:
    """Stands for a tensor of this many bytes."""

    size: int


def check_archive(file: str | Path | BinaryIO, size: int) -> None:
    """Refuse a file that is not an archive of plain values and dense tensors, as `torch.save` writes them.

    Args:
        file: its path, or a stream of its bytes.
        size: of the file, in bytes.

    Raises:
        ValueError: it is not such an archive; the message says why.
        Exception: of any other kind, from a pickle that is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, size)
        root = members[0].filename.split("/")[0]
        records = {member.filename: member.file_size for member in members}
        if records.get(f"{root}/data.pkl", 0) > MOST_PICKLE:
            raise ValueError(f"its values besides tensors take more than {MOST_PICKLE:,} bytes")
        pickle = archive.read(f"{root}/data.pkl")
    prefix = f"{root}/data/"
    records = {name.removeprefix(prefix): length for name, length in records.items() if name.startswith(prefix)}
    _check_values(_read(pickle, records), SHARED * size)


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if not members:
        raise ValueError("it is an empty archive")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, which those of a checkpoint are not")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its parts are larger than the file")
    if len({member.filename.lower() for member in members}) < len(members) or members[0].header_offset:
        raise ValueError("its parts are ambiguous")  # torch's own reader could take others than those checked here


def _read(pickle: bytes, records: Mapping[str, int]) -> Any:
    """The values of a pickle, with a `_Dense` for every tensor.

    Args:
        pickle: of protocol 2, with the opcodes that torch's own unpickler takes.
        records: the sizes of the storages, in bytes, by their keys.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each mark
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count == MOST_STEPS:
            raise ValueError(f"it has more than {MOST_STEPS:,} values")
        match opcode.name:
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[opcode.name]())
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                values, stack = stack, outer.pop()
                if opcode.name == "TUPLE":
                    stack.append(tuple(values))
                else:
                    _add(stack[-1], values, opcode.name)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "APPEND" | "SETITEM":
                length = 1 if opcode.name == "APPEND" else 2
                values = stack[-length:]
                del stack[-length:]
                _add(stack[-1], values, opcode.name)
            case "GLOBAL":
                if argument not in (ORDERED_DICT, TENSOR, PARAMETER, *ITEM_SIZES):
                    raise ValueError(f"it holds something else than plain values and dense tensors: {argument}")
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), records))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                if type(stack[-1]) is not dict or type(state) is not dict or [*state] != ["_metadata"]:
                    raise ValueError("it sets attributes that those of a state_dict are not")
            case "PROTO" | "STOP":
                continue  # STOP is the last one
            case other:
                raise ValueError(f"its pickle has the opcode {other}, which torch.save does not write")
    return stack.pop()


def _add(container: Any, values: list[Any], opcode: str) -> None:
    if opcode.startswith("APPEND") and type(container) is list:
        container.extend(values)
    elif opcode.startswith("SETITEM") and type(container) is dict:
        keys = values[::2]
        if any(type(key) not in (str, int) for key in keys):
            raise ValueError("the key of a dict is neither a string nor an integer")
        container.update(zip(keys, values[1::2], strict=True))
    else:
        raise ValueError(f"its pickle adds values to a {type(container).__name__}")


def _storage(identity: Any, records: Mapping[str, int]) -> _Storage:
    kind, name, key, location, items = identity
    item_size = ITEM_SIZES[name.text]
    if (kind, type(location), type(items)) != ("storage", str, int) or records[key] != items * item_size:
        raise ValueError("the size of a tensor's data is not the one that it names")
    return _Storage(item_size, items)


def _call(name: Any, arguments: Any) -> Any:
    """What torch's unpickler would return for a call."""
    if name == _Name(ORDERED_DICT) and arguments == ():
        return {}
    if name == _Name(TENSOR):
        return _dense(*arguments)
    if name == _Name(PARAMETER):
        tensor, _, hooks = arguments
        if type(tensor) is _Dense and hooks == {}:
            return tensor
    raise ValueError("its pickle makes a call that torch.save does not write")


def _dense(
    storage: Any, offset: Any, sizes: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Dense:
    """A tensor none of whose elements is outside its storage or overlaps another."""
    plain = type(storage) is _Storage and type(sizes) is type(strides) is tuple and not hooks and not metadata
    if not plain or len(sizes) > MOST_DIMENSIONS or len(strides) != len(sizes):
        raise ValueError("it holds a tensor that is not dense")
    if any(type(n) is not int or n < 0 for n in (offset, *sizes, *strides)):
        raise ValueError("it holds a tensor of an impossible shape")
    reach = 1
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1 and stride < reach:
            raise ValueError("it holds a tensor whose elements overlap")
        reach += max(size - 1, 0) * stride
    if 0 not in sizes and offset + reach > storage.items:
        raise ValueError("it holds a tensor that is larger than its data")
    return _Dense(math.prod(sizes) * storage.item_size)


def _check_values(content: Any, most_bytes: int) -> None:
    """Refuse values that take too long to walk through, or that contain themselves."""
    waiting, steps, size = [(content, 0)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list, tuple):
            items = value.values() if type(value) is dict else value
            steps += 1 + len(items)
            if depth == MOST_DEPTH or steps > MOST_STEPS:
                raise ValueError("its values are nested too deeply, or are too many")
            size += sum(len(key) for key in value if type(key) is str) if type(value) is dict else 0
            waiting.extend((item, depth + 1) for item in items)
        elif type(value) is _Dense:
            size += value.size
        elif type(value) is str:
            size += len(value)
        elif type(value) not in (int, float, bool, type(None)) or (type(value) is int and abs(value) >= 2**64):
            raise ValueError("it holds something else than plain values and dense tensors")
    if size > most_bytes:
        raise ValueError("its tensors are larger than the file")
