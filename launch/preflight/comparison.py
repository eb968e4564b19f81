"""Judges what the nodes have said of themselves: each by itself, and all beside the first. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.preflight.findings import Finding, not_checked, ok, problem

MAX_SKEW_S = 2.0
MIN_WRITE_BYTES_PER_S = 20e6
BUSY_MIB = 1024  # of a GPU's memory; a desktop or a monitor takes less


@dataclass(frozen=True)
class Node:
    """What a node's probe said, and when it was asked and answered by the clock of this machine.

    `devices` are the GPUs that CUDA_VISIBLE_DEVICES chose; None: the first ones.
    """

    name: str
    slots: int
    seen: Mapping[str, Any]
    asked_s: float
    answered_s: float
    devices: tuple[int, ...] | None = None


def compare(nodes: Sequence[Node], *, checkpoint_bytes: int, kept: int, wants_gpus: bool) -> list[Finding]:
    """All checks of all nodes, problems and what is well."""
    return [
        *_same("packages", nodes, "versions", "install the same constraints.txt on all nodes"),
        *_same(
            "code", nodes, "source_digest", "put the same commit on all nodes, or share the folder", show="revision"
        ),
        *(finding for node in nodes for finding in _devices(node, wants_gpus=wants_gpus)),
        *(finding for node in nodes for finding in _disk(node, checkpoint_bytes=checkpoint_bytes, kept=kept)),
        *_clocks(nodes),
        *_ports(nodes),
        *_datasets(nodes),
        *_tokenizers(nodes),
    ]


def shared_folder(nodes: Sequence[str], seen: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Of a run folder in which each node left a token; `seen` are the tokens that each node found."""
    findings = []
    for name, tokens in seen.items():
        missing = [node for node in nodes if node not in tokens]
        if missing:
            findings.append(
                problem(
                    "run folder",
                    name,
                    f"does not show what {', '.join(missing)} wrote there",
                    "give run_dir on a file system that all nodes share, mounted at the same path",
                )
            )
    return findings or [ok("run folder", "all", f"is shared: each of {len(nodes)} sees what the others write")]


def _same(check: str, nodes: Sequence[Node], key: str, fix: str, *, show: str | None = None) -> Iterator[Finding]:
    first, others = nodes[0], nodes[1:]
    told = [node for node in nodes if key in node.seen]
    for node in nodes:
        if node not in told:
            yield not_checked(check, node.name, node.seen["errors"].get(key, "the node did not say"))
    differing = 0
    for node in others:
        if node in told and first in told and node.seen[key] != first.seen[key]:
            differing += 1
            yield problem(check, node.name, _difference(first, node, key, show), fix)
    if not differing and told:
        shown = told[0].seen[show or key]
        words = ", ".join(f"{name} {version}" for name, version in shown.items()) if isinstance(shown, dict) else shown
        yield ok(check, "all", f"{words} on {len(told)} node{'s' * (len(told) != 1)}")


def _difference(first: Node, node: Node, key: str, show: str | None) -> str:
    here, there = first.seen[key], node.seen[key]
    if isinstance(here, dict):
        names = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
        return ", ".join(
            f"{name} {there.get(name, 'missing')} where {first.name} has {here.get(name, 'none')}"
            for name in sorted(names)
        )
    shown = node.seen.get(show or key)
    return f"other code than {first.name}: {shown} there, {first.seen.get(show or key)} here"


def _devices(node: Node, *, wants_gpus: bool) -> Iterator[Finding]:
    gpus, cores = node.seen.get("gpus"), int(node.seen.get("cores", 0))
    if "gpus" in node.seen["errors"]:
        yield problem(
            "GPUs", node.name, f"nvidia-smi failed: {node.seen['errors']['gpus']}", "mend the driver on that node"
        )
        return
    if gpus is None:
        if wants_gpus:
            yield problem(
                "GPUs", node.name, "shows no GPU (there is no nvidia-smi)", "install the driver, or take it out"
            )
        else:
            yield not_checked("GPUs", node.name, "there is no nvidia-smi, and the run is on CPUs")
            yield _slots(node, cores, "cores")
        return
    devices = gpus["devices"]
    yield _slots(node, len(devices), "GPUs")
    chosen = range(node.slots) if node.devices is None else node.devices
    taken = [device for device in devices if device["index"] in chosen]
    busy = [device for device in taken if device["used_mib"] > BUSY_MIB or device["processes"]]
    for device in busy:
        who = ", ".join(device["processes"]) or "a process of another container"
        yield problem(
            "GPUs",
            node.name,
            f"GPU {device['index']} is in use: {device['used_mib']:,} of {device['total_mib']:,} MiB by {who}",
            "end that process, or choose other GPUs",
        )
    if not busy:
        yield ok("GPUs", node.name, f"{len(taken)} x {taken[0]['name'] if taken else 'nothing'}, idle")


