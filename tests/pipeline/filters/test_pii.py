from __future__ import annotations

import pytest

from pipeline.filter_config import PiiConfig
from pipeline.filters.pii import rejection
from pipeline.filters.view import DocumentView

CONFIG = PiiConfig(type="pii", email_replacement="<email>", ip_replacement="<ip>")


def replaced(text: str, config: PiiConfig = CONFIG) -> str:
    view = DocumentView(text)
    assert rejection(view, config) is None
    return view.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.org.", "write to <email>."),
        ("<a@b.co>, c@d.org", "<<email>>, <email>"),
        ("jürgen@müller.de a@b", "jürgen@müller.de a@b"),
        ("@decorator user@host", "@decorator user@host"),
        ("at 8.8.8.8, or 8.8.8.8:53.", "at <ip>, or <ip>:53."),
        ("10.0.0.1 192.168.1.1 127.0.0.1 0.0.0.0", "10.0.0.1 192.168.1.1 127.0.0.1 0.0.0.0"),
        ("version 1.2.3.4.5 and v8.8.8.8, 8.8.8.8a", "version 1.2.3.4.5 and v8.8.8.8, 8.8.8.8a"),
        ("300.1.1.1 01.2.3.4", "300.1.1.1 01.2.3.4"),
        ("2606:4700:4700::1111 is one", "<ip> is one"),
        ("2001:db8::1 is for documents, std::map a::b 2001: a", "2001:db8::1 is for documents, std::map a::b 2001: a"),
    ],
)
def test_only_what_is_somebodys_is_replaced(text: str, expected: str) -> None:
    assert replaced(text) == expected


def test_each_kind_can_be_left() -> None:
    text = "a@b.org 8.8.8.8"
    assert replaced(text, PiiConfig(type="pii", email_replacement=None)) == "a@b.org 192.0.2.1"
    assert replaced(text, PiiConfig(type="pii", ip_replacement=None)) == "email@example.com 8.8.8.8"


def test_a_replacement_is_taken_as_it_is() -> None:
    assert replaced("a@b.org", PiiConfig(type="pii", email_replacement=r"\1\g<0>")) == r"\1\g<0>"


@pytest.mark.parametrize("piece", ["a", "a@", "a.", "1.", "8.8.8.8", "2606:", "@a."])
def test_long_runs_take_linear_time(piece: str) -> None:
    # quadratic time would be an hour
    assert replaced(piece * 300_000)
