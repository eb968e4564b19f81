"""The files that the ranks of a DeepSpeed run save, read without loading data and written without holding it. No torch.

A rank file is `torch.save`'s zip: a pickle, and one record a storage. Reading gives the pickle's objects, with a
`StoredTensor` for each tensor, which says where its bytes lie; writing takes such objects and copies the bytes through
one buffer. So a program moves tensors of any size between rank files with a few megabytes, and starts at once.

Rank files are pickles from wherever a run folder came from, so nothing in them is executed: of the names that a pickle
refers to, those in an allow-list become inert stand-ins of this file, which write themselves as what they stand for,
and any other refuses the file. No deepspeed.

The service consolidates and reshards by it, and the trainer loads the slices of another number of ranks, through the
door `zero_layout.py`.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

from checkpoint.extents import Extent, ExtentReader
from checkpoint.records import CheckpointError
from checkpoint.stored_tensor import ELEMENT_BYTES, Storage, StoredTensor

_ALIGNMENT = 64  # of a storage in its file, as torch has it, so that it can be mapped
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's record: the lengths of its name and of its extra field
_LOCAL_HEADER_BYTES, _ZIP64_EXTRA_BYTES = 30, 20
_PROTOCOL = 2  # torch.save's


def read_rank_file(path: Path) -> dict[str, Any]:
    """A rank file's contents. Raises CheckpointError for one that is missing, damaged, or holds more than tensors."""
    contents = read_pickled(path)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds {type(contents).__name__}, wanted a rank file's dictionary")
    return contents


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote, of any type. Raises as `read_rank_file` does."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _Unpickler(archive, file, path).load()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; take another step") from None
    except _RefusedNameError as error:
        raise CheckpointError(f"{path} holds more than tensors, nothing in it was run ({error})") from None
    except Exception as error:  # a damaged pickle can raise anything, and only inert things were made of it
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a rank file ({reason}); take another step") from None


def write_rank_file(path: Path, contents: dict[str, Any]) -> None:
    """Write contents as `torch.save` would, with the data of every extent; on the disk when this returns.

    Raises CheckpointError if an extent's file ends early, OSError if the disk does not take it.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(contents)
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive, closing(ExtentReader()) as reader:
            root = path.name.removeprefix(".").split(".")[0]
            for name, record in (
                ("data.pkl", pickled.getvalue()), (".format_version", b"1"),
                (".storage_alignment", str(_ALIGNMENT).encode()), ("byteorder", b"little"), ("version", b"3\n"),
            ):  # fmt: skip
                _write_record(archive, f"{root}/{name}", [record])
            for key, storage in enumerate(pickler.storages):
                _write_record(archive, f"{root}/data/{key}", reader.chunks(storage.extents))
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensor: StoredTensor) -> bytes:
    """The elements of a small contiguous tensor, as it was read."""
    [extent], size = tensor.storage.extents, tensor.storage.element_bytes
    content = bytearray(tensor.numel * size)
    with closing(ExtentReader()) as reader:
        place = Extent(extent.path, extent.offset_bytes + tensor.offset * size, len(content))
        reader.read_into(memoryview(content), place)
    return bytes(content)


def _write_record(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes | memoryview]) -> None:
    info = zipfile.ZipInfo(name)  # of 1980: the same contents are the same bytes
    begin = archive.start_dir + _LOCAL_HEADER_BYTES + len(name.encode()) + _ZIP64_EXTRA_BYTES + 4
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as record:
        for chunk in chunks:
            record.write(chunk)


class _RefusedNameError(pickle.UnpicklingError):
    pass


class _Global:
    """A name that stands in a pickle for itself: a storage's or an element's type."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Size(tuple[int, ...]):
    """Stands for torch.Size."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Size, (tuple(self),)


class Inert:
    """Stands for an object whose class is not imported; keeps what the pickle says of it, and does nothing."""

    arguments: tuple[Any, ...]
    is_called = False
    state: Any = None

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        self.is_called = True  # REDUCE, where NEWOBJ calls __new__ alone

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ZeroStage(Inert):
    """Stands for DeepSpeed's ZeroStageEnum."""


class _LossScaler(Inert):
    """Stands for DeepSpeed's LossScaler."""


class _DynamicLossScaler(Inert):
    """Stands for DeepSpeed's DynamicLossScaler."""


