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

# Without threads of its own kind: packages have few wheels for a free-threaded Python.
about='
import sys
if "t" not in sys.abiflags: print("%d.%d" % sys.version_info[:2], getattr(sys, "_base_executable", sys.executable))'
for version in "$@"; do
  while read -r python; do
    read -r runs path < <("$python" -c "$about" 2> /dev/null) || continue
    if [ "$runs" != "$version" ]; then
      continue
    fi
    # Debian's python3 comes without ensurepip, and fails only when the environment is half made; uv needs none.
    if command -v uv > /dev/null || "$python" -c 'import ensurepip, venv' 2> /dev/null; then
      echo "$path"
      exit 0
    fi
    echo "$path has no ensurepip: install python$version-venv, or uv." >&2
  done < <(candidates "$version")
done
[ -z "${PYTHON:-}" ] || echo "PYTHON=$PYTHON is none of $*, or does not run." >&2
exit 1
