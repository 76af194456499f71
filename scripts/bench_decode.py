#!/usr/bin/env python3
"""Decode rate of vmoba-data beside the ffmpeg program, torchcodec and decord, on the same files at equal threads.

  python3 -m venv /tmp/decode && /tmp/decode/bin/pip install torch==2.11.0 torchcodec==0.11.1 decord
  /tmp/decode/bin/python scripts/bench_decode.py assets/clips/*.mp4

Each file is first looped to at least --frames frames without re-encoding, so that start-up does not count. The
programs take turns, --rounds times, and each one's best time is kept, so that other load on the machine meets all of
them alike. Columns, in frames per second:
  decode      vmoba-data: frames decoded, not converted       ffmpeg      ffmpeg -threads N -f null -
  rgb         vmoba-data: and converted to 8-bit RGB          torchcodec  VideoDecoder, every frame as RGB
                                                              decord      VideoReader.next(), every frame as RGB
A package that is not installed, or that refuses a file, shows "-".
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def video_stream(path):
    """The stream that vmoba reads (default, most pixels) and its number of frames."""
    out = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-count_packets", "-show_entries",
         "stream=index,width,height,nb_read_packets:stream_disposition=default", "-of", "json", path],
        check=True, capture_output=True, text=True).stdout
    streams = json.loads(out)["streams"]
    best = max(streams, key=lambda s: (s["disposition"]["default"], s["width"] * s["height"]))
    return best["index"], int(best["nb_read_packets"])


def loop(path, frames, folder):
    index, count = video_stream(path)
    out = os.path.join(folder, os.path.splitext(os.path.basename(path))[0] + ".mkv")
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", "-stream_loop", str(max(0, -(-frames // count) - 1)), "-i",
                    path, "-map", f"0:{index}", "-c", "copy", out], check=True)
    return out, video_stream(out)[1]


def run_vmoba(path, threads):
    """Rates of vmoba-data's decode, ffmpeg and rgb lines."""
    config = path + ".yaml"
    with open(config, "w") as file:
        file.write(f"data: {{path: '{path}', frames: [1], decode_threads: {threads}}}\nrun: {{log_level: error}}\n")
    out = subprocess.run([ARGUMENTS.program, "--config", config, "--bench"], check=True, capture_output=True, text=True).stdout
    return {name: float(re.search(rf"^{name}\s+([0-9.]+) frames/s", out, re.M).group(1))
            for name in ("decode", "ffmpeg", "rgb")}


def run_torchcodec(path, threads, frames):
    from torchcodec.decoders import VideoDecoder
    start = time.perf_counter()
    decoder = VideoDecoder(path, num_ffmpeg_threads=threads, seek_mode="approximate")
    got = 0
    for first in range(0, frames, 32):
        got += len(decoder.get_frames_in_range(first, min(frames, first + 32)))
    return got / (time.perf_counter() - start)


def run_decord(path, threads, frames):
    import decord
    start = time.perf_counter()
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads)
    got = 0
    while True:
        try:
            reader.next()
        except StopIteration:
            break
        got += 1
    return got / (time.perf_counter() - start)


def measure(path, threads, frames):
    best = {}
    for _ in range(ARGUMENTS.rounds):
        rates = run_vmoba(path, threads)
        for name, run in (("torchcodec", run_torchcodec), ("decord", run_decord)):
            try:
                rates[name] = run(path, threads, frames)
            except Exception as error:  # an absent package or a format that it refuses: shown as "-"
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
        for name, rate in rates.items():
            best[name] = max(best.get(name, 0), rate)
    return best


def main():
    names = ("decode", "ffmpeg", "rgb", "torchcodec", "decord")
    print("| file | frames | threads | " + " | ".join(names) + " |")
    print("|---|---|---|" + "---|" * len(names))
    with tempfile.TemporaryDirectory() as folder:
        for path in ARGUMENTS.files:
            looped, frames = loop(path, ARGUMENTS.frames, folder)
            for threads in ARGUMENTS.threads:
                best = measure(looped, threads, frames)
                cells = [f"{best[name]:.0f}" if name in best else "-" for name in names]
                print(f"| {os.path.basename(path)} | {frames} | {threads} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=2000, help="at least so many after looping")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", default=os.path.join(REPOSITORY, "build/bin/vmoba-data"))
    ARGUMENTS = parser.parse_args()
    main()
