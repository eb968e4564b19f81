from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import assembly, shuffled_run
from pipeline.config import PipelineConfig
from pipeline.derived.draw import Draw
from pipeline.document import PipelineError
from pipeline.run import run
from pipeline.shards.format import SPLITS, OriginRecord, Split, read_manifest, write_manifest
from pipeline.shards.verify import verify_dataset

MakeConfig = Callable[..., PipelineConfig]


def documents_of(dataset: Path, split: Split) -> list[tuple[str, list[int]]]:
    found = []
    for shard in read_manifest(dataset).splits[split].shards:
        with pa.ipc.open_stream((dataset / shard.path).read_bytes()) as stream:
            found += [(row["document_id"], row["input_ids"]) for row in stream.read_all().to_pylist()]
    return found


def files_of(dataset: Path) -> dict[str, bytes]:
    """All but what tells times and processes."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name not in ("report.json", "report.html", ".lock")
    }


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_the_documents_are_those_of_the_run_in_the_order_of_their_numbers(
    corpus: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    in_order = run(make_config(output_dir=tmp_path / "in-order", unit_size_bytes=3000)).manifest
    config = make_config(shuffle_seed=7, unit_size_bytes=3000)
    manifest = run(config).manifest
    for split in SPLITS:
        documents = documents_of(tmp_path / "in-order", split)
        numbers = Draw(7, purpose="shuffle", split=split).take(len(documents)).tolist()
        expected = [documents[index] for index in sorted(range(len(documents)), key=numbers.__getitem__)]
        assert documents_of(config.output_dir, split) == expected
    assert manifest == read_manifest(config.output_dir)
    assert (manifest.name, manifest.origin, manifest.version) == ("test", None, 1)
    assert manifest.config_digest != in_order.config_digest
    for field in ("documents_in", "text_bytes_kept", "dropped", "sources", "documents", "tokens"):
        assert getattr(manifest, field) == getattr(in_order, field), field
    assert json.loads((config.output_dir / "config.json").read_bytes())["shuffle_seed"] == 7
    assert json.loads((config.output_dir / "report.json").read_bytes())["documents_kept"] == 120
    assert verify_dataset(config.output_dir, threads=1) == []
    assert not list(tmp_path.glob(".*"))


def test_bytes_depend_on_neither_workers_nor_buckets(corpus: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    made = []
    for workers, bucket_bytes in ((1, 1 << 20), (3, 500)):
        config = make_config(
            output_dir=tmp_path / str(workers) / "dataset",
            workers=workers,
            shuffle_seed=7,
            shuffle_bucket_bytes=bucket_bytes,
            unit_size_bytes=3000,
            shard_size_bytes=4000,
        )
        run(config)
        made.append(files_of(config.output_dir))
    assert made[0] == made[1]
    assert len([name for name in made[0] if name.startswith("data-")]) > 1


@pytest.mark.parametrize("where", ["run", "shuffle", "end"])
def test_an_interrupted_run_goes_on(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = make_config(shuffle_seed=7, unit_size_bytes=3000)
    run(config.model_copy(update={"output_dir": tmp_path / "whole"}))
    with monkeypatch.context() as patch:
        if where == "run":
            patch.setattr(assembly, "write_manifest", stop)
        elif where == "shuffle":
            patch.setattr(shuffled_run, "read_tokenizer_of", stop)
        else:
            patch.setattr(shuffled_run, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert (config.output_dir / "manifest.json").exists() == (where == "end")
    assert (tmp_path / ".dataset.unshuffled").exists()
    assert run(config).was_finished == (where == "end")
    assert files_of(config.output_dir) == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_finished_dataset_is_left_alone_and_another_config_refused(
    corpus: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(shuffle_seed=7)
    config.output_dir.mkdir()  # an empty folder is as good as none
    first = run(config)
    again = run(make_config(shuffle_seed=7, workers=2, shuffle_bucket_bytes=1))
    assert (first.was_finished, again.was_finished, again.manifest) == (False, True, first.manifest)
    for other, change in ((8, "7 → 8"), (None, "7 → null")):
        with pytest.raises(PipelineError, match=rf"was made with another config \(shuffle_seed: {change}\); choose"):
            run(make_config(shuffle_seed=other))


def test_what_deduplication_found_is_kept(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, make_jsonl: Callable[[Path, Sequence[str]], Path]
) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    make_jsonl(corpus / "9.jsonl", [text])
    evaluation = make_jsonl(tmp_path / "evaluation.jsonl", [text])
    deduplication = {
        "exact": {},
        "decontamination": {"evaluations": [{"name": "e", "type": "jsonl", "files": [str(evaluation)]}]},
    }
    in_order = make_config(output_dir=tmp_path / "in-order", deduplication=deduplication)
    shuffled = make_config(shuffle_seed=7, deduplication=deduplication)
    for config in (in_order, shuffled):
        run(config)
    for name in ("deduplication.json", "contaminated.jsonl"):
        assert (shuffled.output_dir / name).read_bytes() == (in_order.output_dir / name).read_bytes()
    assert (shuffled.output_dir / "contaminated.jsonl").read_text().count("\n") == 1


def test_a_finished_one_made_with_another_tokenizer_or_by_another_verb_is_refused(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(tokenizer_file.read_bytes())
    config = make_config(shuffle_seed=7, tokenizer={"path": tokenizer})
    manifest = run(config).manifest
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    with pytest.raises(PipelineError, match=r"was made with another tokenizer than .*tokenizer.json holds now; choose"):
        run(config)
    origin = OriginRecord(verb="shuffle", datasets=("sha256:0",))
    write_manifest(config.output_dir, manifest.model_copy(update={"origin": origin}))
    with pytest.raises(PipelineError, match=r"dataset was made by `smollm2 pipeline shuffle`; choose another$"):
        run(config)


def test_a_folder_of_other_files_is_refused_before_the_work(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(shuffle_seed=7)
    config.output_dir.mkdir()
    (config.output_dir / "thesis.tex").touch()
    with pytest.raises(PipelineError, match=r"dataset is there already; remove it, or choose another output$"):
        run(config)
    assert not (config.output_dir.parent / ".dataset.unshuffled").exists()


def test_nothing_can_be_appended(corpus: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PipelineError, match=r"shuffle_seed=7: new documents would all come last; make a dataset of"):
        run(make_config(shuffle_seed=7), append=True)
