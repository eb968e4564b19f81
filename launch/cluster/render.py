"""A run as a Slurm script or a Kubernetes manifest, to be read and changed by a person. Pure functions of text.

Slurm: `configs/cluster/slurm.sh`, which is a script that runs as it is, with other numbers in its #SBATCH lines and the
config put in. Kubernetes: an indexed Job with one pod a node, found by a headless Service; each pod starts its own
`deepspeed --no_ssh`, as under Slurm, so that no pod needs ssh to another.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster.launcher import DEFAULT_MASTER_PORT, TRAIN_MODULE
from launch.config import TrainConfig, TrainingError

KUBERNETES_MEMORY_GIB = 512  # unless told: a pod that asks for no memory is the first to be evicted
_FIRST_LINE = "config=${1:?give a config, such as configs/train/smollm2-135m.yaml}\n"
_NAME_LENGTH = 52  # of a Job, whose pods' host names add the index and must stay under 64
_MOUNT = "/etc/smollm2"  # of the ConfigMap


@dataclass(frozen=True)
class Shape:
    """How many machines of what kind; `time_limit` as Slurm spells it. No `memory_gib`: all of Slurm's node, or 512."""

    nodes: int = 2
    gpus_per_node: int = 8
    cpus_per_node: int = 64
    memory_gib: int | None = None
    time_limit: str = "24:00:00"


def check_shape(config: TrainConfig, shape: Shape, *, scheduler: str) -> None:
    """Raises TrainingError for a batch that does not divide over the ranks that the job starts, and for settings that
    do not go with it."""
    ranks = config.launcher.ranks_per_node or shape.gpus_per_node
    if scheduler == "kubernetes" and ranks != shape.gpus_per_node:
        raise TrainingError(
            f"launcher.ranks_per_node={ranks}, but a pod starts a rank on each of its {shape.gpus_per_node} GPUs; "
            f"render with --gpus-per-node {ranks}, or with launcher.ranks_per_node=null"
        )
    config.accumulation_steps(world_size=shape.nodes * ranks)
    if config.launcher.hostfile is not None:
        raise TrainingError(
            f"launcher.hostfile={config.launcher.hostfile} would go before the allocation; "
            "render with launcher.hostfile=null"
        )


def render_slurm(template: str, config: TrainConfig, file: Path, overrides: Sequence[str], shape: Shape) -> str:
    """`template` is `configs/cluster/slurm.sh`."""
    script = template
    for option, value in {
        "job-name": re.sub(r"[^\w.-]+", "-", config.name),
        "nodes": shape.nodes,
        "gpus-per-node": shape.gpus_per_node,
        "cpus-per-task": shape.cpus_per_node,
        "mem": 0 if shape.memory_gib is None else f"{shape.memory_gib}G",
        "time": shape.time_limit,
    }.items():
        [line] = [line for line in script.splitlines() if line.startswith(f"#SBATCH --{option}=")]
        script = script.replace(line, f"#SBATCH --{option}={value}")
    assert _FIRST_LINE in script
    words = shlex.join([str(file), *overrides])
    # what is given to sbatch comes behind, and so overrides what stands here
    return script.replace(_FIRST_LINE, f'set -- {words} "$@"\n{_FIRST_LINE}')


def render_kubernetes(config: TrainConfig, resolved: str, shape: Shape, *, image: str, claim: str) -> str:
    """One YAML stream. `resolved` is the config as YAML, which goes along; `claim` is a volume that all nodes may
    write, with the datasets and the run folder in it."""
    name = kubernetes_name(config.name)
    port = config.launcher.master_port or DEFAULT_MASTER_PORT
    hosts = "\n".join(f"    {name}-{index}.{name} slots={shape.gpus_per_node}" for index in range(shape.nodes))
    deepspeed = (
        f"deepspeed --no_ssh --node_rank=$JOB_COMPLETION_INDEX --hostfile={_MOUNT}/hostfile "
        f"--master_addr={name}-0.{name} --master_port={port} --module {TRAIN_MODULE} {_MOUNT}/config.yaml"
    )
    return _MANIFEST.format(
        name=name,
        title=config.name,
        nodes=shape.nodes,
        gpus=shape.gpus_per_node,
        cpus=shape.cpus_per_node,
        memory=shape.memory_gib or KUBERNETES_MEMORY_GIB,
        hosts=hosts,
        resolved=textwrap.indent(resolved, "    ").rstrip(),
        mount=_MOUNT,
        port=port,
        image=json.dumps(image),
        claim=json.dumps(claim),
        retries=3 * shape.nodes,
        deepspeed=deepspeed,
    )


