from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.document import Document
from pipeline.tokenizer.definition import Definition
from pipeline.tokenizer.document_ids import encode_documents
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.train import TokenizerError

EOS = "<|endoftext|>"
HEADER = (("<repo_name>", "smol"), ("<file_sep>", "a/b.py\n"))


@pytest.fixture
def encoder(tokenizer_file: Path) -> Encoder:
    return Encoder(tokenizer_file.read_bytes(), eos_token=EOS)


def test_a_header_stands_before_the_text_with_its_special_ids(encoder: Encoder) -> None:
    (ids,) = encode_documents(encoder, [Document("a", "\nshard", header=HEADER)])
    special = {token: encoder.tokenizer.token_to_id(token) for token in ("<repo_name>", "<file_sep>", EOS)}
    assert special == {EOS: 0, "<repo_name>": 3, "<file_sep>": 5}
    (name, path_and_text) = (encoder.tokenizer.encode(text).ids for text in ("smol", "a/b.py\n\nshard"))
    assert ids.tolist() == [3, *name, 5, *path_and_text, 0]


def test_documents_without_a_header_are_as_ever_between_those_with_one(encoder: Encoder) -> None:
    documents = [Document("a", "one"), Document("b", "two", header=HEADER), Document("c", "", header=HEADER[:1])]
    one, two, three = (ids.tolist() for ids in encode_documents(encoder, documents))
    assert one == encoder.encode(["one"])[0].tolist()
    assert two[0] == 3
    assert three == [3, *encoder.tokenizer.encode("smol").ids, 0]


def test_a_worker_loads_no_tokenizer_for_ids_that_its_run_has_asked_for(encoder: Encoder) -> None:
    documents = [Document("a", "x", header=HEADER)]
    expected = [ids.tolist() for ids in encode_documents(encoder, documents)]
    theirs = pickle.loads(pickle.dumps(encoder))
    theirs.use("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Definition, "tokenizer", property(lambda definition: pytest.fail("it was loaded")))
        patch.setattr(Definition, "tree", property(lambda definition: pytest.fail("it was parsed")))
        assert [ids.tolist() for ids in encode_documents(theirs, documents)] == expected


def test_literals_in_a_header_are_text(encoder: Encoder) -> None:
    (ids,) = encode_documents(encoder, [Document("a", "x", header=(("<repo_name>", "<file_sep>"),))])
    assert ids.tolist().count(5) == 0


def test_a_tokenizer_without_the_token_is_one_line(encoder: Encoder) -> None:
    with pytest.raises(TokenizerError, match=r"has no token '<none>', which a source's special_tokens need; remove"):
        encode_documents(encoder, [Document("a", "x", header=(("<none>", "y"),))])
