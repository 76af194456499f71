#!/usr/bin/env python3
"""Training speed, memory and losses over ranks: data parallel, sharded, hybrid and sequence parallel beside one rank.

  scripts/measure_ranks.py --config configs/long_video.yaml --ranks 1 2 4 8 --json ranks.json \\
      codec.type=dct text.type=hash "codec.weights=''" "model.weights=''" ... data.path=clips

Every case is a run of vmoba-train of --steps steps under mpirun, in a folder of its own below --dir, that saves nothing
but its end; key=value overrides go to all of them. Work per rank stays the same for data, shard and hybrid (one sample
for each rank and step), so that efficiency is tokens/s over ranks x tokens/s of one rank. Sequence parallel shares one
sample: the same formula, where one rank is as fast as ranks times fewer tokens would allow it.
Columns: setting   full attention, or the density that VMoBA is asked for (--densities; "config": the configuration's own)
         step s    median of the steps after --warmup (and least, most)
         exposed   step s minus the time that one rank needs for the same share of work: what communication and waiting cost
         MFU       model FLOPs (forward and backward, no recomputation) at the measured density over the GPU's peak, as
                   vmoba-train logs it
         GiB       peak memory of the rank that takes most
         loss diff largest relative difference to one rank with the same samples (--losses runs those), over the steps
Only Python's standard library is needed.
"""
import argparse
import concurrent.futures
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import typing

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--modes", nargs="+", default=["data", "shard", "hybrid", "sequence"],
                        choices=["data", "shard", "hybrid", "sequence"])
    parser.add_argument("--backends", nargs="+", default=["vmoba"], choices=["vmoba", "full"])
    parser.add_argument("--densities", type=float, nargs="+", default=[None],
                        help="attention.density of the vmoba cases; without it the configuration decides")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--losses", action="store_true", help="also run one rank with each larger batch, to compare losses")
    parser.add_argument("--side-by-side", type=int, default=1, metavar="GPUS",
                        help="one-rank cases run at the same time on as many GPUs, each alone on its GPU")
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


class Case(typing.NamedTuple):
    """A run: attention ("full", "config" or a density), division, ranks, sizes of `parallel`, samples per step."""
    setting: str
    mode: str
    ranks: int
    sizes: tuple
    batch: int

    def name(self):
        return f"{self.setting}-{self.mode}-{self.ranks}-{self.batch}"

    def attention(self):
        density = [] if self.setting in ("full", "config") else [f"attention.density={self.setting}"]
        return [f"attention.backend={'full' if self.setting == 'full' else 'vmoba'}"] + density


def settings(options):
    sparse = ["config" if d is None else f"{d:g}" for d in options.densities]
    return [s for b in options.backends for s in (["full"] if b == "full" else sparse)]


def cases(options):
    """All runs; those of one rank first."""
    several = sorted(set(options.ranks) - {1})
    batches = {1} | ({n for n in several if options.modes != ["sequence"]} if options.losses else set())
    out = [Case(s, "one", 1, (), b) for s in settings(options) for b in sorted(batches)]
    for setting in settings(options):
        for ranks in several:
            for mode in options.modes:
                if mode == "data":
                    out.append(Case(setting, mode, ranks, (), ranks))
                elif mode == "shard":
                    out.append(Case(setting, mode, ranks, (("shard", ranks),), ranks))
                elif mode == "hybrid" and ranks >= 4 and ranks % 2 == 0:
                    out.append(Case(setting, mode, ranks, (("shard", ranks // 2),), ranks))
                elif mode == "sequence":
                    out.append(Case(setting, mode, ranks, (("sequence", ranks),), 1))
    return out if 1 in options.ranks else [c for c in out if c.ranks > 1]


def launch(options, case, gpu=None):
    """The lines of metrics.jsonl of a run, or None where it failed."""
    folder = os.path.join(options.dir, case.name())
    shutil.rmtree(folder, ignore_errors=True)
    command = options.mpirun.split() + ["-n", str(case.ranks)] if case.ranks > 1 else []
    command += [options.bin, "--config", options.config] + options.overrides
    command += [f"run.dir={folder}", f"train.steps={options.steps}", f"train.global_batch={case.batch}",
                "train.micro_batch=1", "train.checkpoint_every=0", "train.validate_every=0", "train.tensorboard=false"]
    command += case.attention() + [f"parallel.{k}={v}" for k, v in case.sizes]
    log_path = folder + ".log"
    os.makedirs(options.dir, exist_ok=True)
    environment = dict(os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}))
    with open(log_path, "w") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment,
                                    timeout=options.timeout_s).returncode
        except subprocess.TimeoutExpired:
            status = "timeout"
    metrics = os.path.join(folder, "metrics.jsonl")
    lines = [json.loads(line) for line in open(metrics)] if os.path.exists(metrics) else []
    steps = [line for line in lines if "step_s" in line]
    # Weights and optimiser of the end are of no use here and fill the disk.
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith("checkpoint-"):
            shutil.rmtree(os.path.join(folder, name))
    if status != 0 or len(steps) <= options.warmup:
        lines = open(log_path).read().splitlines()
        errors = [line for line in lines if " error " in line][:2] or lines[-6:]
        print(f"{case.name()}: failed ({status}), see {log_path}:", *errors, sep="\n    ")
        return None
    median = statistics.median(s["step_s"] for s in steps[options.warmup:])
    print(f"{case.setting} {case.mode} {case.ranks} ranks, batch {case.batch}: {median:.3f} s per step", flush=True)
    return steps


def launch_all(options):
    """{case: steps} of the runs that ended well. One-rank runs are spread over --side-by-side GPUs."""
    todo = cases(options)
    singles = [c for c in todo if c.ranks == 1]
    free = queue.Queue()
    for gpu in range(options.side_by_side):
        free.put(gpu if options.side_by_side > 1 else None)

    def alone(case):
        gpu = free.get()
        steps = launch(options, case, gpu)
        free.put(gpu)
        return steps

    with concurrent.futures.ThreadPoolExecutor(options.side_by_side) as pool:
        results = dict(zip(singles, pool.map(alone, singles)))
    results.update({case: launch(options, case) for case in todo if case.ranks > 1})
    return results


def relative_difference(losses, reference):
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference))


