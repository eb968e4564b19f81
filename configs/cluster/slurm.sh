#!/bin/bash
# One training run on the nodes of a Slurm allocation:
#   sbatch configs/cluster/slurm.sh configs/train/smollm2-135m.yaml run_dir=runs/smollm2-135m
# or, with your numbers and the config in it: smollm2 launch render slurm CONFIG --nodes 4 --output job.sh
#
# `smollm2 launch train` finds the allocation by itself. It asks scontrol for the nodes, writes a hostfile of them into
# the run folder, and starts one `deepspeed --no_ssh` a node with srun. So no node needs ssh to another, and Slurm
# accounts for, limits and ends every process. `deepspeed --launcher slurm` is not used: DeepSpeed 0.19 forgets
# --module there and sets no master address.
#
# The job gets SIGUSR1 five minutes before its time is over (B: this script alone, which passes it on). Each rank then
# finishes its step and saves, within those five minutes, and the job is put back into the queue, where it goes on from
# its newest checkpoint. A job that could not save is not put back: it would run in circles; nor is one that scancel
# ends, by SIGTERM, after which it has 30 seconds (docs/operations.md). A preempted one Slurm puts back itself. Crashes and
# hangs are restarted inside of the allocation (--max-restarts).
# The repository, its .venv, the datasets and the run folder must lie on a file system that all nodes share.
#
# Tried with stand-ins for sbatch, srun and scontrol, not yet on a real Slurm.

#SBATCH --job-name=smollm2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
# 0 is all of a node's; --exclusive alone grants all of its CPUs, but of its memory only the partition's default
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

config=${1:?give a config, such as configs/train/smollm2-135m.yaml}
shift

# Slurm copies this file before it runs it: the repository is where sbatch was called
cd "$SLURM_SUBMIT_DIR" || exit 1
export PATH="$PWD/.venv/bin:$PATH"
# srun passes the environment on to all nodes; the interface that the nodes reach each other on, if NCCL picks another:
# export NCCL_SOCKET_IFNAME=ib0

# in the background, because bash runs a trap only between commands; $! is the process in the background
trap '[ -z "$!" ] || kill -TERM "$!"' TERM
trap '[ -z "$!" ] || kill -USR1 "$!"' USR1
smollm2 launch train --max-restarts 10 "$config" "$@" &
wait "$!"
code=$?
# the trap has interrupted the wait: the run is saving
while kill -0 "$!" 2>/dev/null; do
  wait "$!"
  code=$?
done

# 138: stopped by SIGUSR1, and has saved; where nothing was saved the code is another
if [ "$code" -eq 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
