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
from os.path import join


def read(result):
    """Noise level -> losses, one number a clip; and the density, of (weights' folder, setting)."""
    folder, name = result
    with open(join(folder, "eval.json")) as file:
        evaluation = json.load(file)
    setting = next(s for s in evaluation["settings"] if s["name"] == name)
    levels = {sigma: [clip[i] for clip in setting["losses"]] for i, sigma in enumerate(evaluation["sigmas"])}
    return levels, setting["density"]


def mean(values):
    return sum(values) / len(values)


def clip_losses(results):
    """Losses of each clip, averaged over noise levels and results."""
    runs = [read(result)[0] for result in results]
    every = [losses for run in runs for losses in run.values()]
    if len({len(losses) for losses in every}) != 1 or len({tuple(run) for run in runs}) != 1:
        raise SystemExit(f"{results}: expected equal clips and noise levels in all of them")
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


def row(name, results, bases):
    """One line of a table: `results` against `bases`, seed by seed."""
    losses, base = clip_losses(results), clip_losses(bases)
    runs, base_runs = [read(r) for r in results], [read(r) for r in bases]
    low, high = interval(losses, base)
    by_sigma = {sigma: percent([mean(c) for c in zip(*(levels[sigma] for levels, _ in runs))],
                               [mean(c) for c in zip(*(levels[sigma] for levels, _ in base_runs))])
                for sigma in runs[0][0]}
    return {"setting": name, "density": mean([density for _, density in runs]),
            "loss": mean(losses), "percent": percent(losses, base), "low": low, "high": high, "by_sigma": by_sigma,
            "by_seed": [percent(clip_losses([r]), clip_losses([b])) for r, b in zip(results, bases)],
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


def settings_of(folder):
    if not os.path.exists(join(folder, "eval.json")):
        return []
    with open(join(folder, "eval.json")) as file:
        return [setting["name"] for setting in json.load(file)["settings"]]


def training(out, name):
    """Steps and GPU seconds of a training."""
    path = join(out, "train", name, "metrics.jsonl")
    if not os.path.exists(path):
        return 0, 0
    with open(path) as file:
        last = json.loads(file.readlines()[-1])
    return last["step"], last["gpu_s"]


def conversions(out, own_attention):
    """Rows of the conversions that are evaluated, under their own or under full attention."""
    runs = {}
    for name in sorted(os.listdir(join(out, "eval"))):
        setting, _, seed = name.rpartition("-seed")
        attention = setting.split("+")[0] if own_attention else "dense"
        if setting and attention in settings_of(join(out, "eval", name)):
            runs.setdefault(setting, {})[seed] = (join(out, "eval", name), attention)
    dense = {seed: (folder, "dense") for seed, (folder, _) in runs.get("dense", {}).items()}
    rows = []
    for setting, results in runs.items():
        seeds = [seed for seed in results if seed in dense]
        if seeds:
            rows.append(row(setting, [results[s] for s in seeds], [dense[s] for s in seeds]))
            rows[-1]["trained"] = [training(out, f"{setting}-seed{seed}") for seed in seeds]
    return rows


def lengths(rows):
    """What each training took."""
    print("\n| setting | steps | GPU seconds |\n|---|---|---|")
    for r in rows:
        steps, seconds = zip(*r["trained"])
        print(f"| {r['setting']} | {' / '.join(map(str, steps))} | {' / '.join(f'{s:.0f}' for s in seconds)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--json")
    options = parser.parse_args()
    start = join(options.out, "eval", "start")  # absent where models are trained from nothing
    tables = {"Without training": [row(n, [(start, n)], [(start, "dense")]) for n in settings_of(start)],
              "Trained, own attention": conversions(options.out, True),
              "Trained, then full attention": conversions(options.out, False)}
    for title, rows in tables.items():
        table(title, rows)
    lengths(tables["Trained, own attention"])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(tables, file, indent=1)


if __name__ == "__main__":
    main()
