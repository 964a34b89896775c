#!/usr/bin/env bash
# A TPU VM slice, from a laptop with gcloud:
#   launch/recipes/tpu_vm.sh NAME ZONE ROW [flags of launch.train]
# e.g. a v5p-16: gcloud compute tpus tpu-vm create spatialllm --zone=us-east5-a --accelerator-type=v5p-16 \
#        --version=v2-alpha-tpuv5
#
# Every host of the slice gets this checkout and the same command; JAX finds the others from the slice. Data, weights
# and the folder of the run lie in a bucket that all hosts mount (BUCKET, by gcsfuse) at ~/spatialllm-data.
set -euo pipefail

name=${1:?usage: tpu_vm.sh NAME ZONE ROW [flags of launch.train]}
zone=${2:?usage: tpu_vm.sh NAME ZONE ROW [flags of launch.train]}
row=${3:?usage: tpu_vm.sh NAME ZONE ROW [flags of launch.train]}
shift 3
bucket=${BUCKET:?set BUCKET to the bucket that holds data/, weights/ and runs/}

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

git archive --format=tar.gz --output=/tmp/spatialllm-jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/spatialllm-jax.tar.gz "$name": --zone="$zone" --worker=all

on_all "set -e; mkdir -p spatialllm-jax spatialllm-data && tar xzf spatialllm-jax.tar.gz -C spatialllm-jax
mountpoint -q spatialllm-data || gcsfuse --implicit-dirs $bucket spatialllm-data
cd spatialllm-jax && python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'
for part in data weights runs; do mkdir -p ../spatialllm-data/\$part; ln -sfn ../spatialllm-data/\$part \$part; done"

# Quoted once more, as the words travel through a remote shell.
printf -v flags '%q ' "$@"
on_all "cd spatialllm-jax && JAX_COMPILATION_CACHE_DIR=\$HOME/.jax-cache .venv/bin/python -m launch.train \
--config=configs/roadmap.py:$row --config.mesh.data=1 --config.mesh.fsdp=-1 --distributed --quiet $flags"
