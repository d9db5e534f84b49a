#!/usr/bin/env bash
# Print the path of a Python that runs and can make environments, the first of the versions asked for:
# scripts/find_python.sh 3.12 3.13 3.11. PYTHON=/path/to/python restricts the search to that one.
set -euo pipefail

candidates() {
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
    return
  fi
  type -ap "python$1" python3 python || true
  # pyenv's shims are on the PATH for every version that it has, and stop unless that version is switched on. With
  # PYENV_VERSION somebody has chosen; else any of pyenv's versions will do.
  local shim
  shim=$(type -ap "python$1" | grep '/shims/' | head -n 1 || true)
  if [ -n "$shim" ] && [ -z "${PYENV_VERSION:-}" ]; then
    printf '%s\n' "${shim%/shims/*}/versions/$1".*/bin/python | sort -rV
  fi
  if command -v uv > /dev/null; then
    uv python find --no-python-downloads --no-project "$1" 2> /dev/null || true
  fi
}

# Debian's python3 comes without ensurepip, and fails only when the environment is half made; uv needs none.
needed="sys, ensurepip, venv"
if command -v uv > /dev/null; then
  needed=sys
fi
for version in "$@"; do
  while read -r python; do
    if found=$("$python" -c "import $needed
if sys.version_info[:2] != tuple(map(int, sys.argv[1].split('.'))): sys.exit(1)
print(getattr(sys, '_base_executable', sys.executable))" "$version" 2> /dev/null); then
      echo "$found"
      exit 0
    fi
  done < <(candidates "$version")
done
exit 1
