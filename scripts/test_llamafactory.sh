#!/usr/bin/env bash
# Run the tests of LLaMA-Factory in an environment of its own: scripts/test_llamafactory.sh [0.9.5 [pytest ...]]
# The release that passes is the one that sstoken_plugin/llamafactory allows: docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:-0.9.5}
shift || true
venv=.cache/llamafactory-$release
scripts/trainer_venv.sh "$venv" "llamafactory==$release"
# What PyPI has of the next two is built for GPUs, and cannot be loaded beside a torch for CPUs. LLaMA-Factory does without
# torchvision, and imports torchaudio for data that these tests do not have.
"$venv/bin/python" -c 'import torchvision' 2> /dev/null || "$venv/bin/python" -m pip uninstall --quiet --yes torchvision
"$venv/bin/python" -c 'import torchaudio' 2> /dev/null || {
  "$venv/bin/python" -m pip uninstall --quiet --yes torchaudio
  touch "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchaudio.py"
}
export PATH="$PWD/$venv/bin:$PATH" PYTHONPATH="$PWD:$PWD/startup:$PWD/tests" SSTOKEN_ANY_LLAMAFACTORY=1
python -c 'import platform
from importlib.metadata import version as v
print("Python", platform.python_version(), *(f"{p} {v(p)}" for p in ("llamafactory", "torch", "transformers", "peft", "accelerate", "datasets")))'
python demo/model.py .cache/models/smollm2-135m-instruct
python -m pytest -p material --noconftest tests/trainers/test_llamafactory.py "$@"
