#!/usr/bin/env bash
# Installs a wheel in fresh chroots of the distributions it promises, as a newcomer would: download, install, the
# quickstart's model for some steps (100), a LoRA of it for 100, its report, a sample. Prints the time of each part and
# the machine's load. As root, with debootstrap. A second trial takes the wheels that the first has downloaded.
#
#   scripts/package/try_distributions.sh WHEEL WORK_FOLDER [--site SITE_PACKAGES] [--steps N] [distribution...]
#
# --site S       take torch and nvidia from this folder in place of PyPI: minutes and 2.7 GB less for each
# distribution   debian12 ubuntu2204 ubuntu2404 (default: all)
set -euo pipefail
wheel=$(realpath "${1:?WHEEL}") work=${2:?WORK_FOLDER}
shift 2
site="" steps=100 wanted=()
while [ $# -gt 0 ]; do
  case "$1" in
    --site) site=$(realpath "${2:?}"); shift ;;
    --steps) steps=${2:?}; shift ;;
    *) wanted+=("$1") ;;
  esac
  shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=(debian12 ubuntu2204 ubuntu2404)
mkdir -p "$work"

bootstrap() { # NAME FOLDER
  local scripts=/usr/share/debootstrap/scripts ubuntu=(--components=main,universe)
  local key=/usr/share/keyrings/ubuntu-archive-keyring.gpg
  if [ -f "$key" ]; then ubuntu+=("--keyring=$key"); else ubuntu+=(--no-check-gpg); fi
  local common=(--variant=minbase --include=python3,python3-venv,ca-certificates)
  case "$1" in
    debian12) debootstrap "${common[@]}" bookworm "$2" http://deb.debian.org/debian ;;
    ubuntu2204) debootstrap "${common[@]}" "${ubuntu[@]}" jammy "$2" http://archive.ubuntu.com/ubuntu ;;
    ubuntu2404)
      [ -e $scripts/noble ] || ln -s gutsy $scripts/noble
      debootstrap "${common[@]}" "${ubuntu[@]}" noble "$2" http://archive.ubuntu.com/ubuntu ;;
    *) echo "try_distributions.sh: unknown distribution $1" >&2; exit 2 ;;
  esac
}

seconds() { # TEXT COMMAND...: runs it and prints how long it took
  local text=$1 begin=$SECONDS
  shift
  "$@" || { echo "$name: $text FAILED" >&2; exit 1; }
  echo "$name: $text $((SECONDS - begin)) s"
}

try() {
  name=$1
  local root=$work/$name
  [ -f "$root/.done" ] || { rm -rf "$root"; bootstrap "$name" "$root" >"$work/$name.log" 2>&1; touch "$root/.done"; }
  mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
  mountpoint -q "$root/dev" || mount --rbind /dev "$root/dev"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$root/tmp/certificates.crt"
  cp "$wheel" "$root/tmp/"
  rm -rf "$root/opt/env" "$root/opt/trial"
  local inside=(chroot "$root" /usr/bin/env -i HOME=/root PATH=/opt/env/bin:/usr/bin:/bin OMP_NUM_THREADS=2
    PIP_CERT=/tmp/certificates.crt)
  local in_wheel=/tmp/$(basename "$wheel") begin=$SECONDS
  echo "$name: load $(cut -d' ' -f1-3 /proc/loadavg)"
  seconds "venv" "${inside[@]}" python3 -m venv /opt/env
  if [ -n "$site" ]; then
    local own
    own=$(echo "$root"/opt/env/lib/python3*/site-packages)
    for part in torch nvidia; do mkdir -p "$own/$part"; mount --bind "$site/$part" "$own/$part"; done
    seconds "pip install without what it needs" "${inside[@]}" pip install -q --no-deps "$in_wheel"
  else
    seconds "pip download" "${inside[@]}" pip download -q -d /opt/wheels "$in_wheel"
    seconds "pip install of what is downloaded" "${inside[@]}" pip install -q --no-index --find-links /opt/wheels \
      "$in_wheel"
  fi
  seconds "vmoba-train --version" "${inside[@]}" vmoba-train --version
  seconds "files" "${inside[@]}" sh -c 'cp -r "$(python3 -c "import vmoba; print(vmoba.share)")" /opt/trial'
  seconds "$steps steps" "${inside[@]}" sh -c 'cd /opt/trial && vmoba-train --config configs/quickstart.yaml \
    train.steps='"$steps"' run.dir=run >/tmp/train.log 2>&1 || { tail -n 20 /tmp/train.log; false; }'
  seconds "a LoRA of 100 steps" "${inside[@]}" sh -c 'cd /opt/trial && vmoba-train --config configs/quickstart.yaml \
    model.weights=run/checkpoint-'"$steps"'/transformer lora.rank=8 train.steps=100 run.dir=lora >/tmp/lora.log 2>&1 ||
    { tail -n 20 /tmp/lora.log; false; }'
  seconds "a sample" "${inside[@]}" sh -c 'cd /opt/trial && vmoba-sample --checkpoint lora \
    --prompt "a technician" --out sample.mp4 >/tmp/sample.log 2>&1 || { tail -n 20 /tmp/sample.log; false; }'
  for file in sample.mp4 lora/report.html lora/checkpoint-100/lora/comfyui.safetensors; do
    [ -s "$root/opt/trial/$file" ] || { echo "$name: expected $file, found none" >&2; exit 1; }
  done
  echo "$name: all $((SECONDS - begin)) s, load $(cut -d' ' -f1-3 /proc/loadavg)"
  if [ -n "$site" ]; then for part in torch nvidia; do umount "$own/$part"; done; fi
  umount -R "$root/dev" "$root/proc"
}

for distribution in "${wanted[@]}"; do (try "$distribution"); done
