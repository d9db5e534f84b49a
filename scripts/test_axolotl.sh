#!/usr/bin/env bash
# Run the tests on another release of Axolotl, in an environment of its own: scripts/test_axolotl.sh 0.17.0 [pytest ...]
# The releases that pass are those that pyproject.toml allows: docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
# Images of containers set it; each of many processes would compile again what the first one imports.
unset PYTHONDONTWRITEBYTECODE
release=${1:?name a release of Axolotl, for example 0.17.0}
shift
venv=.cache/axolotl-$release
scripts/browser.sh
scripts/setup.sh "$release" "$venv"
# Also on a release to come.
export PATH="$PWD/$venv/bin:$PATH" SSTOKEN_ANY_AXOLOTL=1
python -c 'import platform
from importlib.metadata import version as v
print("Python", platform.python_version(), *(f"{p} {v(p)}" for p in ("axolotl", "torch", "transformers", "peft", "accelerate", "pydantic", "numpy")))'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -n 2 --dist worksteal "$@"
