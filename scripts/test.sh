#!/usr/bin/env bash
# Sets up, builds and runs the whole CPU test suite. Safe to re-run. With CI=true warnings are errors.
#
#   ./scripts/test.sh [ctest arguments...]     for example: ./scripts/test.sh -R attention
#
# Longer suites: ctest --test-dir build -C slow -L slow, and -C fuzz -L fuzz (docs/running.md).
set -euo pipefail
cd "$(dirname "$0")/.."
preset=release
[ "${CI:-}" = true ] && preset=ci
./scripts/setup.sh --tests --preset "$preset"
echo "test: running the CPU suite"
exec ctest --test-dir build -C Release -L cpu --output-on-failure -j "$(nproc)" "$@"
