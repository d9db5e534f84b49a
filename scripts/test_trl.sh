#!/usr/bin/env bash
# Run the tests of transformers' Trainer and of TRL on a release of TRL, in an environment of its own:
# scripts/test_trl.sh [1.16.0 [pytest ...]]. The releases that pass are those that sstoken_plugin/trl allows:
# docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:-1.16.0}
shift || true
venv=.cache/trl-$release
scripts/trainer_venv.sh "$venv" "trl[peft]==$release"
export PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD:$PWD/startup:$PWD/tests" SSTOKEN_ANY_TRL=1
python -c 'import platform
from importlib.metadata import version as v
print("Python", platform.python_version(), *(f"{p} {v(p)}" for p in ("trl", "torch", "transformers", "peft", "accelerate", "datasets")))'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -p material --noconftest tests/trainers/test_plain.py tests/trainers/test_trl.py "$@"
