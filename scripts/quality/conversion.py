#!/usr/bin/env python3
"""Trains a model under several attentions and measures held-out loss before and after (docs/quality.md).

  scripts/quality/conversion.py --weights runs/quality/dense/checkpoint-1500/transformer_ema \\
      --train data/doom/train --val data/doom/val --out runs/quality/conversion

Encodes both folders once, evaluates the weights under every setting without training, trains `--steps` more steps
under each setting of `--convert` for each seed, and evaluates the averaged weights of each run under its own and under
full attention. Several processes may share a GPU, because one of them cannot fill it. What is done is not done again:
call it with the same arguments to go on. Further key=value go to every program.

`--weights none` trains from nothing. `--gpu-seconds T` gives every training as many steps as fit T seconds alone on a
GPU, by the median of a short run under the same attention, in place of `--steps` for all: use one training slot then.

Held-out loss comes from vmoba-eval: the same clips with the same noise under every setting and for all weights. Only
Python's standard library is needed.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from os.path import join

from settings import SETTINGS, conversion_name, split_name

HERE = os.path.dirname(os.path.abspath(__file__))
PROBE_STEPS = 40  # of these, the second half is timed
CONVERT = ["dense", "cubes_72_topk_20", "paper_20", "cubes_72_topk_05", "cubes_144_topk_20", "cubes_144_topk_05",
           "cubes_72_overall_20", "cubes_72_own", "cubes_72_head_20"]


class Job:
    """A program to run once all of `needs` are done; `done` tells whether its result is there already.

    `command` is a function, because the length of a training may depend on a job before it.
    """

    def __init__(self, name, kind, command, log, done, needs=(), after=None):
        self.name, self.kind, self.command, self.log, self.done = name, kind, command, log, done
        self.needs, self.after = needs, after
        self.process, self.state, self.started, self.gpu = None, "waiting", 0.0, None


def evaluated(path):
    """Names of the settings that a result holds."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [setting["name"] for setting in json.load(file)["settings"]]


