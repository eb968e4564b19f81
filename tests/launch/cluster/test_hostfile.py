"""Hostfiles that work, and one line for each way in which they do not."""

from __future__ import annotations

import pytest

from launch.cluster.hostfile import Host, HostfileError, format_hostfile, read_hostfile


@pytest.fixture
def hostfile(tmp_path):
    def write(text: str):
        path = tmp_path / "hostfile"
        path.write_text(text)
        return path

    return write


def test_hosts_keep_their_order(hostfile):
    path = hostfile("# two nodes\nnode-b slots=8\n\n  node-a   slots=4  # the small one\n")
    assert read_hostfile(path) == (Host("node-b", 8), Host("node-a", 4))


def test_written_hosts_are_read_back(hostfile):
    hosts = (Host("10.0.0.1", 8), Host("node-a", 1))
    assert read_hostfile(hostfile(format_hostfile(hosts))) == hosts


def test_deepspeed_reads_the_same_hosts(hostfile):
    from deepspeed.launcher.runner import fetch_hostfile

    path = hostfile("node-b slots=8\n# comment\nnode-a slots=4\n")
    assert [Host(*item) for item in fetch_hostfile(str(path)).items()] == list(read_hostfile(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host; write one `HOST slots=N` a line"),
        ("# nothing\n\n", "names no host"),
        ("a slots=1\nb slots=2\na slots=3\n", r":3: a stands on line 1 already; give it one line with all its slots"),
        ("a slots=0\n", r":1: slots=0 of a: wanted a whole number from 1 on"),
        ("a slots=eight\n", r":1: slots=eight of a: wanted a whole number"),
        ("a slots=-1\n", r":1: slots=-1 of a"),
        ("a\n", r":1: got 'a', wanted `HOST slots=N`"),
        ("a 8\n", r":1: got 'a 8', wanted"),
        ("a slots=8 b slots=8\n", r":1: got 'a slots=8 b slots=8', wanted"),
    ],
)
def test_a_bad_hostfile_is_one_line(hostfile, text, message):
    with pytest.raises(HostfileError, match=message) as caught:
        read_hostfile(hostfile(text))
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once(hostfile):
    with pytest.raises(HostfileError) as caught:
        read_hostfile(hostfile("a\nb slots=1\nb slots=1\nc slots=x\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_hostfile_is_one_line(tmp_path):
    with pytest.raises(HostfileError, match="does not exist; write one"):
        read_hostfile(tmp_path / "none")


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "hostfile").write_bytes(b"\xff\xfe")
    with pytest.raises(HostfileError, match="is not text"):
        read_hostfile(tmp_path / "hostfile")