def kubernetes_name(name: str) -> str:
    """As a host name may be spelled. Raises TrainingError if nothing is left of it."""
    spelled = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_NAME_LENGTH].strip("-")
    if not spelled or not spelled[0].isalpha():
        raise TrainingError(
            f"name={name!r} cannot be the name of a Kubernetes Job; begin it with a letter, such as name=smollm2"
        )
    return spelled


_MANIFEST = """\
# {title} on {nodes} nodes of {gpus} GPUs:
#   kubectl apply -f FILE           start, or go on from the newest checkpoint after `kubectl delete -f FILE`
#   kubectl logs -f job/{name}     what rank 0 says (its pod is {name}-0-…)
# One pod a node runs its own `deepspeed --no_ssh`; the Service gives the pods the names that stand in the hostfile.
# A pod that is evicted gets SIGTERM, which goes to the ranks: they finish their step and save.
# Change what stands here: the image, the claim, resources, tolerations and node selectors of your cluster, and the
# network that NCCL uses (an env such as NCCL_SOCKET_IFNAME).
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None # headless: a name a pod
  publishNotReadyAddresses: true # the ranks look for each other before a pod counts as ready
  selector:
    job-name: {name}
  ports:
    - name: rendezvous
      port: {port}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
data:
  hostfile: |
{hosts}
  config.yaml: | # resolved, with the overrides that it was rendered with
{resolved}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed # each pod has a number, its node's rank, and with it a lasting name
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: {retries} # a node that fails takes all pods with it, and each counts
  podFailurePolicy:
    rules:
      - action: FailJob # 2: a mistake in the config, which no second try mends
        onExitCodes:
          containerName: train
          operator: In
          values: [2]
      - action: Ignore # stopped by a signal after saving, as all pods are when one node is drained: not a failure
        onExitCodes:
          containerName: train
          operator: In
          values: [130, 138, 143]
      - action: Ignore # the node was drained or the pod preempted
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    spec:
      subdomain: {name}
      restartPolicy: Never
      terminationGracePeriodSeconds: 180 # a step and a save
      # the image's user, and the volume's group: a fresh claim belongs to root
      securityContext: {{runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001}}
      affinity:
        podAntiAffinity: # one pod a node
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels:
                  job-name: {name}
      containers:
        - name: train
          image: {image}
          workingDir: /workspace # relative paths of the config begin here
          command: ["bash", "-c"]
          args:
            - |
              # a pod's signal reaches its first process alone: it is passed on to the ranks
              trap 'kill -TERM $(grep -lz "^--local_rank=" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3)' TERM
              {deepspeed} &
              child=$!
              wait "$child"
              code=$?
              # a trap interrupts the wait: the run is saving
              while kill -0 "$child" 2>/dev/null; do
                wait "$child"
                code=$?
              done
              exit "$code"
          resources:
            limits:
              nvidia.com/gpu: {gpus}
            requests:
              cpu: {cpus}
              memory: {memory}Gi
          volumeMounts:
            - name: work
              mountPath: /workspace
            - name: settings
              mountPath: {mount}
            - name: shared-memory # NCCL between the GPUs of a node; the default is 64 MB
              mountPath: /dev/shm
      volumes:
        - name: work
          persistentVolumeClaim:
            claimName: {claim}
        - name: settings
          configMap:
            name: {name}
        - name: shared-memory
          emptyDir:
            medium: Memory
"""
