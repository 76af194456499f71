#!/usr/bin/env bash
# From a fresh clone to a trained small video model: sets up, builds, trains with VMoBA on the shipped clips, samples.
# Safe to re-run: the second run re-uses the build, and an interrupted training continues.
#
#   ./scripts/quickstart.sh [key.sub=value...]     for example: ./scripts/quickstart.sh train.steps=100
set -euo pipefail
cd "$(dirname "$0")/.."
run_dir=runs/quickstart
./scripts/setup.sh vmoba-{train,sample,data,encode,convert,bench}  # the programs; ./scripts/test.sh builds the tests too
export MALLOC_ARENA_MAX=4

echo "quickstart: checking the clips and what the run needs"
build/bin/vmoba-train --config configs/quickstart.yaml --dry-run "$@"
echo "quickstart: training (a few minutes on 2 cores; Ctrl-C saves, and running this script again continues)"
build/bin/vmoba-train --config configs/quickstart.yaml --resume latest run.dir="$run_dir" "$@"

checkpoint=$(ls -d "$run_dir"/checkpoint-* | grep -v unfinished | sort -t- -k2 -n | tail -1)
prompt=$(head -1 assets/clips/05_technician_and_mirror.txt)
build/bin/vmoba-sample --checkpoint "$checkpoint" --prompt "$prompt" --out "$run_dir/sample.mp4"
echo
echo "quickstart: done"
echo "  video       $run_dir/sample.mp4   (prompt: $prompt)"
echo "  loss curve  $run_dir/loss.png"
echo "  metrics     $run_dir/metrics.jsonl, $run_dir/tensorboard/"
echo "  checkpoint  $checkpoint/transformer   (diffusers layout)"
