#!/bin/bash
# One dataset by the tasks of a job array, which need not run at the same time, and a last job that commits it:
#   job=$(sbatch --parsable --array=0-63 configs/cluster/slurm_data.sh configs/data/fineweb-edu.yaml)
#   sbatch --dependency=afterok:$job configs/cluster/slurm_data.sh configs/data/fineweb-edu.yaml
#
# Each task does one shard of the units: those whose index is its number modulo the array's size. If the config asks for
# a tokenizer to be trained, the first task does that and the others wait. A task that was killed or preempted is put
# back by Slurm, or by the same sbatch again, and goes on where it was. Outside an array the script commits.
# The repository, its .venv, the input and the output folder must lie on a file system that all nodes share and that
# knows flock (NFS 4; Lustre mounted with -o flock). The array must begin at 0 and have no gaps.
#
# Tried with stand-ins for Slurm and smollm2, not yet on a real Slurm.

#SBATCH --job-name=smollm2-data
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log

config=${1:?give a config, such as configs/data/fineweb-edu.yaml}
shift

# Slurm copies this file before it runs it: the repository is where sbatch was called
cd "$SLURM_SUBMIT_DIR" || exit 1
export PATH="$PWD/.venv/bin:$PATH"

if [ -n "$SLURM_ARRAY_TASK_ID" ]; then
  exec smollm2 pipeline run "$config" "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
else
  exec smollm2 pipeline commit "$config" "$@"
fi
