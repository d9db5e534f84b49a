#!/usr/bin/env bash
# Run the tests of sharded training with DeepSpeed's ZeRO-3 too, in an environment beside .venv. It needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
venv=.cache/deepspeed
# What DeepSpeed builds with; then DeepSpeed, which shall build none of its kernels.
scripts/beside_venv.sh "$venv" wheel "setuptools<81" hjson py-cpuinfo msgpack ninja
export DS_ACCELERATOR=cpu PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD"
python -m pip show --quiet deepspeed 2> /dev/null ||
  DS_BUILD_OPS=0 python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation deepspeed==0.18.9
python -m pytest tests/test_sharding.py "$@"
