#!/usr/bin/env python3
"""Where a step's GPU time went, from the trace that `run.profile_step=N` makes vmoba-train write.

  scripts/summarize_profile.py RUN/profile-8-rank0.json [--top 30] [--cpu]

Prints the time from the first to the last GPU activity, how much of it the GPU computed, communicated beside that,
communicated alone (exposed) or did nothing, and the kernels that took most. --cpu: the operations of the host in place
of kernels, for a run on a CPU. Only Python's standard library is needed.
"""
import argparse
import collections
import json
import re


def short(name):
    """A kernel's name without return type, namespaces and arguments; what an elementwise kernel computes stays."""
    elementwise = re.search(r"(\w+_kernel_cuda|\w+Functor\w*|\w+_kernel_impl|direct_copy\w+|MulFunctor|AddOps)", name)
    plain = re.sub(r"^void |at::native::|\(anonymous namespace\)::|<unnamed>::|\(.*", "", name)
    plain = re.split(r"[<]", plain)[0].strip()
    if elementwise and ("elementwise" in plain or "reduce" in plain or "multi_tensor" in plain):
        return f"{plain}: {elementwise.group(1)}"
    return plain or name[:60]


def union(spans):
    out = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([begin, end])
    return out


def length(spans):
    return sum(end - begin for begin, end in spans)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    with open(options.trace) as file:
        events = [e for e in json.load(file)["traceEvents"] if e.get("ph") == "X"]
    kinds = ("cpu_op",) if options.cpu else ("kernel", "gpu_memcpy", "gpu_memset")
    events = [e for e in events if e.get("cat") in kinds]
    if not events:
        raise SystemExit(f"{options.trace}: expected events of kind {', '.join(kinds)}, found none"
                         + ("" if options.cpu else "; a run on a CPU has --cpu"))
    span_us = max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)
    if not options.cpu:
        spans = {True: [], False: []}
        for e in events:
            spans[e["name"].startswith("ncclDevKernel")].append((e["ts"], e["ts"] + e["dur"]))
        compute, communication = union(spans[False]), union(spans[True])
        busy = length(union(compute + communication))
        print(f"{span_us / 1e3:.1f} ms from the first to the last activity: {length(compute) / 1e3:.1f} computing, "
              f"{length(communication) / 1e3:.1f} communicating, of which {(busy - length(compute)) / 1e3:.1f} exposed; "
              f"{(span_us - busy) / 1e3:.1f} idle")
    total, count = collections.Counter(), collections.Counter()
    for e in events:
        name = e["name"] if options.cpu else short(e["name"])
        total[name] += e["dur"]
        count[name] += 1
    print(f"{'ms':>9} {'share':>6} {'calls':>6}  name" + ("  (operations inside operations count twice)" if options.cpu else ""))
    for name, us in total.most_common(options.top):
        print(f"{us / 1e3:9.2f} {us / span_us:6.1%} {count[name]:6d}  {name}")


if __name__ == "__main__":
    main()
