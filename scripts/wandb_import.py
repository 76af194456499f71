"""Writes runs as offline runs of Weights & Biases, to be sent with `wandb sync`. Needs the package wandb; no network.

    wandb_import.py [--project NAME] [--out FOLDER] RUN [RUN ...]

RUN is a run's folder: metrics.jsonl becomes the history (each line at its step, with inner groups as "group/key"),
config.resolved.yaml the configuration, the folder's name the run's name. Prints the folder that holds each offline run.
"""
import argparse
import json
import pathlib

import wandb
import yaml


def flat(record, prefix=""):
    """Numbers of a metrics line by name; lists count from 0. What is null, as NaN is, is left out."""
    items = enumerate(record) if isinstance(record, list) else record.items()
    out = {}
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, (dict, list)):
            out.update(flat(value, name + "/"))
        elif isinstance(value, (int, float)):
            out[name] = value
    return out


def lines_of(path):
    """The records of metrics.jsonl; a torn last line, of a run under way, is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def import_run(folder, project, out):
    configuration = folder / "config.resolved.yaml"
    config = yaml.safe_load(configuration.read_text(encoding="utf-8")) if configuration.exists() else {}
    run = wandb.init(project=project, name=folder.name, config=config, dir=out, mode="offline", reinit="finish_previous",
                     settings=wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True,
                                             console="off", save_code=False))
    for record in lines_of(folder / "metrics.jsonl"):
        run.log(flat({key: value for key, value in record.items() if key != "step"}), step=record["step"])
    place = pathlib.Path(run.dir).parent
    run.finish()
    return place


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--project", default="vmoba")
    parser.add_argument("--out", default=".", help="folder of wandb/ (the present one)")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        if not (folder / "metrics.jsonl").exists():
            parser.error(f"expected the folder of a run, found no {folder / 'metrics.jsonl'}")
    for folder in arguments.runs:
        print(import_run(folder.resolve(), arguments.project, arguments.out))


if __name__ == "__main__":
    main()
