#!/usr/bin/env bash
# Set up, fine-tune SmolLM2-135M with token selection, and show answers before and after.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" AXOLOTL_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

model=.cache/models/smollm2-135m-instruct
python demo/model.py "$model"
python demo/data.py outputs/cpu-demo/data.jsonl
accelerate launch -m axolotl.cli.train example_configs/cpu-demo.yaml
echo
echo "Questions that were in no sample:"
python demo/ask.py "$model" outputs/cpu-demo
echo
echo "Adapter: outputs/cpu-demo    What was selected: outputs/cpu-demo/sstoken/report.html"
