#!/usr/bin/env bash
# Set up, fine-tune SmolLM2-135M with token selection, and show answers before and after.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" AXOLOTL_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# accelerate would use one core. Threads that wait must sleep: spinning ones starve each other on a busy machine.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores < 8 ? cores : 8))} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

model=.cache/models/smollm2-135m-instruct
out=outputs/cpu-demo
# Axolotl reuses prepared data by configuration, not by content: a changed data.jsonl would go unnoticed.
rm -rf "$out"
python demo/model.py "$model"
python demo/data.py "$out/data.jsonl"
accelerate launch -m axolotl.cli.train example_configs/cpu-demo.yaml
echo
echo "Questions that were in no sample:"
python demo/ask.py "$model" --adapter "$out"
echo
echo "Adapter: $out    Metrics: $out/checkpoint-*/trainer_state.json    What was selected: $out/sstoken/report.html"
