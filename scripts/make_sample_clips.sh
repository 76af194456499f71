#!/usr/bin/env bash
# Cuts assets/clips/*.mp4 from the original NASA file (assets/README.md says which). Each clip is a shot, or a part of
# one, of the file's 480x270 stream; captions (assets/clips/*.txt) are written by hand and not touched here.
# Bytes may differ from the committed clips: on AVX-512 machines x264's rate control is not exactly repeatable.
#
#   scripts/make_sample_clips.sh nasa_13013.mp4 [folder]
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: $0 nasa_13013.mp4 [folder]   (needs ffmpeg with libx264)" >&2
  exit 2
fi
source_file=$1
folder=${2:-$(dirname "$0")/../assets/clips}
mkdir -p "$folder"

# name, first frame, frame after the last, crop width:height:x:y in the 480x270 picture
while read -r name first end crop; do
  ffmpeg -v error -nostdin -y -i "$source_file" -map 0:3 -an -sn \
    -vf "trim=start_frame=$first:end_frame=$end,setpts=PTS-STARTPTS,crop=$crop" \
    -c:v libx264 -preset veryslow -crf 21 -threads 1 -pix_fmt yuv420p \
    -color_range tv -colorspace bt709 -color_primaries bt709 -color_trc bt709 \
    -bitexact -map_metadata -1 -movflags +faststart "$folder/$name.mp4"
done <<'CLIPS'
01_mirror_in_dark_hall      0   138  480:270:0:0
02_mirror_close             0   138  256:144:160:18
03_red_lift_far             0   138  224:126:6:70
04_dissolve_to_technician   128 192  480:270:0:0
05_technician_and_mirror    179 240  480:270:0:0
06_technician_from_behind   179 240  224:126:100:38
07_gold_hexagons            179 240  224:126:244:0
08_lift_beside_mirror       242 390  480:270:0:0
09_lift_with_flashlight     242 390  224:126:40:70
10_banded_mirror            242 390  224:126:226:60
CLIPS
ls -l "$folder"
