#!/usr/bin/env python3
"""Training speed, memory and losses over ranks: data parallel, sharded, hybrid and sequence parallel beside one rank.

  scripts/measure_ranks.py --config configs/long_video.yaml --ranks 1 2 4 8 --json ranks.json \\
      codec.type=dct text.type=hash "codec.weights=''" "model.weights=''" ... data.path=clips

Every case is a run of vmoba-train of --steps steps under mpirun, in a folder of its own below --dir, that saves nothing
but its end; key=value overrides go to all of them. Work per rank stays the same for data, shard and hybrid (one sample
for each rank and step), so that efficiency is tokens/s over ranks x tokens/s of one rank. Sequence parallel shares one
sample: the same formula, where one rank is as fast as ranks times fewer tokens would allow it.
Columns: step s    median of the steps after --warmup (and least, most)
         exposed   step s minus the time that one rank needs for the same share of work: what communication and waiting cost
         TFLOP/s   of a rank: model FLOPs (forward and backward, no recomputation) at the measured density; for runs that
                   train all weights: a LoRA run recomputes another share
         MFU       of --peak-tflops
         GiB       peak memory of the rank that takes most
         loss diff largest relative difference to one rank with the same samples (--losses runs those), over the steps
Only Python's standard library is needed.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNITS = {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--modes", nargs="+", default=["data", "shard", "hybrid", "sequence"],
                        choices=["data", "shard", "hybrid", "sequence"])
    parser.add_argument("--backends", nargs="+", default=["vmoba"], choices=["vmoba", "full"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--losses", action="store_true", help="also run one rank with each larger batch, to compare losses")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 of one GPU (989: H100 and H200)")
    parser.add_argument("--bin", default=os.path.join(REPOSITORY, "build/bin/vmoba-train"))
    parser.add_argument("--mpirun", default="mpirun", help="launcher and its options; -n N is added")
    parser.add_argument("--dir", default="runs/measure_ranks")
    parser.add_argument("--timeout-s", type=float, default=900)
    parser.add_argument("--json", help="file for the results")
    # Overrides may stand anywhere; argparse would take them for values of nargs="+" options.
    overrides = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
    options = parser.parse_args([a for a in sys.argv[1:] if a not in overrides])
    options.overrides = overrides
    return options


def cases(options):
    """(backend, mode, ranks, sizes of `parallel`, samples per step); one rank first."""
    out = []
    for backend in options.backends:
        batches = sorted({1} | ({n for n in options.ranks if options.modes != ["sequence"]} if options.losses else set()))
        out += [(backend, "one", 1, {}, batch) for batch in batches]
        for ranks in sorted(set(options.ranks) - {1}):
            for mode in options.modes:
                if mode == "data":
                    out.append((backend, mode, ranks, {}, ranks))
                elif mode == "shard":
                    out.append((backend, mode, ranks, {"shard": ranks}, ranks))
                elif mode == "hybrid" and ranks >= 4 and ranks % 2 == 0:
                    out.append((backend, mode, ranks, {"shard": ranks // 2}, ranks))
                elif mode == "sequence":
                    out.append((backend, mode, ranks, {"sequence": ranks}, 1))
    return out


def launch(options, case):
    backend, mode, ranks, sizes, batch = case
    folder = os.path.join(options.dir, f"{backend}-{mode}-{ranks}-{batch}")
    shutil.rmtree(folder, ignore_errors=True)
    command = options.mpirun.split() + ["-n", str(ranks)] if ranks > 1 else []
    command += [options.bin, "--config", options.config] + options.overrides
    command += [f"run.dir={folder}", f"train.steps={options.steps}", f"train.global_batch={batch}", "train.micro_batch=1",
                "train.checkpoint_every=0", "train.validate_every=0", "train.tensorboard=false",
                f"attention.backend={backend}"] + [f"parallel.{k}={v}" for k, v in sizes.items()]
    log_path = folder + ".log"
    os.makedirs(options.dir, exist_ok=True)
    with open(log_path, "w") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=options.timeout_s).returncode
        except subprocess.TimeoutExpired:
            status = "timeout"
    metrics = os.path.join(folder, "metrics.jsonl")
    steps = [json.loads(line) for line in open(metrics)] if os.path.exists(metrics) else []
    # Weights and optimiser of the end are of no use here and fill the disk.
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith("checkpoint-"):
            shutil.rmtree(os.path.join(folder, name))
    if status != 0 or len(steps) <= options.warmup:
        tail = open(log_path).read().splitlines()[-6:]
        print(f"{backend} {mode} {ranks}: failed ({status}), {log_path} ends in", *tail, sep="\n    ")
        return None
    return steps


def flops_per_sample(options):
    """A function of backend and density: model FLOPs of one sample, forward and backward without recomputation."""
    command = [options.bin, "--config", options.config, "--dry-run", *options.overrides, "train.global_batch=1", "train.micro_batch=1",
               "attention.backend=vmoba"]
    text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    def number(pattern):
        match = re.search(pattern, text)
        if not match:
            sys.exit(f"expected a --dry-run that prints FLOPs per step, found:\n{text}")
        return match

    full = number(r"per step, full\s+([0-9.]+) (\wFLOP)")
    sparse = number(r"per step, vmoba\s+([0-9.]+) (\wFLOP) \(density ([0-9.]+)")
    dense = float(full[1]) * UNITS[full[2]]
    per_density = (dense - float(sparse[1]) * UNITS[sparse[2]]) / (1 - float(sparse[3]))
    written = re.search(r"^  recompute: *(\w+)", open(options.config).read(), re.M)
    recompute = dict(o.split("=", 1) for o in options.overrides).get("model.recompute", written[1] if written else "auto")
    recomputes = recompute != "none"
    share = 0.75 if recomputes else 1.0  # of 4 passes, one is recomputation
    return lambda density: share * (dense - per_density * (1 - density))


def relative_difference(losses, reference):
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference))


def summarise(options, results, flops):
    rows = []
    for case, steps in results.items():
        backend, mode, ranks, sizes, batch = case
        timed = steps[options.warmup:]
        seconds = [s["step_s"] for s in timed]
        step_s = statistics.median(seconds)
        density = statistics.median(s["density"] for s in timed)
        tflops = flops(density) * batch / ranks / step_s / 1e12
        row = {"backend": backend, "mode": mode, "ranks": ranks, "samples": batch, "parallel": dict(sizes),
               "step_s": step_s, "step_s_min": min(seconds), "step_s_max": max(seconds),
               "tokens_per_s": statistics.median(s["tokens_per_s"] for s in timed), "density": density,
               "tflops_per_rank": tflops, "mfu": tflops / options.peak_tflops,
               "memory_bytes": max(s["memory_bytes"] for s in steps),
               "data_wait_s": statistics.median(s["data_wait_s"] for s in timed), "losses": [s["loss"] for s in steps]}
        one = results.get((backend, "one", 1, (), 1))
        if one and mode != "one":
            single = statistics.median(s["step_s"] for s in one[options.warmup:])
            row["exposed_s"] = step_s - single * batch / ranks
            row["efficiency"] = single * batch / ranks / step_s
        same = results.get((backend, "one", 1, (), batch))
        if same and mode != "one":
            row["loss_difference"] = relative_difference(row["losses"], [s["loss"] for s in same])
        rows.append(row)
    return rows


def table(rows):
    print(f"{'backend':8} {'mode':9} {'ranks':>5} {'batch':>5} {'step s':>8} {'least':>8} {'most':>8} {'exposed':>8} {'effic.':>7} "
          f"{'tokens/s':>9} {'TFLOP/s':>8} {'MFU':>6} {'GiB':>7} {'density':>7} {'data s':>7} {'loss diff':>9}")
    for r in rows:
        exposed = f"{r['exposed_s']:8.3f} {r['efficiency']:7.1%}" if "exposed_s" in r else f"{'-':>8} {'-':>7}"
        loss = f"{r['loss_difference']:9.1e}" if "loss_difference" in r else f"{'-':>9}"
        print(f"{r['backend']:8} {r['mode']:9} {r['ranks']:5d} {r['samples']:5d} {r['step_s']:8.3f} {r['step_s_min']:8.3f} "
              f"{r['step_s_max']:8.3f} {exposed} {r['tokens_per_s']:9.0f} {r['tflops_per_rank']:8.1f} {r['mfu']:6.1%} "
              f"{r['memory_bytes'] / 2**30:7.2f} {r['density']:7.3f} {r['data_wait_s']:7.3f} {loss}")


def main():
    options = arguments()
    flops = flops_per_sample(options)
    results, failed = {}, 0
    for backend, mode, ranks, sizes, batch in cases(options):
        steps = launch(options, (backend, mode, ranks, sizes, batch))
        failed += steps is None
        if steps is None:
            continue
        results[(backend, mode, ranks, tuple(sizes.items()), batch)] = steps
        median = statistics.median(s["step_s"] for s in steps[options.warmup:])
        print(f"{backend} {mode} {ranks} ranks, batch {batch}: {median:.3f} s per step", flush=True)
    rows = summarise(options, results, flops)
    table(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"config": options.config, "overrides": options.overrides, "cases": rows}, file, indent=1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
