#!/usr/bin/env bash
# Run the test of Axolotl's `use_ray` on two workers, in an environment beside .venv. It needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/beside_venv.sh .cache/ray "ray[train]"
export PATH="$PWD/.cache/ray/bin:$PATH" PYTHONPATH="$PWD/tests"
python -m pytest tests/test_ray.py "$@"
