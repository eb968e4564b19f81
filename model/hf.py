"""Weights from and to Hugging Face directories of Llama type.

    model = load_pretrained("HuggingFaceTB/SmolLM2-135M-copy")      # config.json + safetensors, single or sharded
    save_pretrained(model, "exported", dtype=torch.bfloat16)        # transformers loads it, 4.x and 5.x
    PretrainedWeights(path).tensor("norm.weight")                   # one tensor at a time, for init_from

Both directions read the table of `parameters.py`. Names, shapes and dtypes are checked when a directory is opened, from
the headers of the files, and a head stored beside the embedding that it is tied to is compared with it; other values
are looked at as they are read. Does not download.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.activation_checkpointing import ActivationCheckpointing, Mode
from model.hf_config import CONFIG_FILE, WeightsError, huggingface_config, read_config, read_json
from model.parameters import EMBEDDING, HEAD, from_huggingface_name, parameter_shapes, to_huggingface_name
from model.transformer import SmolLM2

__all__ = ["PretrainedWeights", "WeightsError", "load_pretrained", "save_pretrained"]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOATING = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
# transformers wrote this constant into checkpoints until 4.31 and ignores it since
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


class PretrainedWeights:
    """An opened directory: `config`, `names` (ours, in the model's order), and `tensor(name)` read when asked for.

    Raises WeightsError, all differences listed, if it is not exactly this architecture.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = read_config(self.path)
        shapes = parameter_shapes(self.config)
        self.names = list(shapes)
        self._files: dict[str, Path] = {}
        self._dtypes: dict[str, str] = {}
        stored_shapes: dict[str, tuple[int, ...]] = {}
        for file in _weight_files(self.path):
            for name, shape, dtype in _headers(file):
                stored_shapes[name] = shape
                self._files[name] = file
                self._dtypes[name] = dtype
        wanted = {to_huggingface_name(name): shape for name, shape in shapes.items()}
        problems = list(_differences(stored_shapes, wanted, self._dtypes, tied=self.config.tie_word_embeddings))
        if problems:
            raise WeightsError("\n".join(f"{self.path}: {problem}" for problem in problems))
        if self.config.tie_word_embeddings and to_huggingface_name(HEAD) in stored_shapes:
            self._check_stored_head()

    @property
    def dtype(self) -> torch.dtype:
        """The widest that a parameter is stored in: norms may be fp32 among matrices of bf16."""
        stored = {_FLOATING[self._dtypes[to_huggingface_name(name)]] for name in self.names}
        return functools.reduce(torch.promote_types, stored)

    def tensor(self, name: str) -> Tensor:
        """One parameter, whole, in the dtype it is stored in. Raises KeyError for a name that is not in `names`.

        Raises WeightsError where it holds NaN or infinity: a model with one such value computes nothing else.
        """
        stored_name = to_huggingface_name(name)
        with safe_open(self._files[stored_name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
        # the sum of a finite tensor can overflow, the smallest and the largest element cannot
        smallest, largest = torch.aminmax(tensor)
        if not torch.isfinite(torch.stack((smallest, largest))).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{self.path}: {stored_name} holds {count:,} of {tensor.numel():,} values that are NaN or infinite; "
                "fetch it again, or take another checkpoint"
            )
        return tensor

    def _check_stored_head(self) -> None:
        if not torch.equal(self.tensor(HEAD), self.tensor(EMBEDDING)):
            raise WeightsError(
                f"{self.path}: tie_word_embeddings=true, but lm_head.weight differs from model.embed_tokens.weight; "
                f"set tie_word_embeddings=false in {CONFIG_FILE} to keep both"
            )


def load_pretrained(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "auto",
    activation_checkpointing: ActivationCheckpointing | Mode = "none",
) -> SmolLM2:
    """The model of a directory, on the CPU, in `dtype` (None: the widest that is stored), in eval mode.

    Raises WeightsError for a directory that is not exactly a model of ours, AttentionBackendError for a kernel that is
    not there.
    """
    weights = PretrainedWeights(path)
    model = SmolLM2(
        weights.config,
        attn_implementation=attn_implementation,
        activation_checkpointing=activation_checkpointing,
    ).to(dtype or weights.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.tensor(name))
    return model.eval()


def save_pretrained(model: SmolLM2, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors; a tied head is left out, as transformers does. None: dtype as it is.

    For a model that is whole in this process. config.json comes last, and that of an earlier model goes first: a folder
    cut short does not load. Raises WeightsError or OSError if the disk does not take it.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, INDEX_FILE):
        (folder / name).unlink(missing_ok=True)
    parameters = dict(model.named_parameters())
    stored_dtype = dtype or parameters[EMBEDDING].dtype
    tensors = {
        to_huggingface_name(name): parameter.detach().to("cpu", stored_dtype).contiguous()
        for name, parameter in parameters.items()
    }
    try:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # its own spelling of an operating system's error
        raise WeightsError(f"{folder / WEIGHTS_FILE}: cannot be written: {error}") from None
    tree = huggingface_config(model.config, dtype=str(stored_dtype).removeprefix("torch."))
    (folder / CONFIG_FILE).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _weight_files(folder: Path) -> list[Path]:
    """All safetensors files of the model: the single one, which transformers prefers too, or those of the index."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE, missing="").get("weight_map")
        if not isinstance(weight_map, dict):
            raise WeightsError(f"{folder / INDEX_FILE}: has no weight_map; fetch the file again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        absent = [file for file in files if not file.is_file()]
        if absent:
            raise WeightsError("\n".join(f"{file}: named in {INDEX_FILE} but missing; fetch it" for file in absent))
        return files
    pickled = " (pytorch_model.bin is not read: convert it to safetensors)" if list(folder.glob("*.bin")) else ""
    raise WeightsError(f"{folder}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}{pickled}")


def _headers(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                header = tensors.get_slice(name)
                yield name, tuple(header.get_shape()), header.get_dtype()
    except SafetensorError as error:
        raise WeightsError(f"{file}: damaged safetensors file ({error}); fetch it again") from None


def _differences(
    stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], dtypes: dict[str, str], *, tied: bool
) -> Iterator[str]:
    allowed_extra = {to_huggingface_name(HEAD): wanted[to_huggingface_name(EMBEDDING)]} if tied else {}
    for name, shape in wanted.items():
        if name not in stored:
            yield f"{name} is missing; wanted shape {list(shape)}"
    for name, shape in stored.items():
        right_shape = wanted.get(name, allowed_extra.get(name))
        if right_shape is None:
            if not name.endswith(_IGNORED_SUFFIX):
                yield f"{name} is not a tensor of this architecture{_beyond_last_layer(name)}"
        elif shape != right_shape:
            yield f"{name} has shape {list(shape)}, but {CONFIG_FILE} says {list(right_shape)}"
        elif dtypes[name] not in _FLOATING:
            yield f"{name} is stored as {dtypes[name]}; wanted one of {', '.join(_FLOATING)}"


def _beyond_last_layer(name: str) -> str:
    return f"; {CONFIG_FILE} has fewer layers or tied embeddings" if from_huggingface_name(name) else ""
