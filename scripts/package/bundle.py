"""Puts a build's programs, the libraries that no target machine has, and their licences into a wheel and a tarball.

python scripts/package/bundle.py --build BUILD --ffmpeg PREFIX --out FOLDER   (scripts/package.sh makes PREFIX)

Ends with an error where a library is found nowhere, a file needs a later glibc than the wheel's name says, or a
bundled library is under the GPL.
"""
import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
GLIBC = (2, 35)
TAG = f"py3-none-manylinux_{GLIBC[0]}_{GLIBC[1]}_x86_64"
# Every machine has these, in a version that is late enough where glibc is. Python brings expat on all distributions;
# Debian 12's own would need its glibc 2.36.
SYSTEM = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2",
          "libstdc++.so.6", "libgcc_s.so.1", "libexpat.so.1"}
# Folders beside the package's own in site-packages, in the order of the search.
SITE_FOLDERS = ["torch/lib", "nvidia/cu13/lib", "nvidia/nccl/lib", "nvidia/cudnn/lib", "nvidia/cusparselt/lib",
                "nvidia/nvshmem/lib"]
# Compiled into the programs: headers, and what the wheels of the build bring.
HEADERS = {"fmt": "fmt (in torch), MIT", "spdlog": "libspdlog-dev", "CLI11": "libcli11-dev",
           "nlohmann-json": "nlohmann-json3-dev"}
