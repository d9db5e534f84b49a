#!/usr/bin/env bash
# Set up what is missing, then check format, lint, types and documentation, and run the tests.
# --install-browser, as the first argument, lets it install Chromium with apt-get; the others go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
# Images of containers set it; each of many processes would compile again what the first one imports.
unset PYTHONDONTWRITEBYTECODE
browser=()
if [ "${1:-}" = --install-browser ]; then
  browser=(--install-browser)
  shift
fi
# Before set-up, which takes minutes.
scripts/browser.sh ${browser[@]+"${browser[@]}"}
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff format --check .
ruff check .
mypy
lint-imports
python scripts/write_configuration.py --check
# Here, because two workers would both begin to unpack it.
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered "$@"
