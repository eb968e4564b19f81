"""Object stores: a real S3-compatible server on 127.0.0.1, and fsspec's memory."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.document import Document, PipelineError, Record, SourceError
from pipeline.run import run
from pipeline.source_config import JsonlConfig, ParquetConfig, SourceConfig
from pipeline.sources.catalog import reader_of
from pipeline.sources.storage import find_files, open_file


def read(config: SourceConfig, *, unit_size_bytes: int = 1 << 20) -> list[Record]:
    reader = reader_of(config)
    pieces = reader.find_pieces(config, unit_size_bytes=unit_size_bytes)
    return [record for piece in pieces for record in reader.read_piece(config, piece)]


def jsonl_config(*files: str) -> JsonlConfig:
    return JsonlConfig(type="jsonl", name="corpus", files=files)


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def texts_of(records: list[Record]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


def test_one_object_is_read_by_ranges(bucket: Any) -> None:
    many = [f"text {number}" for number in range(300)]
    bucket.put("x/a.jsonl", lines(*many))
    records = read(jsonl_config("s3://data/x/*.jsonl"), unit_size_bytes=1000)
    assert texts_of(records) == many
    first = records[0]
    assert isinstance(first, Document)
    assert first.document_id == "s3://data/x/a.jsonl@0"


def test_globs_list_objects_in_order_and_compression_is_undone(bucket: Any) -> None:
    bucket.put("x/b/1.jsonl.gz", gzip.compress(lines("three")))
    bucket.put("x/a.jsonl", lines("one"))
    bucket.put("x/a.txt", b"no")
    assert texts_of(read(jsonl_config("s3://data/x/**/*.jsonl.gz", "s3://data/x/a.jsonl"))) == ["one", "three"]


def test_parquet_is_read_by_row_groups(bucket: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet", row_group_size=2)
    bucket.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    config = ParquetConfig(type="parquet", name="corpus", files=("s3://data/a.parquet",))
    assert texts_of(read(config)) == ["a", "b", "c"]


def test_an_object_that_changes_after_it_was_listed_is_refused(bucket: Any) -> None:
    bucket.put("a.jsonl", lines("one"))
    (file,) = find_files(["s3://data/a.jsonl"], source="corpus")
    bucket.put("a.jsonl", lines("two"))  # of the same size
    with pytest.raises(
        SourceError, match=r"^s3://data/a.jsonl has changed since the run listed it \(.*ETag.* → .*ETag"
    ):
        open_file(file.path, version=file.version)


def test_an_object_that_changes_while_it_is_read_is_refused(bucket: Any) -> None:
    content = lines(*("x" * 1000 for _ in range(20_000)))  # 20 MB, more than one request
    bucket.put("a.jsonl", content)
    config = jsonl_config("s3://data/a.jsonl")
    reader = reader_of(config)
    (piece,) = reader.find_pieces(config, unit_size_bytes=1 << 30)
    records = reader.read_piece(config, piece)
    next(records)
    bucket.put("a.jsonl", content.replace(b"x", b"y"))
    with pytest.raises(
        SourceError,
        match=r"^s3://data/a.jsonl cannot be read \(FileExpired[^\n]*it has changed while it was read[^\n]*$",
    ):
        list(records)


def test_missing_credentials_are_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(
        SourceError, match=r"^source 'corpus': s3://data/\* cannot be listed [^\n]*AWS_ACCESS_KEY_ID[^\n]*$"
    ):
        find_files(["s3://data/*"], source="corpus")


def test_no_object_is_told(bucket: Any) -> None:
    with pytest.raises(SourceError, match=r"^source 'corpus': no file matches s3://data/none/\*.jsonl$"):
        find_files(["s3://data/none/*.jsonl"], source="corpus")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "json_array"])
def test_every_kind_of_file_is_read_from_s3_as_from_disk(
    bucket: Any, make_texts: Callable[..., list[str]], tmp_path: Path, kind: str
) -> None:
    content = corpus_file(make_texts(50, seed=5), kind, tmp_path / "file")
    (tmp_path / f"a.{kind}").write_bytes(content)
    bucket.put(f"corpus/a.{kind}", content)
    both = []
    for place in (f"s3://data/corpus/*.{kind}", str(tmp_path / f"*.{kind}")):
        source = {"name": "corpus", "type": kind.split(".")[0], "files": [place], "id_field": "name"}
        both.append(read(TypeAdapter(SourceConfig).validate_python(source), unit_size_bytes=1000))
    assert len(both[0]) == 50
    assert both[0] == both[1]


def test_a_run_from_s3_gives_the_bytes_of_a_run_from_disk(
    bucket: Any, make_config: Callable[..., PipelineConfig], make_texts: Callable[..., list[str]], tmp_path: Path
) -> None:
    kinds = ("jsonl", "jsonl.gz", "parquet")
    for index, kind in enumerate(kinds):
        content = corpus_file(make_texts(100, seed=index), kind, tmp_path / "file")
        (tmp_path / f"a.{kind}").write_bytes(content)
        bucket.put(f"corpus/a.{kind}", content)
    made = []
    for place, workers in ((tmp_path, 1), ("s3://data/corpus", 2)):
        sources = [
            {"name": kind, "type": kind.split(".")[0], "files": [f"{place}/*.{kind}"], "id_field": "name"}
            for kind in kinds
        ]
        output = tmp_path / f"out{workers}"
        run(make_config(sources=sources, output_dir=output, unit_size_bytes=4000, workers=workers))
        made.append({str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.arrow")})
    # a shard a unit and split
    assert len(made[0]) > 6
    assert made[0] == made[1]


def test_a_run_without_credentials_is_one_line(
    bucket: Any,
    make_config: Callable[..., PipelineConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket.put("a.jsonl", lines("one"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    source = {"name": "corpus", "type": "jsonl", "files": ["s3://data/a.jsonl"]}
    (tmp_path / "config.yaml").write_text(dump(make_config(sources=[source])))
    assert main(["run", str(tmp_path / "config.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("smollm2 pipeline: source 'corpus': s3://data/a.jsonl cannot be listed (")
    assert line.endswith("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")


def test_a_run_does_not_go_on_over_an_object_that_was_replaced(
    bucket: Any, make_config: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"name": "corpus", "type": "jsonl", "files": ["s3://data/a.jsonl"]}
    config = make_config(sources=[source], unit_size_bytes=16, max_bad_record_fraction=0)
    bucket.put("a.jsonl", lines("one", "two") + b"{}\n")
    with pytest.raises(PipelineError, match=r"1 of \d records read are bad"):
        run(config)
    bucket.put("a.jsonl", lines("one", "two", "four"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(PipelineError, match=r"the input has changed since the run .*: s3://data/a.jsonl has changed"):
        run(config)


def corpus_file(texts: list[str], kind: str, scratch: Path) -> bytes:
    """A file of rows with a text and a name, of any kind."""
    rows = [{"text": text, "name": f"{kind}-{number}"} for number, text in enumerate(texts)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), scratch, row_group_size=20)
        return scratch.read_bytes()
    if kind == "csv":
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "name"])
            writer.writeheader()
            writer.writerows(rows)
        return scratch.read_bytes()
    if kind == "json_array":
        return json.dumps(rows).encode()
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}
    return compress[kind](content)


def test_any_file_system_of_fsspec_is_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines("one", "two"))
    try:
        assert texts_of(read(jsonl_config("memory://corpus/*.jsonl"), unit_size_bytes=5)) == ["one", "two"]
    finally:
        memory.rm("/corpus", recursive=True)


def test_a_file_under_several_names_is_read_once_by_its_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(lines("one"))
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "c.jsonl").write_bytes(lines("two"))
    files = find_files(["c.jsonl", "*.jsonl", "./b.jsonl", str(tmp_path / "c.jsonl")], source="corpus")
    assert [file.path for file in files] == ["a.jsonl", "c.jsonl"]


class Web(http.server.SimpleHTTPRequestHandler):
    """A web server that tells of a file what `headers_told` holds."""

    headers_told: ClassVar[dict[str, str]] = {}

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        for name, value in self.headers_told.items():
            super().send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`web(**headers)` is the address of `tmp_path` on a server that sends these headers."""
    pytest.importorskip("aiohttp", reason="fsspec reads http by it")

    def serve(**headers: str) -> str:
        Web.headers_told = {name.replace("_", "-"): value for name, value in headers.items()}
        return f"http://127.0.0.1:{server.server_address[1]}"

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Web, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield serve
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["ETag", "Last_Modified", "Content_MD5"])
def test_a_change_of_the_same_size_on_a_web_server_is_refused(
    tmp_path: Path, web: Callable[..., str], name: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    address = web(**{name: "before"})
    (file,) = find_files([f"{address}/a.jsonl"], source="corpus")
    assert open_file(file.path, version=file.version).read() == lines("one")
    web(**{name: "after"})
    with pytest.raises(
        SourceError, match=r"a.jsonl has changed since the run listed it \(16 bytes, .*before → .*after"
    ):
        open_file(file.path, version=file.version)


def test_the_index_of_a_web_server_is_listed_by_globs(tmp_path: Path, web: Callable[..., str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    (tmp_path / "b.jsonl").write_bytes(lines("two"))
    assert texts_of(read(jsonl_config(f"{web(ETag='x')}/*.jsonl"))) == ["one", "two"]


def test_a_store_that_would_hide_a_change_is_refused(tmp_path: Path, web: Callable[..., str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    with pytest.raises(
        SourceError, match=r"^the store of http://.*/a.jsonl tells neither an e-tag nor a time of change, so that"
    ):
        find_files([f"{web()}/a.jsonl"], source="corpus")


def test_a_web_server_without_ranges_is_told(tmp_path: Path, web: Callable[..., str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one", "two"))
    config = jsonl_config(f"{web(ETag='x', Accept_Ranges='none')}/a.jsonl")
    assert texts_of(read(config)) == ["one", "two"]
    with pytest.raises(SourceError, match=r"^http://.*/a.jsonl cannot be read from its middle \([^\n]+\); copy it"):
        read(config, unit_size_bytes=20)


def test_the_hub_s_mark_is_that_of_the_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines("one"))
    info = {"name": "/corpus/a.jsonl", "type": "file", "size": 16, "blob_id": "b1", "lfs": None, "last_commit": None}
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: info)
    try:
        (file,) = find_files(["memory://corpus/a.jsonl"], source="corpus")
        assert file.version == "16 bytes, blob_id b1"
    finally:
        memory.store.clear()


def test_a_file_without_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines("one"))
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: {"name": path, "type": "file", "size": None})
    try:
        with pytest.raises(
            SourceError, match=r"cannot be listed \(ValueError: the store does not tell the size of /corp"
        ):
            find_files(["memory://corpus/a.jsonl"], source="corpus")
    finally:
        memory.store.clear()


def test_a_file_system_that_is_not_known_is_one_line() -> None:
    with pytest.raises(
        SourceError, match=r"^source 'corpus': nosuch://a cannot be listed \(ValueError: [^\n]+\); [^\n]+$"
    ):
        find_files(["nosuch://a"], source="corpus")


def test_a_folder_is_told_how_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"which is a folder; for all files below it: .*/\*\*/\*$"):
        find_files([str(tmp_path)], source="corpus")
