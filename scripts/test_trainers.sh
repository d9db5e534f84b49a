#!/usr/bin/env bash
# Run the tests of every trainer beside Axolotl, each release in an environment of its own, and print the table of
# docs/support.md. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
failed=0
ran=()
run() {
  ran+=("$2-$3")
  scripts/test_"$1".sh "$3" --junitxml ".cache/$2-$3.xml" || failed=1
}
run trl trl 1.16.0
run trl trl 1.9.0
run llamafactory llamafactory 0.9.5
run swift ms-swift 4.6.0
.venv/bin/python scripts/trainers_table.py "${ran[@]}"
exit "$failed"