BUILD_ONLY = {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cutlass"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(file):
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", str(file)))


def glibc_of(file):
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", run("objdump", "-T", str(file)))
    return max((int(a), int(b)) for a, b in versions) if versions else (0, 0)


class Libraries:
    """Copies of what the given files need, into `folder`."""

    def __init__(self, folder, ffmpeg, site):
        self.folder, self.ffmpeg, self.site, self.origin = folder, ffmpeg, site, {}
        self.cache = dict(re.findall(r"^\s+(\S+) \(libc6,x86-64[^)]*\) => (\S+)$", run("/sbin/ldconfig", "-p"), re.M))

    def find(self, name):
        for path in (self.ffmpeg / "lib" / name, Path(self.cache.get(name, "/nowhere"))):
            if path.exists():
                return path.resolve()
        sys.exit(f"expected {name} on this machine, found none")

    def take(self, file):
        for name in needed(file):
            if name in SYSTEM or name in self.origin or any((self.site / f / name).exists() for f in SITE_FOLDERS):
                continue
            self.origin[name] = self.find(name)
            shutil.copy(self.origin[name], self.folder / name)
            (self.folder / name).chmod(0o755)
            self.take(self.folder / name)


def packages_of(paths):
    """The Debian packages that these files come from; /usr/lib and /lib are one folder, of which dpkg knows either."""
    names = [name for path in paths for name in (str(path), str(path).removeprefix("/usr"))]
    found = subprocess.run(["dpkg", "-S", *names], capture_output=True, text=True).stdout
    owner = {file.removeprefix("/usr"): package for package, file in re.findall(r"^([^:,]+)[^ ]*: (/.+)$", found, re.M)}
    missing = [str(path) for path in paths if str(path).removeprefix("/usr") not in owner]
    if missing:
        sys.exit(f"expected a package that owns each of {', '.join(missing)}, found none")
    return {path: owner[str(path).removeprefix("/usr")] for path in paths}


def copy_licences(libraries, ffmpeg, folder):
    folder.mkdir()
    rows = []
    debian = {}
    owner = packages_of([path for path in libraries.origin.values() if not path.is_relative_to(ffmpeg)])
    for name, path in sorted(libraries.origin.items()):
        if path in owner:
            debian.setdefault(owner[path], []).append(name)
    for package, names in debian.items():
        shutil.copy(f"/usr/share/doc/{package}/copyright", folder / f"{package}.txt")
        version = run("dpkg-query", "-W", "-f=${source:Package} ${source:Version}", package)
        rows.append(f"{', '.join(names)}: Debian's {package}, source {version}; licenses/{package}.txt")
    build = ffmpeg.parent / "ffmpeg-build"
    for name in ("COPYING.LGPLv2.1", "LICENSE.md"):
        if (build / name).exists():
            shutil.copy(build / name, folder / f"ffmpeg-{name}")
    for title, package in HEADERS.items():
        copyright_file = Path(f"/usr/share/doc/{package}/copyright")
        if copyright_file.exists():
            shutil.copy(copyright_file, folder / f"{title}.txt")
    for licence in libraries.site.glob("nvidia_cutlass-*/**/LICENSE*"):
        shutil.copy(licence, folder / "cutlass.txt")
    return rows


def metadata(version):
    lines = ["Metadata-Version: 2.1", "Name: vmoba", f"Version: {version}",
             "Summary: Trains video diffusion transformers with VMoBA sparse attention", "License: Apache-2.0",
             "Requires-Python: >=3.10", "Description-Content-Type: text/markdown"]
    for line in (SOURCE / "scripts/requirements-build.txt").read_text().splitlines():
        name = line.split("==")[0].strip()
        if "==" in line and name not in BUILD_ONLY:
            lines.append(f"Requires-Dist: {line.strip()}")
    return "\n".join(lines) + "\n\n" + (SOURCE / "README.md").read_text()


def write_wheel(tree, info, out):
    def digest(data):
        return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

    record = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for root in (tree, info):
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                name, data = str(file.relative_to(root.parent)), file.read_bytes()
                entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if os.access(file, os.X_OK) else 0o100644) << 16
                archive.writestr(entry, data)
                record.append(f"{name},{digest(data)},{len(data)}")
        name = f"{info.name}/RECORD"
        archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), "\n".join([*record, f"{name},,"]) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--build", type=Path, required=True)
    arguments.add_argument("--ffmpeg", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    a = arguments.parse_args()
    build, ffmpeg = a.build.resolve(), a.ffmpeg.resolve()
    version = re.search(r'set\(vmoba_VERSION "(.+)"\)', (build / "vmobaConfig.cmake").read_text()).group(1)
    site = next((SOURCE / ".venv/lib").glob("python3*/site-packages"))

    stage = build / "package/stage"
    shutil.rmtree(stage, ignore_errors=True)
    tree = stage / "vmoba"
    shutil.copytree(SOURCE / "scripts/package/vmoba", tree, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "VERSION").write_text(version + "\n")
    for name in ("bin", "lib", "share"):
        (tree / name).mkdir()
    programs = sorted(path for path in (build / "bin").glob("vmoba-*") if path.is_file())
    for program in programs:
        shutil.copy(program, tree / "bin" / program.name)
    shutil.copy(build / "lib/libvmoba_ops.so", tree / "lib")
    for folder in ("configs", "assets"):
        shutil.copytree(SOURCE / folder, tree / "share" / folder)

    own = [*(tree / "bin").iterdir(), tree / "lib/libvmoba_ops.so"]
    libraries = Libraries(tree / "lib", ffmpeg, site)
    for file in own:
        libraries.take(file)
    for file in [*own, *(tree / "lib" / name for name in libraries.origin)]:
        searched = ["$ORIGIN/../lib"] + [f"$ORIGIN/../../{folder}" for folder in SITE_FOLDERS]
        run("patchelf", "--set-rpath", ":".join(searched), str(file))
        late = glibc_of(file)
        if late > GLIBC:
            sys.exit(f"{file.name} needs glibc {late[0]}.{late[1]}, the wheel promises {GLIBC[0]}.{GLIBC[1]}")
    for name in libraries.origin:
        if "libmpi" in name or "x264" in name or "x265" in name:
            sys.exit(f"{name} must not be bundled: MPI is opened at run time, and nothing is under the GPL")
    configuration = b"--disable-gpl"
    avcodec = next(name for name in libraries.origin if name.startswith("libavcodec"))
    if configuration not in (tree / "lib" / avcodec).read_bytes():
        sys.exit("expected libavcodec of scripts/package/build_ffmpeg.sh, found another")

    rows = copy_licences(libraries, ffmpeg, tree / "licenses")
    for name in ("LICENSE", "CHANGELOG.md"):
        shutil.copy(SOURCE / name, tree / name)
    own_build = [name for name, path in sorted(libraries.origin.items()) if path.is_relative_to(ffmpeg)]
    rows.insert(0, f"{', '.join(own_build)}: FFmpeg, LGPL 2.1 or later, built by scripts/package/build_ffmpeg.sh from "
                   "the distribution's source; licenses/ffmpeg-COPYING.LGPLv2.1")
    notice = (SOURCE / "NOTICE").read_text() + "\nLibraries in vmoba/lib of this package:\n\n" + \
        "".join(f"- {row}\n" for row in rows)
    (tree / "NOTICE").write_text(notice)

    info = stage / f"vmoba-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata(version))
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: vmoba\nRoot-Is-Purelib: false\nTag: {TAG}\n")
    (info / "entry_points.txt").write_text("[console_scripts]\n" + "".join(
        f"{p.name} = vmoba.programs:{p.name.replace('-', '_')}\n" for p in programs))
    (info / "LICENSE").write_text((SOURCE / "LICENSE").read_text())
    a.out.mkdir(parents=True, exist_ok=True)
    wheel = a.out / f"vmoba-{version}-{TAG}.whl"
    write_wheel(tree, info, wheel)
    tarball = a.out / f"vmoba-{version}-manylinux_{GLIBC[0]}_{GLIBC[1]}_x86_64.tar.gz"
    with tarfile.open(tarball, "w:gz", compresslevel=6) as archive:
        archive.add(tree, "vmoba")
    for file in (wheel, tarball):
        print(f"{file}  {file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
