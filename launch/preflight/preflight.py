"""All checks before a run, in the order in which they need each other; what one finds does not stop the others.

    hostfile → ssh to every host → each node's probe, compared → data, run folder, weights → a trial on all ranks

The trial needs every node, so it is made only if each has answered. Nothing is written but below RUN/.preflight, which
is removed at the end, with the run folder if it was made for that.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launch.cluster.hostfile import Host, format_hostfile, inspect_hostfile
from launch.cluster.launcher import (
    DEFAULT_MASTER_PORT,
    Hostfile,
    LauncherError,
    Local,
    Placement,
    Slurm,
    check_slots,
    child_environment,
    choose_placement,
)
from launch.cluster.zero_states import DTYPE_BYTES
from launch.config import TrainConfig, TrainingError
from launch.preflight.comparison import Node, compare, shared_folder
from launch.preflight.findings import Finding, not_checked, ok, problem, problems
from launch.preflight.node_probe import PROBE_FOLDER, Job, encode
from launch.preflight.nodes import Answer, ask
from launch.preflight.rank_probe import RankJob
from launch.preflight.start import ReadConfig, look_at_start
from launch.preflight.trial import run_trial
from model.cost import count_parameters

CHECKPOINT_BYTES_PER_PARAMETER = 12  # fp32 master weight and AdamW's two moments
_NODE_TIMEOUT_S = 120.0
_NEEDED_FOR_TRIAL = ("hostfile", "reach", "packages", "code", "slots", "GPUs", "port")


def preflight(
    config: TrainConfig,
    *,
    read_config: ReadConfig,
    environment: Mapping[str, str],
    device_count: int,
    core_count: int,
    kept: int,
    trial_timeout_s: float,
    say: Callable[[str], None],
) -> list[Finding]:
    """`read_config` is as for `look_at_start`; `kept` checkpoints must fit at once.

    Raises LauncherError or SlurmError where not even the nodes are known.
    """
    findings: list[Finding] = []
    with _probe_folder(config.run_dir):
        placement, hosts = _place(config, environment, findings, device_count=device_count)
        if not hosts:
            return findings
        say(f"asking {len(hosts)} node{'s' * (len(hosts) != 1)}")
        child = child_environment(
            environment, placement, device_count=device_count, core_count=core_count, launcher_pid=0
        )
        child.pop("SMOLLM2_LAUNCHER_PID", None)
        token = secrets.token_hex(8)
        nodes = _ask_nodes(config, placement, hosts, token, child, findings)
        if nodes:
            # the launcher may stand on a machine without GPUs
            has_gpus = device_count > 0 or any(node.seen.get("gpus") for node in nodes)
            wants_gpus = has_gpus and environment.get("DS_ACCELERATOR") != "cpu"
            # up to stage 2 the weights stand beside the optimizer's state, not in it
            weight_bytes = DTYPE_BYTES[config.precision] if config.zero.stage < 3 else 0
            per_parameter = CHECKPOINT_BYTES_PER_PARAMETER + weight_bytes
            checkpoint_bytes = per_parameter * count_parameters(config.model).total
            findings += compare(nodes, checkpoint_bytes=checkpoint_bytes, kept=kept, wants_gpus=wants_gpus)
            findings += _look_for_tokens(placement, nodes, _job(config, "", token), child)
        dataset_told = any(_lacks_dataset(node) for node in nodes)
        start = look_at_start(config, read_config=read_config, dataset_told=dataset_told)
        findings += start.findings
        ranks = sum(_ranks_of(config, host) for host in hosts)
        findings += _batch(config, ranks)
        job = RankJob(
            config=config.model_copy(update={"init_from": start.init_from}),
            first_step=start.step,
            timeout_s=trial_timeout_s,
        )
        findings += _trial(job, placement, ranks=ranks, environment=child, found=findings, say=say)
    return findings


def _trial(
    job: RankJob,
    placement: Placement,
    *,
    ranks: int,
    environment: Mapping[str, str],
    found: Sequence[Finding],
    say: Callable[[str], None],
) -> list[Finding]:
    """If nothing that was `found` stands against it, and the run has steps left."""
    config = job.config
    blocking = sorted({finding.check for finding in problems(found)} & set(_NEEDED_FOR_TRIAL))
    if blocking or job.first_step >= config.steps:
        why = f"a trial needs these mended first: {', '.join(blocking)}" if blocking else "the run has no steps left"
        return [not_checked("all-reduce", "all", why), not_checked("step", "all", why)]
    say(
        f"a trial on {_counted(ranks)}: an all-reduce, then two steps of {config.micro_batch_size} x "
        f"{config.data.sequence_length} tokens, at most {job.timeout_s:g} s (--timeout); "
        "a large model may take longer on CPUs"
    )
    try:
        return run_trial(job, placement, ranks=ranks, environment=environment, say=say)
    except (LauncherError, FileNotFoundError) as error:
        return [problem("all-reduce", "all", f"DeepSpeed's launcher does not start: {error}", "mend that")]


@contextlib.contextmanager
def _probe_folder(run_dir: Path) -> Iterator[None]:
    folder = run_dir / PROBE_FOLDER
    made = [above for above in folder.parents if not above.exists()]
    # what cannot be made here is told of each node
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            for above in made:
                above.rmdir()


def _place(
    config: TrainConfig, environment: Mapping[str, str], findings: list[Finding], *, device_count: int
) -> tuple[Placement, tuple[Host, ...]]:
    """Where the run would be; a hostfile's good lines are used whatever the others hold."""
    settings = config.launcher
    if settings.hostfile is not None:
        hosts, wrong = inspect_hostfile(settings.hostfile)
        for sentence in wrong:
            what, _, fix = sentence.partition("; ")
            findings.append(problem("hostfile", "all", what, fix or "write one `HOST slots=N` a line"))
        try:
            check_slots(hosts, settings)
        except LauncherError as error:
            what, _, fix = str(error).partition("; ")
            findings.append(problem("hostfile", "all", what, fix))
            return Hostfile(hosts, settings), hosts
        if not wrong:
            slots = sum(host.slots for host in hosts)
            findings.append(ok("hostfile", "all", f"{len(hosts)} hosts with {slots} slots"))
        return Hostfile(hosts, settings), hosts
    placement = choose_placement(environment, settings, run_dir=config.run_dir, device_count=device_count)
    if isinstance(placement, Slurm):
        hostfile = config.run_dir.absolute() / PROBE_FOLDER / "hostfile"
        hostfile.write_text(format_hostfile(placement.hosts))
        return replace(placement, hostfile=hostfile), placement.hosts
    assert isinstance(placement, Local)
    return placement, (Host(socket.gethostname(), placement.ranks),)


