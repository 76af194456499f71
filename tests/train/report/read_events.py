"""Prints what the real TensorBoard package reads from a folder of event files, as JSON. Usage: read_events.py FOLDER"""
import glob
import io
import json
import sys

from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, event_file_loader

folder = sys.argv[1]
accumulator = event_accumulator.EventAccumulator(folder, size_guidance=event_accumulator.STORE_EVERYTHING_SIZE_GUIDANCE)
accumulator.Reload()
tags = accumulator.Tags()
out = {"scalars": {}, "images": {}, "frames": {}, "texts": {}, "files": [], "raw_events": []}
for tag in tags["scalars"]:
    out["scalars"][tag] = [[e.step, repr(e.value)] for e in accumulator.Scalars(tag)]
for tag in tags["images"]:
    for e in accumulator.Images(tag):
        picture = Image.open(io.BytesIO(e.encoded_image_string))
        if picture.format == "GIF":
            out["frames"].setdefault(tag, []).append([e.step, picture.n_frames])
            continue
        picture = picture.convert("RGB")
        pixels = [list(picture.getpixel((x, y))) for y in range(picture.height) for x in range(picture.width)]
        out["images"].setdefault(tag, []).append([e.step, e.height, e.width, pixels])
for tag in tags["tensors"]:
    if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "text":
        for e in accumulator.Tensors(tag):
            out["texts"].setdefault(tag, []).append([e.step, e.tensor_proto.string_val[0].decode()])
for file in sorted(glob.glob(folder + "/*")):
    out["files"].append(file.rsplit("/", 1)[1])
    events = list(event_file_loader.RawEventFileLoader(file).Load())  # checks both checksums of each record
    out["raw_events"].append(len(events))
json.dump(out, sys.stdout)