def step_seconds(metrics):
    """Median seconds of a step over the second half of a run's metrics."""
    with open(metrics) as file:
        lines = [json.loads(line) for line in file]
    steps = [(b["gpu_s"] - a["gpu_s"]) / (b["step"] - a["step"]) for a, b in zip(lines, lines[1:])]
    return statistics.median(steps[len(steps) // 2:])


class Experiment:
    def __init__(self, options):
        self.o = options
        self.jobs = []

    def program(self, name):
        return [join(self.o.bin, name), "--config", join(HERE, "model.yaml")]

    def windows(self, split):
        """Clips inside a folder's videos: those at even distances can be encoded once, random ones cannot."""
        o = self.o
        count, flip, videos = (o.windows, 0.5, o.train) if split == "train" else (1, 0, o.val)
        return [f"data.path={videos}", "data.frame_extraction=uniform", f"data.clips_per_video={count}",
                f"data.horizontal_flip={flip}", f"cache.dir={join(o.out, 'cache', split)}"]

    def add(self, *args, **more):
        self.jobs.append(Job(*args, **more))

    def add_encoding(self, split, ranks):
        o, names = self.o, []
        dropout = [] if split == "train" else ["train.flow.caption_dropout=0"]
        for rank in range(ranks):
            name = f"encode-{split}-{rank}"
            mark = join(o.out, "cache", name + ".done")
            command = self.program("vmoba-encode") + ["--rank", str(rank), "--ranks", str(ranks)] + self.windows(split)
            command += o.keys + dropout + ["run.device=cpu", "run.threads=1", "data.decode_threads=1"]
            self.add(name, "encode", lambda command=command: command, join(o.out, "cache", name + ".log"),
                     lambda mark=mark: os.path.exists(mark), after=lambda mark=mark: open(mark, "w").close())
            names.append(name)
        return names

    def add_evaluation(self, weights_name, weights, settings, needs):
        """One load of the weights for all settings: every clip and noise level once under each.

        `weights` is a function that names their folder.
        """
        o, folder = self.o, join(self.o.out, "eval", weights_name)
        result = join(folder, "eval.json")
        command = self.program("vmoba-eval") + ["--data", o.val, "--clips", str(o.clips), "--json", result]
        command += ["--sigmas", ",".join(str(sigma) for sigma in o.sigmas)]
        for setting in settings:
            command += ["--set", f"{setting}: " + " ".join(SETTINGS[setting])]
        command += self.windows("val") + o.keys + ["run.threads=2", "data.decode_threads=1"]
        self.add(f"eval-{weights_name}", "eval", lambda: command + [f"model.weights={weights()}"],
                 join(folder, "eval.log"), lambda: evaluated(result) == list(settings), needs)

    def training(self, conversion, folder, seed):
        """The command of a training, without its steps."""
        o = self.o
        setting, recipe = split_name(conversion)
        command = self.program("vmoba-train") + ["--resume", "latest"] + self.windows("train") + o.keys
        command += SETTINGS[setting] + recipe + [
            f"seed={seed}", f"run.dir={folder}", "run.threads=2", "cache.mode=require", "data.decode_threads=2",
            "data.prefetch_clips=32", "train.checkpoint_every=0", "train.optimizer.warmup_steps=50"]
        return command + ([f"model.weights={o.weights}"] if o.weights != "none" else []) + o.train_keys

    def add_probe(self, conversion, needs):
        """A short run that measures the step of a conversion; returns its name and the steps that fit the time."""
        folder = join(self.o.out, "probe", conversion)
        metrics = join(folder, "metrics.jsonl")
        command = self.training(conversion, folder, 1) + [f"train.steps={PROBE_STEPS}"]
        name = "probe-" + conversion
        if name not in {job.name for job in self.jobs}:
            self.add(name, "train", lambda: command, folder + ".log", lambda: os.path.exists(folder + ".done"), needs,
                     after=lambda: open(folder + ".done", "w").close())
        return name, lambda: int(self.o.gpu_seconds / step_seconds(metrics))

    def add_training(self, conversion, seed, needs):
        o, name, steps = self.o, f"{conversion}-seed{seed}", lambda: self.o.steps
        if o.gpu_seconds:
            probe, steps = self.add_probe(conversion, needs)
            needs = needs + [probe]
        folder = join(o.out, "train", name)
        command = self.training(conversion, folder, seed)
        weights = lambda: join(folder, f"checkpoint-{steps()}", "transformer_ema")
        self.add("train-" + name, "train", lambda: command + [f"train.steps={steps()}"], folder + ".log",
                 lambda: (not o.gpu_seconds or os.path.exists(join(o.out, "probe", conversion + ".done")))
                 and os.path.isdir(weights()), needs)
        setting = split_name(conversion)[0]
        self.add_evaluation(name, weights, list(dict.fromkeys(["dense", setting])), ["train-" + name])

    def plan(self):
        o = self.o
        val = self.add_encoding("val", o.encoders)
        train = self.add_encoding("train", o.encoders)
        for seed in o.seeds:
            for conversion in o.convert:
                self.add_training(conversion, seed, train + val)
        if o.weights != "none":
            self.add_evaluation("start", lambda: o.weights, list(dict.fromkeys(["dense", *o.evaluate])), val)

    def place(self, kind, running):
        """The GPU on which a further job of this kind may start, or none. Encoding takes none and is not bound to one.

        A GPU without any job goes first; where `--gpus` is not given, the processes see what their environment says.
        """
        o = self.o
        if kind == "encode":
            return [""] if sum(job.kind == kind for job in running) < o.encoders else []
        slots = {"train": o.train_slots, "eval": o.eval_slots}[kind]
        used = {gpu: [job.kind for job in running if job.gpu == gpu] for gpu in o.gpus}
        free = [gpu for gpu in o.gpus if used[gpu].count(kind) < slots and not (o.gpu_seconds and used[gpu])]
        return sorted(free, key=lambda gpu: len(used[gpu]))

    def launch(self, job, gpu):
        os.makedirs(os.path.dirname(job.log), exist_ok=True)
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=gpu) if gpu else None
        with open(job.log, "a") as log:
            job.process = subprocess.Popen(job.command(), stdout=log, stderr=log, env=environment)
        job.state, job.started, job.gpu = "running", time.time(), gpu

    def collect(self, job, begun):
        code = job.process.wait()
        if code == 0 and job.after:
            job.after()
        job.state = "done" if code == 0 and job.done() else "failed"
        print(f"{time.time() - begun:6.0f} s  {job.name}: {job.state} in {time.time() - job.started:.0f} s"
              + (f", exit code {code}, see {job.log}" if code else ""), flush=True)

    def run(self):
        """Starts jobs in the order of the plan as slots of their kind become free; ends trainings when time is up."""
        o, begun = self.o, time.time()
        for job in self.jobs:
            job.state = "done" if job.done() else "waiting"
        done = {job.name for job in self.jobs if job.state == "done"}
        while True:
            elapsed = time.time() - begun
            for job in self.jobs:
                if job.state == "running" and job.process.poll() is not None:
                    self.collect(job, begun)
                    done |= {job.name} if job.state == "done" else set()
            running = [job for job in self.jobs if job.state == "running"]
            for job in running:
                if job.kind == "train" and elapsed > o.seconds - o.reserve and not job.process.returncode:
                    job.process.send_signal(signal.SIGTERM)  # saves and leaves; goes on when called again
                    job.state = "stopping"
            for job in self.jobs:
                late = elapsed > o.seconds - (o.reserve + o.train_seconds if job.kind == "train" else 10)
                if job.state != "waiting" or late or not done.issuperset(job.needs):
                    continue
                for gpu in self.place(job.kind, running)[:1]:
                    self.launch(job, gpu)
                    running.append(job)
            if not any(job.state == "running" for job in self.jobs):
                break
            time.sleep(0.2)
        for job in self.jobs:
            if job.state == "stopping":
                job.process.wait()
        missing = [job.name for job in self.jobs if job.state != "done"]
        print(f"{len(self.jobs) - len(missing)} of {len(self.jobs)} jobs done in {time.time() - begun:.0f} s"
              + ("; missing: " + " ".join(missing) if missing else ""), flush=True)
        return 1 if missing else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="key=value for every program")
    parser.add_argument("--bin", default="build/bin", help="folder of the programs")
    parser.add_argument("--weights", required=True, help="the dense model, a transformer folder, or none")
    parser.add_argument("--train", default="data/doom/train")
    parser.add_argument("--val", default="data/doom/val")
    parser.add_argument("--out", default="runs/quality/conversion")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each conversion")
    parser.add_argument("--gpu-seconds", type=float, default=0, help="in place of --steps: seconds of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--convert", nargs="*", default=CONVERT, type=conversion_name, metavar="SETTING[+RECIPE]")
    parser.add_argument("--train-keys", nargs="*", default=[], metavar="KEY=VALUE", help="for trainings alone")
    parser.add_argument("--evaluate", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING",
                        help="settings under which the weights are evaluated without training")
    parser.add_argument("--clips", type=int, default=48, help="held-out clips")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.35, 0.55, 0.75], help="held-out noise levels")
    parser.add_argument("--windows", type=int, default=4, help="clips at even distances in each training video")
    parser.add_argument("--encoders", type=int, default=2, help="encoding processes, on the CPU")
    parser.add_argument("--gpus", nargs="+", default=[""], metavar="N", help="devices to use (the first one)")
    parser.add_argument("--train-slots", type=int, default=1, help="trainings at a time on a GPU")
    parser.add_argument("--eval-slots", type=int, default=1, help="evaluations at a time on a GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="time after which nothing more is started")
    parser.add_argument("--reserve", type=float, default=30, help="of these, seconds kept for the last evaluations")
    parser.add_argument("--train-seconds", type=float, default=0, help="what a training needs at least")
    experiment = Experiment(parser.parse_args())
    experiment.plan()
    return experiment.run()


if __name__ == "__main__":
    sys.exit(main())