def _job(config: TrainConfig, name: str, token: str, *, port: int | None = None) -> Job:
    return Job(
        name=name,
        token=token,
        run_dir=config.run_dir.absolute(),
        # one in an object store is compared by the ranks as they start
        datasets={source.name: source.path for source in config.data.sources if isinstance(source.path, Path)},
        tokenizer=config.data.tokenizer,
        port=port,
    )


def _ask_nodes(
    config: TrainConfig,
    placement: Placement,
    hosts: tuple[Host, ...],
    token: str,
    environment: Mapping[str, str],
    findings: list[Finding],
) -> list[Node]:
    """Those that answered."""
    port = config.launcher.master_port or (None if isinstance(placement, Local) else DEFAULT_MASTER_PORT)
    arguments = {
        host.name: [encode(_job(config, host.name, token, port=port if host is hosts[0] else None))] for host in hosts
    }
    answers = ask(placement, hosts, arguments, environment=environment, timeout_s=_NODE_TIMEOUT_S)
    for answer in answers:
        if answer.said is None:
            findings.append(_unreached(placement, answer))
    devices = placement.devices if isinstance(placement, Local) else None
    nodes = [
        Node(answer.host.name, _ranks_of(config, answer.host), answer.said, answer.asked_s, answer.answered_s, devices)
        for answer in answers
        if answer.said is not None
    ]
    if len(nodes) == len(hosts):
        findings.append(ok("reach", "all", f"{len(nodes)} node{'s' * (len(nodes) != 1)} answered"))
    return nodes


def _ranks_of(config: TrainConfig, host: Host) -> int:
    return min(host.slots, config.launcher.ranks_per_node or host.slots)


def _unreached(placement: Placement, answer: Answer) -> Finding:
    name = answer.host.name
    fix = "see that this Python and this code are there"
    if isinstance(placement, Hostfile):
        fix = f"see that `ssh {name} true` needs no password and that {fix[9:]}, or take it out of the hostfile"
    return problem("reach", name, answer.failure, fix)


def _look_for_tokens(
    placement: Placement, nodes: list[Node], job: Job, environment: Mapping[str, str]
) -> list[Finding]:
    """Whether each node sees what the others wrote; asked of all once more, when all have written."""
    if len(nodes) < 2 or any("disk" in node.seen["errors"] for node in nodes):
        return []
    hosts = [Host(node.name, node.slots) for node in nodes]
    arguments = {host.name: [encode(job), "--tokens"] for host in hosts}
    answers = ask(placement, hosts, arguments, environment=environment, timeout_s=_NODE_TIMEOUT_S)
    seen = {answer.host.name: answer.said for answer in answers if answer.said is not None}
    return shared_folder([node.name for node in nodes], seen)


def _lacks_dataset(node: Node) -> bool:
    return any(digest.startswith("!") for digest in node.seen.get("datasets", {}).values())


def _batch(config: TrainConfig, ranks: int) -> list[Finding]:
    try:
        accumulation = config.accumulation_steps(world_size=ranks)
    except TrainingError as error:
        what, _, fix = str(error).partition("; ")
        return [problem("batch", "all", what, fix)]
    return [ok("batch", "all", f"{accumulation} micro-batch{'es' * (accumulation != 1)} a rank on {_counted(ranks)}")]


def _counted(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks != 1)}"