def _slots(node: Node, available: int, what: str) -> Finding:
    if node.slots > available:
        return problem(
            "slots",
            node.name,
            f"slots={node.slots}, but the node shows {available} {what}",
            f"write slots={available} for it, or fewer" if available else "take it out of the hostfile",
        )
    return ok("slots", node.name, f"{node.slots} of {available} {what}")


def _disk(node: Node, *, checkpoint_bytes: int, kept: int) -> Iterator[Finding]:
    if "disk" in node.seen["errors"]:
        yield problem(
            "disk",
            node.name,
            node.seen["errors"]["disk"],
            "give run_dir where this user may write, with space and locks",
        )
        return
    disk = node.seen["disk"]
    needed, free = kept * checkpoint_bytes, int(disk["free_bytes"])
    speed = float(disk["written_bytes_per_s"])
    if free < needed:
        yield problem(
            "disk",
            node.name,
            f"{free / 1e9:,.2f} GB free, and {kept} checkpoints take {needed / 1e9:,.2f} GB",
            "free space, choose another run_dir, or keep fewer (--keep)",
        )
    if speed < MIN_WRITE_BYTES_PER_S:
        yield problem(
            "disk",
            node.name,
            f"writes {speed / 1e6:.1f} MB/s with fsync: a checkpoint takes {checkpoint_bytes / speed:,.0f} s",
            "give run_dir a faster file system",
        )
    for able, word in ((disk["renamed"], "rename a file"), (disk["locks"], "lock a file (flock)")):
        if not able:
            yield problem("disk", node.name, f"cannot {word}", "give run_dir a POSIX file system (Lustre: -o flock)")
    if free >= needed and speed >= MIN_WRITE_BYTES_PER_S and disk["renamed"] and disk["locks"]:
        yield ok(
            "disk",
            node.name,
            f"{free / 1e9:,.1f} GB free for {needed / 1e9:,.2f}, {speed / 1e6:,.0f} MB/s with fsync, renames and locks",
        )


def _clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    wrong = 0
    for node in nodes:
        # what is between the question and the answer is no skew
        skew_s = max(node.asked_s - node.seen["time_s"], node.seen["time_s"] - node.answered_s, 0.0)
        if skew_s > MAX_SKEW_S:
            wrong += 1
            yield problem(
                "clock", node.name, f"is {skew_s:.0f} s off this machine's", "run chrony or ntpd on all nodes"
            )
    if not wrong:
        yield ok("clock", "all", f"within {MAX_SKEW_S:g} s")


def _ports(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.seen.get("port"):
            yield problem(
                "port", node.name, f"the rendezvous port: {node.seen['port']}", "set launcher.master_port to a free one"
            )
        elif node.seen.get("port") == "":
            yield ok("port", node.name, "the rendezvous port is free")


def _datasets(nodes: Sequence[Node]) -> Iterator[Finding]:
    first: Mapping[str, str] = nodes[0].seen.get("datasets", {})
    wrong = 0
    for node in nodes:
        for name, digest in node.seen.get("datasets", {}).items():
            if digest.startswith("!"):
                wrong += 1
                what, _, fix = digest[1:].partition("; ")
                there = "copy it there, or share its folder"
                yield problem("data", node.name, f"{name}: {what}", f"{fix}, or {there}" if fix else there)
            elif not first[name].startswith("!") and digest != first[name]:
                wrong += 1
                what = f"{name} is another one than on {nodes[0].name} ({digest[:19]}…, {first[name][:19]}…)"
                yield problem("data", node.name, what, "copy the same dataset to all nodes, or share its folder")
    if not wrong:
        yield ok("data", "all", f"{len(first)} dataset{'s' * (len(first) != 1)} with the same digests")


def _tokenizers(nodes: Iterable[Node]) -> Iterator[Finding]:
    for node in nodes:
        if "tokenizer" in node.seen["errors"]:
            yield problem("data", node.name, f"data.tokenizer: {node.seen['errors']['tokenizer']}", "copy it there")
