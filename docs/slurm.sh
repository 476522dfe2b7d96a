#!/usr/bin/env bash
# Every trial of a profile over the nodes of one Slurm allocation, by one Ray cluster that lives as long as the job:
#
#   sbatch --nodes 4 --gpus-per-node 4 --cpus-per-task 32 --time 04:00:00 docs/slurm.sh --all --profile gpu
#
# Submit it from the root of a checkout on a file system that all nodes see, after `make setup` and `repro data fetch`.
# The words after the script's name are those of `repro run`. A job that ends early loses nothing: submit it again.
#SBATCH --job-name=repro
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')" # for this job alone; srun hands it on
export RAY_AUTH_TOKEN

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head_address="$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}'):6379"
resources=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}")
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || resources+=(--num-gpus "$SLURM_GPUS_ON_NODE")

srun --nodes=1 --ntasks=1 -w "${nodes[0]}" \
  ray start --head --port 6379 --include-dashboard false "${resources[@]}" --block &
until ray status --address "$head_address" > /dev/null 2>&1; do sleep 2; done
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude "${nodes[0]}" \
    ray start --address "$head_address" "${resources[@]}" --block &
fi
until [ "$(ray status --address "$head_address" 2> /dev/null | grep -c ' 1 node_')" -eq "${#nodes[@]}" ]; do sleep 2; done

repro run "$@" --engine ray --address "$head_address"
