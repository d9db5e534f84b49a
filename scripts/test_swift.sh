#!/usr/bin/env bash
# Run the tests of ms-swift in an environment of its own: scripts/test_swift.sh [4.6.0 [pytest ...]]
# The releases that pass are those that sstoken_plugin/swift allows: docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:-4.6.0}
shift || true
venv=.cache/ms-swift-$release
scripts/trainer_venv.sh "$venv" "ms-swift==$release"
export PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD:$PWD/startup:$PWD/tests" SSTOKEN_ANY_MS_SWIFT=1
python -c 'import platform
from importlib.metadata import version as v
print("Python", platform.python_version(), *(f"{p} {v(p)}" for p in ("ms-swift", "torch", "transformers", "peft", "accelerate", "datasets")))'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -p material --noconftest tests/trainers/test_swift.py "$@"
