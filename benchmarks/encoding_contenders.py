"""Those who are timed by `encoding.py`: each makes a tokenized dataset of `FOLDER/*.jsonl` in a folder of its own.

Each is two functions: what it imports, which is not timed with it, and what it does, with two workers.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.tokenizer.special_tokens import EOS_TOKEN

WORKERS = 2
FILES = 2  # for peers that cut their work by files only
BATCH_DOCUMENTS = 256


def import_ours() -> None:
    from pipeline.worker_start import warm_up, worker_context

    warm_up()  # first, as the command does
    import pipeline.run
    import pipeline.sources.jsonl  # noqa: F401

    # what workers import is no more timed than what we do
    process = worker_context().Process(target=int)
    process.start()
    process.join()


def ours(folder: Path, output: Path, engine: str) -> None:
    from pipeline.config import PipelineConfig
    from pipeline.run import run

    run(
        PipelineConfig.model_validate(
            {
                "name": "benchmark",
                "output_dir": output,
                "sources": [{"name": "text", "type": "jsonl", "files": [str(folder / "*.jsonl")]}],
                "tokenizer": {"path": folder / "tokenizer.json", "engine": engine},
                "workers": WORKERS,
                "validation_fraction": 0,
            }
        )
    )


def first_run(folder: Path, output: Path) -> None:
    """As on a machine that has not seen this tokenizer: with the comparison of the engines on all hard cases."""
    os.environ["XDG_CACHE_HOME"] = str(output / "cache")
    ours(folder, output / "dataset", "splintr")


def splintr_alone(folder: Path, output: Path) -> None:
    """The engine's own speed: a process a file, which loads the engine, reads lines, encodes their texts and keeps the
    ids of 32 bits in memory. Forked off the process that has imported; no second tokenizer to check by, no EOS, nothing
    hashed or written."""
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.map(_splintr_of_file, [(file, folder) for file in sorted(folder.glob("*.jsonl"))], chunksize=1)


def _splintr_of_file(job: tuple[Path, Path]) -> int:
    os.environ["RAYON_NUM_THREADS"] = "1"
    import orjson
    import splintr

    file, folder = job
    engine = splintr.from_json_bytes((folder / "tokenizer.json").read_bytes())
    kept: list[bytes] = []
    texts: list[str] = []
    with file.open("rb") as lines:
        for line in lines:
            texts.append(orjson.loads(line)["text"])
            if len(texts) == BATCH_DOCUMENTS:
                kept.append(engine.encode_batch_flat(texts)[0])
                texts = []
    kept.append(engine.encode_batch_flat(texts)[0])
    return sum(map(len, kept))


def datasets_map(folder: Path, output: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "json", data_files=[str(file) for file in sorted(folder.glob("*.jsonl"))], cache_dir=str(output / "cache")
    )["train"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS_TOKEN)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, eos] for encoding in encodings]}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    rows.map(encode, batched=True, num_proc=WORKERS, remove_columns=rows.column_names, features=features).save_to_disk(
        str(output / "saved")
    )


def datatrove(folder: Path, output: Path) -> None:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder), glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output_folder=str(output / "tokens"),
                tokenizer_name_or_path=str(folder / "tokenizer.json"),
                eos_token=EOS_TOKEN,
                shuffle_documents=False,
            ),
        ],
        tasks=FILES,
        workers=WORKERS,
        logging_dir=str(output / "logs"),
    ).run()


def litdata(folder: Path, output: Path) -> None:
    import litdata as library
    from litdata import TokensLoader

    library.optimize(
        fn=_Tensors(folder / "tokenizer.json"),
        inputs=[str(file) for file in sorted(folder.glob("*.jsonl"))],
        output_dir=str(output / "chunks"),
        chunk_size=2049 * 4096,
        num_workers=WORKERS,
        item_loader=TokensLoader(),
        verbose=False,
    )


class _Tensors:
    """What litdata calls on each file: a tensor of ids a document."""

    def __init__(self, tokenizer: Path) -> None:
        self._path = tokenizer

    def __call__(self, file: str) -> Iterator[Any]:
        import torch

        for ids in _arrays(Path(file), self._path):
            yield torch.from_numpy(ids)


def mosaicml_streaming(folder: Path, output: Path) -> None:
    jobs = [(file, folder, output / file.stem) for file in sorted(folder.glob("*.jsonl"))]
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.map(_write_mds, jobs, chunksize=1)


def _write_mds(job: tuple[Path, Path, Path]) -> None:
    from streaming import MDSWriter

    file, folder, output = job
    with MDSWriter(out=str(output), columns={"tokens": "ndarray:uint16"}) as writer:
        for ids in _arrays(file, folder / "tokenizer.json"):
            writer.write({"tokens": ids})


def _arrays(file: Path, tokenizer_path: Path) -> Iterator[np.ndarray[Any, Any]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    eos = tokenizer.token_to_id(EOS_TOKEN)
    texts = [json.loads(line)["text"] for line in file.open()]
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + BATCH_DOCUMENTS], add_special_tokens=False):
            yield np.array([*encoding.ids, eos], dtype=np.uint16)


def megatron(folder: Path, output: Path) -> None:
    """megatron-core's writer, fed as Megatron-LM's own tool does: a pool that encodes lines, one process that writes.

    The tool itself is in no package.
    """
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(output / "text.bin"), dtype=np.uint16)
    with multiprocessing.get_context("fork").Pool(WORKERS, _load, (folder / "tokenizer.json",)) as pool:
        for file in sorted(folder.glob("*.jsonl")):
            with file.open() as lines:
                for ids in pool.imap(_ids_of_line, lines, 32):
                    builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(output / "text.idx"))


_loaded: dict[str, Any] = {}


def _load(path: Path) -> None:
    _loaded["tokenizer"] = Tokenizer.from_file(str(path))
    _loaded["eos"] = _loaded["tokenizer"].token_to_id(EOS_TOKEN)


def _ids_of_line(line: str) -> list[int]:
    return [*_loaded["tokenizer"].encode(json.loads(line)["text"], add_special_tokens=False).ids, _loaded["eos"]]


def importing(*modules: str) -> Callable[[], None]:
    def import_all() -> None:
        for module in modules:
            importlib.import_module(module)

    return import_all


# by name: what it imports, and what it does in an empty folder
CONTENDERS: dict[str, tuple[Callable[[], None], Callable[[Path, Path], None]]] = {
    "ours, splintr": (import_ours, lambda folder, output: ours(folder, output, "splintr")),
    "ours, first run": (import_ours, first_run),
    "splintr alone": (importing("splintr", "orjson"), splintr_alone),
    "ours, tokenizers": (import_ours, lambda folder, output: ours(folder, output, "tokenizers")),
    "datatrove": (
        importing("datatrove.executor.local", "datatrove.pipeline.readers", "datatrove.pipeline.tokens"),
        datatrove,
    ),
    "litdata": (importing("litdata", "torch"), litdata),
    "mosaicml-streaming": (importing("streaming"), mosaicml_streaming),
    "datasets.map": (importing("datasets"), datasets_map),
    "megatron-core": (importing("megatron.core.datasets.indexed_dataset", "torch"), megatron),
}