class _FragmentAddress(Inert):
    """Stands for DeepSpeed's fragment_address, of stages 1 and 2."""


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> StoredTensor:
    """Stands for torch._utils._rebuild_tensor_v2."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor without a storage")
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and offset + reach >= storage.numel:
        raise pickle.UnpicklingError("a tensor beyond its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), bool(requires_grad))


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> StoredTensor:
    """Stands for torch._tensor._rebuild_from_type_v2: a tensor with attributes, which no reader of the files needs."""
    if function is not _rebuild_tensor:
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    tensor: StoredTensor = _rebuild_tensor(*arguments)
    return tensor


# All names that a rank file may refer to, and what stands for them.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _Size,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    **{("torch", name): _Global("torch", name) for name in ELEMENT_BYTES},
    **{("torch", name): _Global("torch", name) for name in ("Tensor", "float32", "bfloat16", "float16")},
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): _ZeroStage,
    ("deepspeed.utils.tensor_fragment", "fragment_address"): _FragmentAddress,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): _LossScaler,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): _DynamicLossScaler,
}
_NAMES = {stand_in: f"{module}\n{name}\n".encode() for (module, name), stand_in in _STAND_INS.items()}


class _Unpickler(pickle._Unpickler):
    """The Python one: C's allocates what a damaged index of its memo asks for."""

    def __init__(self, archive: zipfile.ZipFile, file: io.BufferedReader, path: Path) -> None:
        self._file, self._path = file, path
        self._records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        self._storages: dict[str, Storage] = {}
        if "data.pkl" not in self._records or "version" not in self._records:
            raise pickle.UnpicklingError("not of torch.save's zip format")
        # a few compressed bytes could ask for any memory
        if any(record.compress_type != zipfile.ZIP_STORED for record in self._records.values()):
            raise pickle.UnpicklingError("compressed, which torch.save never does")
        if "byteorder" in self._records and archive.read(self._records["byteorder"]) != b"little":
            raise pickle.UnpicklingError("not little-endian")
        super().__init__(io.BytesIO(archive.read(self._records["data.pkl"])))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _RefusedNameError(f"GLOBAL {module}.{name}"[:150])
        return _STAND_INS[module, name]

    def load_build(self) -> None:
        """Give a state to what the pickle has made, and to nothing of ours, which the next file is read with."""
        target, state = self.stack[-2:]  # type: ignore[attr-defined]
        is_module_state = isinstance(target, OrderedDict) and isinstance(state, dict) and state.keys() <= {"_metadata"}
        if not isinstance(target, Inert) and not is_module_state:
            raise pickle.UnpicklingError(f"a state for {type(target).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def persistent_load(self, persistent_id: Any) -> Storage:
        _, kind, key, _, numel = persistent_id
        if key not in self._storages:
            record = self._records[f"data/{key}"]
            size_bytes = numel * ELEMENT_BYTES[kind.name]
            if record.file_size != size_bytes:
                raise pickle.UnpicklingError(f"storage {key} is not its {size_bytes:,} bytes")
            self._file.seek(record.header_offset)
            name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER_BYTES))
            offset = record.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            self._storages[key] = Storage(kind.name, numel, (Extent(self._path, offset, size_bytes),))
        return self._storages[key]


class _Pickler(pickle._Pickler):
    """The Python one: C's cannot name a class that is not imported."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self.storages: list[Storage] = []
        self._keys: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        if id(obj) not in self._keys:
            self._keys[id(obj)] = len(self.storages)
            self.storages.append(obj)
        return ("storage", _STAND_INS["torch", obj.element_type], str(self._keys[id(obj)]), "cpu", obj.numel)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, StoredTensor):
            place: tuple[Any, ...] = (obj.storage, obj.offset, obj.shape, obj.stride, obj.requires_grad, OrderedDict())
            return _rebuild_tensor, place
        if isinstance(obj, Inert):
            made = (type(obj), obj.arguments) if obj.is_called else (copyreg.__newobj__, (type(obj), *obj.arguments))  # type: ignore[attr-defined]
            return *made, obj.state
        is_name = isinstance(obj, _Global | FunctionType | type)
        return "" if is_name and obj in _NAMES else NotImplemented  # a text: a global, for the method below

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in _NAMES:
            raise pickle.PicklingError(f"{obj} is not of a rank file")
        self.write(pickle.GLOBAL + _NAMES[obj])  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]
