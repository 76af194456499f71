"""What scripts/wandb_import.py writes: by wandb's own messages, or by what it tells the stub of wandb in a folder.

Usage: check_wandb_import.py SCRIPT [FOLDER_OF_STUB]
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile


def records(path):
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    data, at, block, parts = path.read_bytes(), 7, 32768, b""
    assert data.startswith(b":W&B"), data[:7]
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield parts
            parts = b""


def told_to_wandb(place):
    """Name and project, configuration, history of the offline run in this folder."""
    from wandb.proto import wandb_internal_pb2
    history, config, names = [], {}, []
    for data in records(next(place.glob("*.wandb"))):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            names.append((record.run.display_name, record.run.project))
            config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        if kind == "history":
            history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                            for item in record.history.item})
    return names[0], config, history


def told_to_stub(place):
    said = json.loads((place / "run.json").read_text())
    return (said["name"], said["project"]), said["config"], said["history"]


def write_run(folder):
    folder.mkdir()
    lines = [{"step": step, "loss": 1 / step, "lr": 1e-4, "density_by_partition": {"spatial": 0.25},
              "density_by_layer": [0.5, 0.75]} for step in (1, 2, 5)]
    lines[1]["loss"] = None  # as NaN is written
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
    (folder / "config.resolved.yaml").write_text("lora: {rank: 16}\n")


stub = sys.argv[2:]
environment = os.environ | ({"PYTHONPATH": stub[0]} if stub else {})
script = [sys.executable, sys.argv[1]]
with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    runs = [folder / "lifts", folder / "mirrors"]
    for run in runs:
        write_run(run)
    out = subprocess.run(script + [str(run) for run in runs] + ["--project", "p", "--out", name], check=True,
                         capture_output=True, text=True, env=environment)
    places = [pathlib.Path(line) for line in out.stdout.split()]
    assert len(set(places)) == 2, places
    for run, place in zip(runs, places):
        assert place.parent == folder / "wandb", place
        named, config, history = (told_to_stub if stub else told_to_wandb)(place)
        assert named == (run.name, "p"), named
        assert config["lora"] == {"rank": 16}, config
        assert [line["_step"] for line in history] == [1, 2, 5], history
        assert history[0]["loss"] == 1 and history[2]["loss"] == 0.2 and "loss" not in history[1], history
        assert history[2]["density_by_partition/spatial"] == 0.25, history
        assert history[2]["density_by_layer/1"] == 0.75, history

    missing = subprocess.run(script + [str(folder / "none")], capture_output=True, text=True, env=environment)
    assert missing.returncode == 2 and "found no" in missing.stderr, missing
