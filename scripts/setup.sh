#!/usr/bin/env bash
# Sets up everything that a build needs and builds: Debian/Ubuntu packages, a venv with libtorch, the CUDA
# compiler and CUTLASS headers from PyPI, then CMake + ninja. Safe to re-run; finished steps are skipped.
#
#   ./scripts/setup.sh [--tests] [--preset NAME] [--no-build] [target...]
#
# --tests      also install the Python packages that only tests read
# --preset P   CMake preset (default: release, whose binaries land in build/bin)
# --no-build   stop after the packages and the venv
set -euo pipefail
cd "$(dirname "$0")/.."

with_tests=0 preset=release build=1 targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --tests) with_tests=1 ;;
    --no-build) build=0 ;;
    --preset) preset=${2:?setup.sh: --preset needs a name}; shift ;;
    -*) echo "setup.sh: unknown option $1 (known: --tests --preset NAME --no-build)" >&2; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done

fail() { echo "setup: $1" >&2; echo "  fix: $2" >&2; exit 1; }
say() { echo "setup: $*"; }

# ---- 1. system packages -------------------------------------------------------------------------------------
packages=(build-essential g++ cmake ninja-build mold ccache pkg-config git ca-certificates
  python3 python3-venv libavformat-dev libavcodec-dev libavutil-dev libswscale-dev ffmpeg
  libyaml-cpp-dev libspdlog-dev libcli11-dev catch2 nlohmann-json3-dev libopenmpi-dev openmpi-bin
  libsentencepiece-dev libpcre2-dev libutf8proc-dev libcairo2-dev libxxhash-dev)
missing=()
if command -v dpkg-query >/dev/null; then
  for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
else
  fail "this script installs Debian/Ubuntu packages and found no dpkg" \
    "install the equivalents of: ${packages[*]}"
fi
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${#missing[@]} system packages: ${missing[*]}"
  root=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "system packages are missing and this user is not root: ${missing[*]}" \
      "as root: apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    root=sudo
  fi
  $root apt-get update -qq || fail "apt-get update failed" "check the network and /etc/apt/sources.list"
  DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get could not install: ${missing[*]}" "run the same command by hand and read its message: apt-get install ${missing[*]}"
fi

# ---- 2. venv with libtorch, CUDA compiler, CUTLASS headers --------------------------------------------------------
venv=.venv
free_gb=$(df -Pk . | awk 'NR==2 {print int($4/1048576)}')
install_wheels() { # VENV FILE EXTRA_PIP_ARGS...
  local venv=$1 file=$2 stamp
  shift 2
  if [ ! -x "$venv/bin/pip" ]; then
    python3 -m venv "$venv" || fail "python3 -m venv $venv failed" "apt-get install python3-venv"
  fi
  stamp="$venv/.$(basename "$file").sha256"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(sha256sum <"$file")" ]; then return; fi
  say "installing the wheels of $file (free disk: ${free_gb} GB)"
  [ "$free_gb" -ge 8 ] || [ -f "$stamp" ] || fail "only ${free_gb} GB of disk are free here and a first set-up needs 8" "free some, or clone elsewhere"
  "$venv/bin/pip" install -q --disable-pip-version-check "$@" -r "$file" ||
    fail "pip could not install $file" "check that PyPI (or your mirror: pip config) can be reached, then run this again"
  sha256sum <"$file" >"$stamp"
}
install_wheels "$venv" scripts/requirements-build.txt --no-deps
if [ $with_tests = 1 ]; then
  install_wheels .venv-tests scripts/requirements-test.txt --no-deps
  # The build's torch serves the tests too; the path is relative, so that the checkout can be moved.
  for site in .venv-tests/lib/python3*/site-packages; do
    echo "../../../../$venv/lib/$(basename "$(dirname "$site")")/site-packages" >"$site/vmoba_torch.pth"
  done
fi

# The CUDA wheels form one tree, nvidia/cu13, that lacks what a toolkit installer adds.
cu13=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
[ -x "$cu13/bin/nvcc" ] || chmod +x "$cu13"/bin/* "$cu13"/nvvm/bin/* 2>/dev/null ||
  fail "the CUDA compiler is not at $cu13/bin/nvcc" "rm -rf $venv and run this again"
chmod +x "$cu13"/bin/* "$cu13"/nvvm/bin/*
[ -e "$cu13/lib64" ] || ln -s lib "$cu13/lib64"
for lib in "$cu13"/lib/lib*.so.* "$cu13"/../*/lib/lib*.so.*; do
  plain="${lib%%.so.*}.so"
  [ -e "$plain" ] || ln -s "$(basename "$lib")" "$plain"
done

# ---- 3. configure and build ---------------------------------------------------------------------------------
[ $build = 1 ] || exit 0
mem_gb=$(awk '/MemTotal/ {print int($2/1048576)}' /proc/meminfo)
[ "$mem_gb" -ge 7 ] || say "warning: ${mem_gb} GB of memory; the build wants about 4 GB for each parallel job"
jobs=$(nproc)
if [ "$mem_gb" -lt $((4 * jobs)) ]; then jobs=$((mem_gb / 4 > 0 ? mem_gb / 4 : 1)); fi
cmake --preset "$preset" >build-configure.log 2>&1 || { tail -n 40 build-configure.log >&2
  fail "CMake could not configure preset $preset" "read build-configure.log; a stale build folder is mended by removing it"; }
say "building preset $preset with $jobs jobs"
cmake --build --preset "$preset" -j "$jobs" ${targets[@]:+--target "${targets[@]}"} ||
  fail "the build failed" "read the first error above; 'git status' shows local changes"
