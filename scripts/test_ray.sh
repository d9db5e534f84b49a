#!/usr/bin/env bash
# Run the test of Axolotl's `use_ray` on two workers, in an environment beside .venv. It needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

venv=.cache/ray
if [ ! -f "$venv/complete" ]; then
  .venv/bin/python -m venv --clear "$venv"
  # Everything but Ray comes from .venv, with its own .pth files, and what Ray needs is mostly there.
  site='import sysconfig; print(sysconfig.get_path("purelib"))'
  echo "import site; site.addsitedir('$(.venv/bin/python -c "$site")')" > "$("$venv/bin/python" -c "$site")/main.pth"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "ray[train]"
  printf '#!/bin/sh\nexec "%s" -m torch.distributed.run "$@"\n' "$PWD/$venv/bin/python" > "$venv/bin/torchrun"
  chmod +x "$venv/bin/torchrun"
  touch "$venv/complete"
fi
export PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD/tests"
python -m pytest tests/test_ray.py "$@"
