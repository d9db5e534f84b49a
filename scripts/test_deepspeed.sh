#!/usr/bin/env bash
# Run the tests of sharded training with DeepSpeed's ZeRO-3 too, in an environment beside .venv. It needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

venv=.cache/deepspeed
if [ ! -f "$venv/complete" ]; then
  .venv/bin/python -m venv --clear "$venv"
  install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
  # Everything but DeepSpeed and what it builds with comes from .venv.
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
  install wheel "setuptools<81" hjson py-cpuinfo msgpack ninja
  DS_BUILD_OPS=0 DS_ACCELERATOR=cpu install --no-deps --no-build-isolation deepspeed==0.18.9
  printf '#!/bin/sh\nexec "%s" -m torch.distributed.run "$@"\n' "$PWD/$venv/bin/python" > "$venv/bin/torchrun"
  chmod +x "$venv/bin/torchrun"
  touch "$venv/complete"
fi
export DS_ACCELERATOR=cpu PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD"
python -m pytest tests/test_sharding.py "$@"