def summarise(options, results):
    rows = []
    for case, steps in results.items():
        timed = steps[options.warmup:]
        seconds = [s["step_s"] for s in timed]
        step_s = statistics.median(seconds)
        row = {"setting": case.setting, "mode": case.mode, "ranks": case.ranks, "samples": case.batch,
               "parallel": dict(case.sizes), "step_s": step_s, "step_s_min": min(seconds), "step_s_max": max(seconds),
               "tokens_per_s": statistics.median(s["tokens_per_s"] for s in timed),
               "density": statistics.median(s["density"] for s in timed),
               "mfu": statistics.median(s.get("mfu", 0) for s in timed),
               "memory_bytes": max(s["memory_bytes"] for s in steps),
               "data_wait_s": statistics.median(s["data_wait_s"] for s in timed), "losses": [s["loss"] for s in steps]}
        one = results.get(Case(case.setting, "one", 1, (), 1))
        if one and case.mode != "one":
            single = statistics.median(s["step_s"] for s in one[options.warmup:])
            row["exposed_s"] = step_s - single * case.batch / case.ranks
            row["efficiency"] = single * case.batch / case.ranks / step_s
        same = results.get(Case(case.setting, "one", 1, (), case.batch))
        if same and case.mode != "one":
            row["loss_difference"] = relative_difference(row["losses"], [s["loss"] for s in same])
        rows.append(row)
    return rows


def table(rows):
    print(f"{'setting':8} {'mode':9} {'ranks':>5} {'batch':>5} {'step s':>8} {'least':>8} {'most':>8} {'exposed':>8} {'effic.':>7} "
          f"{'tokens/s':>9} {'MFU':>6} {'GiB':>7} {'density':>7} {'data s':>7} {'loss diff':>9}")
    for r in rows:
        exposed = f"{r['exposed_s']:8.3f} {r['efficiency']:7.1%}" if "exposed_s" in r else f"{'-':>8} {'-':>7}"
        loss = f"{r['loss_difference']:9.1e}" if "loss_difference" in r else f"{'-':>9}"
        print(f"{r['setting']:8} {r['mode']:9} {r['ranks']:5d} {r['samples']:5d} {r['step_s']:8.3f} {r['step_s_min']:8.3f} "
              f"{r['step_s_max']:8.3f} {exposed} {r['tokens_per_s']:9.0f} {r['mfu']:6.1%} "
              f"{r['memory_bytes'] / 2**30:7.2f} {r['density']:7.3f} {r['data_wait_s']:7.3f} {loss}")


def main():
    options = arguments()
    results = launch_all(options)
    rows = summarise(options, {case: steps for case, steps in results.items() if steps is not None})
    table(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"config": options.config, "overrides": options.overrides, "cases": rows}, file, indent=1)
    sys.exit(1 if None in results.values() else 0)


if __name__ == "__main__":
    main()
