#!/usr/bin/env bash
# Makes what can be installed without a build: dist/vmoba-<version>-py3-none-manylinux_2_35_x86_64.whl and a tarball of
# the same tree, from the programs of a finished build on Debian 12 (docs/install.md). Needs patchelf, nasm and the
# development packages of OpenH264, dav1d and libvpx; FFmpeg's source comes from the distribution.
#
#   scripts/package.sh [--build FOLDER] [--out FOLDER] [--ffmpeg SOURCE_TAR]
set -euo pipefail
cd "$(dirname "$0")/.."
build=build out=dist source_tar=""
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?}; shift ;;
    --out) out=${2:?}; shift ;;
    --ffmpeg) source_tar=${2:?}; shift ;;
    *) echo "package.sh: unknown option $1 (known: --build --out --ffmpeg)" >&2; exit 2 ;;
  esac
  shift
done
fail() { echo "package: $1" >&2; echo "  fix: $2" >&2; exit 1; }
say() { echo "package: $*"; }

for tool in patchelf nasm make python3; do
  command -v "$tool" >/dev/null || fail "expected $tool, found none" "apt-get install patchelf nasm make"
done
for library in openh264 dav1d vpx; do
  pkg-config --exists "$library" || fail "expected the development files of $library, found none" \
    "apt-get install libopenh264-dev libdav1d-dev libvpx-dev"
done
[ -x "$build/bin/vmoba-train" ] && [ -e "$build/lib/libvmoba_ops.so" ] ||
  fail "expected the programs in $build/bin and $build/lib/libvmoba_ops.so" "./scripts/setup.sh"

work=$build/package
mkdir -p "$work"
# The release that the programs were compiled with: libraries of another would have other names or layouts.
release=$(dpkg-query -W -f='${source:Upstream-Version}' libavcodec-dev)
if [ -z "$source_tar" ]; then
  source_tar=$work/ffmpeg_$release.orig.tar.xz
  if [ ! -f "$source_tar" ]; then
    say "fetching the source of FFmpeg $release from the distribution"
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$work/apt/lists/partial"
    printf 'deb-src http://deb.debian.org/debian %s main\ndeb-src http://deb.debian.org/debian-security %s-security main\n' \
      "$codename" "$codename" >"$work/apt/sources.list"
    apt=(-o "Dir::Etc::SourceList=$PWD/$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
      -o "Dir::State::Lists=$PWD/$work/apt/lists")
    apt-get "${apt[@]}" -qq update
    (cd "$work" && apt-get "${apt[@]}" -qq source --download-only \
      "ffmpeg=$(dpkg-query -W -f='${source:Version}' libavcodec-dev)")
  fi
fi
prefix=$PWD/$work/ffmpeg
stamp=$(cat scripts/package/build_ffmpeg.sh "$source_tar" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" != "$stamp" ]; then
  say "building FFmpeg $release under the LGPL (about 3 minutes on 2 idle cores)"
  rm -rf "$work/ffmpeg-build" "$prefix"
  scripts/package/build_ffmpeg.sh "$source_tar" "$work/ffmpeg-build" "$prefix"
  echo "$stamp" >"$prefix/.stamp"
fi
python3 scripts/package/bundle.py --build "$build" --ffmpeg "$prefix" --out "$out"
