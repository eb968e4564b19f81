"""What is said of nodes by what they have told; the telling is in `test_node_probe.py`."""

from __future__ import annotations

from typing import Any

from launch.preflight.comparison import Node, compare, shared_folder
from launch.preflight.findings import Finding, format_findings, problems

GIB = 2**30


def node(
    name: str, *, slots: int = 1, asked_s: float = 100.0, chosen: tuple[int, ...] | None = None, **told: Any
) -> Node:
    said = {
        "errors": {},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "revision": "abc",
        "source_digest": "1",
        "cores": 8,
        "gpus": None,
        "disk": {"free_bytes": 10 * GIB, "written_bytes_per_s": 5e8, "renamed": True, "locks": True},
        "datasets": {"web": "sha256:1"},
        "tokenizer": None,
        "port": None,
        "time_s": 101.0,
    }
    return Node(name, slots, said | told, asked_s, 102.0, chosen)


def gpu(index: int, *, used_mib: int = 0, processes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"index": index, "name": "H100", "total_mib": 81559, "used_mib": used_mib, "processes": list(processes)}


def found(*nodes: Node, wants_gpus: bool = False, kept: int = 2) -> list[str]:
    """The problems, as `check at where: what`."""
    findings = compare(nodes, checkpoint_bytes=GIB, kept=kept, wants_gpus=wants_gpus)
    return [f"{finding.check} at {finding.where}: {finding.what}" for finding in problems(findings)]


def test_equal_nodes_have_no_problem() -> None:
    assert found(node("a"), node("b")) == []


def test_other_versions_are_named_with_both() -> None:
    [line] = found(node("a"), node("b", versions={"python": "3.12.1"}))
    assert line == "packages at b: python 3.12.1 where a has 3.11.7, torch missing where a has 2.13.0"


def test_other_code_is_seen_under_an_equal_revision_too() -> None:
    [line] = found(node("a"), node("b", source_digest="2"))
    assert line == "code at b: other code than a: abc there, abc here"


def test_slots_over_the_gpus_and_over_the_cores() -> None:
    assert found(node("a", slots=3, gpus={"devices": [gpu(0), gpu(1)]}), wants_gpus=True) == [
        "slots at a: slots=3, but the node shows 2 GPUs"
    ]
    assert found(node("a", slots=9)) == ["slots at a: slots=9, but the node shows 8 cores"]


def test_gpu_in_use_is_named_with_its_process_and_one_beyond_the_slots_is_not() -> None:
    devices = [gpu(0), gpu(1, used_mib=70000, processes=("pid 7 (python)",)), gpu(2, used_mib=70000)]
    assert found(node("a", slots=2, gpus={"devices": devices}), wants_gpus=True) == [
        "GPUs at a: GPU 1 is in use: 70,000 of 81,559 MiB by pid 7 (python)"
    ]


def test_chosen_gpus_are_looked_at_and_not_the_first_ones() -> None:
    devices = [gpu(0, used_mib=70000), gpu(1), gpu(2), gpu(3, used_mib=70000)]
    [line] = found(node("a", slots=2, chosen=(2, 3), gpus={"devices": devices}), wants_gpus=True)
    assert line.startswith("GPUs at a: GPU 3 is in use")
    assert found(node("a", slots=2, chosen=(1, 2), gpus={"devices": devices}), wants_gpus=True) == []


def test_node_without_gpus_among_others_is_a_problem() -> None:
    assert found(node("a"), wants_gpus=True) == ["GPUs at a: shows no GPU (there is no nvidia-smi)"]


def test_failing_nvidia_smi_is_a_problem_and_not_no_gpu() -> None:
    broken = node("a", errors={"gpus": "exit status 9"})
    assert found(broken) == ["GPUs at a: nvidia-smi failed: exit status 9"]


def test_disk_that_is_too_small_too_slow_or_no_posix() -> None:
    disk = {"free_bytes": GIB, "written_bytes_per_s": 1e6, "renamed": False, "locks": False}
    assert found(node("a", disk=disk)) == [
        "disk at a: 1.07 GB free, and 2 checkpoints take 2.15 GB",
        "disk at a: writes 1.0 MB/s with fsync: a checkpoint takes 1,074 s",
        "disk at a: cannot rename a file",
        "disk at a: cannot lock a file (flock)",
    ]
    assert found(node("a", errors={"disk": "/runs: Permission denied"})) == ["disk at a: /runs: Permission denied"]


def test_clock_counts_only_what_the_asking_does_not_explain() -> None:
    assert found(node("a", asked_s=60.0, time_s=61.0)) == []
    assert found(node("a", time_s=95.0)) == ["clock at a: is 5 s off this machine's"]
    assert found(node("a", time_s=112.0)) == ["clock at a: is 10 s off this machine's"]


def test_taken_port_is_told() -> None:
    assert found(node("a", port="Address already in use")) == ["port at a: the rendezvous port: Address already in use"]


def test_dataset_that_is_missing_or_another_on_one_node() -> None:
    assert found(node("a"), node("b", datasets={"web": "!no manifest"}), node("c", datasets={"web": "sha256:2"})) == [
        "data at b: web: no manifest",
        "data at c: web is another one than on a (sha256:2…, sha256:1…)",
    ]


def test_what_a_node_could_not_say_is_not_well() -> None:
    [first, second] = (node("a"), node("b", errors={"versions": "no metadata"}))
    told = {key: value for key, value in second.seen.items() if key != "versions"}
    findings = compare([first, Node("b", 1, told, 100.0, 102.0)], checkpoint_bytes=1, kept=1, wants_gpus=False)
    [unknown] = [finding for finding in findings if finding.check == "packages" and finding.where == "b"]
    assert (unknown.status, unknown.what) == ("not checked", "no metadata")


def test_token_that_is_not_seen_names_who_wrote_it() -> None:
    [finding] = problems(shared_folder(["a", "b"], {"a": ["a", "b"], "b": ["b"]}))
    assert (finding.where, finding.what) == ("b", "does not show what a wrote there")
    assert problems(shared_folder(["a", "b"], {"a": ["a", "b"], "b": ["a", "b"]})) == []


def test_table_has_the_fix_below_and_counts() -> None:
    table = format_findings(
        [Finding("disk", "a", "problem", "is full", "free some"), Finding("data", "all", "ok", "x")]
    )
    assert table.splitlines() == [
        "PROBLEM     disk  a    is full",
        "                       fix: free some",
        "ok          data  all  x",
        "1 problem, 0 not checked, 2 lines",
    ]
