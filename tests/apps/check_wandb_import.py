"""What scripts/wandb_import.py writes, by wandb's own messages. Usage: check_wandb_import.py SCRIPT"""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

from wandb.proto import wandb_internal_pb2


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


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    run = folder / "lifts"
    run.mkdir()
    lines = [{"step": step, "loss": 1 / step, "lr": 1e-4, "density_by_partition": {"spatial": 0.25},
              "density_by_layer": [0.5, 0.75]} for step in (1, 2, 5)]
    lines[1]["loss"] = None  # as NaN is written
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
    (run / "config.resolved.yaml").write_text("lora: {rank: 16}\n")
    script = [sys.executable, sys.argv[1]]
    out = subprocess.run(script + [str(run), "--project", "p", "--out", name], check=True, capture_output=True, text=True)
    place = pathlib.Path(out.stdout.strip())
    assert place.parent == folder / "wandb", place

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
    assert names[0] == ("lifts", "p"), names
    assert config["lora"] == {"rank": 16}, config
    assert [line["_step"] for line in history] == [1, 2, 5], history
    assert history[0]["loss"] == 1 and history[2]["loss"] == 0.2 and "loss" not in history[1], history
    assert history[2]["density_by_partition/spatial"] == 0.25, history
    assert history[2]["density_by_layer/1"] == 0.75, history

    missing = subprocess.run(script + [str(folder / "none")], capture_output=True, text=True)
    assert missing.returncode == 2 and "found no" in missing.stderr, missing
