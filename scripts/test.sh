#!/usr/bin/env bash
# Sets up, builds and runs the whole CPU test suite. Safe to re-run. With CI=true warnings are errors.
#
#   ./scripts/test.sh [ctest arguments...]     for example: ./scripts/test.sh -R attention
#
# --sanitize: in place of it the readers of foreign files with sanitizers, fuzzed for VMOBA_FUZZ_S seconds (300) by two
# processes.
# Longer suites: ctest --test-dir build -C slow -L slow, and -C fuzz -L fuzz (docs/running.md).
set -euo pipefail
cd "$(dirname "$0")/.."
preset=release
[ "${CI:-}" = true ] && preset=ci
sanitize=0
if [ "${1:-}" = --sanitize ]; then
  sanitize=1
else
  ./scripts/setup.sh --tests --preset "$preset"
  echo "test: running the CPU suite"
  ctest --test-dir build -C Release -L cpu --output-on-failure -j "$(nproc)" "$@"
fi
[ $sanitize = 1 ] || exit 0
echo "test: building the readers with sanitizers"
./scripts/setup.sh --tests --preset "$preset" vmoba_checked
echo "test: running them"
VMOBA_FUZZ_S=${VMOBA_FUZZ_S:-300} ctest --test-dir build -C sanitize -L sanitize --output-on-failure -j "$(nproc)"
