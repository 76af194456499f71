#!/usr/bin/env python3
"""Tables of a folder that conversion.py filled: held-out loss of every setting against full attention.

  scripts/quality/report.py runs/quality/conversion [--json FILE]

Differences are paired: the same clip with the same noise under both attentions; of conversions also the same data
order, seed by seed. The interval is the 95 % percentile interval of 4,000 bootstrap draws over clips, seeds averaged.
It says how certain the difference is on other clips, not on other seeds: those stand beside it where there are several.
Only Python's standard library is needed.
"""
import argparse
import json
import os
import random
import re
from os.path import join


def read(folder):
    """Noise level -> (losses, densities), one number a clip."""
    out = {}
    for name in sorted(os.listdir(folder)):
        level = re.fullmatch(r"sigma-(\d\.\d+)", name)
        if not level or not os.path.exists(join(folder, name, "metrics.jsonl")):
            continue
        with open(join(folder, name, "metrics.jsonl")) as file:
            records = [json.loads(line) for line in file]
        out[float(level[1])] = ([r["loss"] for r in records], [r["density"] for r in records])
    return out


def mean(values):
    return sum(values) / len(values)


def clip_losses(folders):
    """Losses of each clip, averaged over noise levels and folders; and the number of noise levels."""
    runs = [read(folder) for folder in folders]
    every = [losses for run in runs for losses, _ in run.values()]
    if len({len(losses) for losses in every}) != 1 or len({tuple(run) for run in runs}) != 1:
        raise SystemExit(f"{', '.join(folders)}: expected equal clips and noise levels in all of them")
    return [mean(clip) for clip in zip(*every)]


def percent(losses, base):
    return 100 * (mean(losses) / mean(base) - 1)


def interval(losses, base, draws=4000):
    rng, found, count = random.Random(0), [], len(base)
    for _ in range(draws):
        picked = [rng.randrange(count) for _ in range(count)]
        found.append(percent([losses[i] for i in picked], [base[i] for i in picked]))
    found.sort()
    return found[int(0.025 * draws)], found[int(0.975 * draws)]


def row(name, folders, bases):
    """One line of a table: `folders` against `bases`, seed by seed."""
    losses, base = clip_losses(folders), clip_losses(bases)
    runs, base_runs = [read(f) for f in folders], [read(f) for f in bases]
    low, high = interval(losses, base)
    by_sigma = {sigma: percent([mean(c) for c in zip(*(r[sigma][0] for r in runs))],
                               [mean(c) for c in zip(*(r[sigma][0] for r in base_runs))]) for sigma in runs[0]}
    return {"setting": name, "density": mean([d for run in runs for _, ds in run.values() for d in ds]),
            "loss": mean(losses), "percent": percent(losses, base), "low": low, "high": high, "by_sigma": by_sigma,
            "by_seed": [percent(clip_losses([f]), clip_losses([b])) for f, b in zip(folders, bases)],
            "clips": len(losses)}


def table(title, rows):
    if not rows:
        return
    sigmas = list(rows[0]["by_sigma"])
    print(f"\n{title}, {rows[0]['clips']} clips\n")
    levels = "".join(f" noise {s} |" for s in sigmas)
    print(f"| setting | density | loss | change | 95 % interval |{levels} seeds |")
    print("|---" * (6 + len(sigmas)) + "|")
    for r in rows:
        seeds = " / ".join(f"{p:+.2f}" for p in r["by_seed"])
        print(f"| {r['setting']} | {r['density']:.3f} | {r['loss']:.4f} | {r['percent']:+.2f} % |"
              f" [{r['low']:+.2f}, {r['high']:+.2f}] |" + "".join(f" {r['by_sigma'][s]:+.2f} |" for s in sigmas)
              + f" {seeds} |")


def shape(folder):
    """Clips at each noise level."""
    return {sigma: len(losses) for sigma, (losses, _) in read(folder).items()} if os.path.isdir(folder) else {}


def conversions(out, own_attention, wanted):
    """Rows of the conversions that are evaluated whole, under their own or under full attention."""
    runs = {}
    for name in sorted(os.listdir(join(out, "eval"))):
        setting, _, seed = name.rpartition("-seed")
        folder = join(out, "eval", name, setting if own_attention else "dense")
        if setting and shape(folder) == wanted:
            runs.setdefault(setting, {})[seed] = folder
    dense = {seed: join(out, "eval", f"dense-seed{seed}", "dense") for seed in runs.get("dense", {})}
    rows = []
    for setting, folders in runs.items():
        seeds = [seed for seed in folders if seed in dense]
        if seeds:
            rows.append(row(setting, [folders[s] for s in seeds], [dense[s] for s in seeds]))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--json")
    options = parser.parse_args()
    start = join(options.out, "eval", "start")
    wanted = shape(join(start, "dense"))
    names = [name for name in sorted(os.listdir(start)) if shape(join(start, name)) == wanted]
    tables = {"Without training": [row(n, [join(start, n)], [join(start, "dense")]) for n in names],
              "Converted, own attention": conversions(options.out, True, wanted),
              "Converted, then full attention": conversions(options.out, False, wanted)}
    for title, rows in tables.items():
        table(title, rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(tables, file, indent=1)


if __name__ == "__main__":
    main()
