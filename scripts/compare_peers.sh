#!/usr/bin/env bash
# Times this project's attention and its peers in one run on the present GPU, and prints one table.
#
#   scripts/compare_peers.sh [--python PYTHON] [options of compare_peers.py]
#
# PYTHON (python3) must have torch for CUDA 13; the peers' packages are installed beside the build, once, from PyPI.
# They are compared here and used by nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3
if [[ "${1:-}" == --python ]]; then
  python=$2
  shift 2
fi
site=build/peers
if [[ ! -e $site/done ]]; then
  "$python" -m pip install -q --no-deps --target "$site" -r scripts/requirements-peers.txt
  touch "$site/done"
fi
PYTHONPATH="$site:$site/nvidia_cutlass_dsl/dsl_packages" exec "$python" scripts/compare_peers.py "$@"
