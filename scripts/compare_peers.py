#!/usr/bin/env python3
"""Times block-sparse attention of this project and of its peers in one run on one GPU (docs/benchmarks.md).

  scripts/compare_peers.sh --json build/peers.json --svg docs/benchmarks/peers.svg

55,296 tokens (24 x 36 x 64 patches), 12 heads x 128, bf16; forward, and forward + backward. Times are CUDA events, the
median and the range of `--repeats` after `--warmup`. Peers get a random mask of equally many blocks for each block of
queries and choose nothing; ours choose, which is in the time. A peer whose package is missing or fails is left out and
named. `--rounds` repeats everything in turn: the range is then that of all rounds.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import traceback

from plot_speed import text

GRID, HEADS, WIDTH = "24x36x64", 12, 128
TOKENS = 24 * 36 * 64
DENSITIES = (0.2, 0.1, 0.05)
TILES = ["--partitions", "spatiotemporal", "--select", "topk", "--pool", "query_head"]
# Ours: name -> arguments of vmoba-bench attention, by the number of blocks that a query attends.
CUBES = {
    "cubes of 128, a cube chooses": ((4, 4, 8), ["--query-tile", "block"]),
    "cubes of 128 with remainder": ((4, 4, 8), ["--query-tile", "block", "--remainder", "one_softmax"]),
    "cubes of 64, a cube chooses": ((4, 4, 4), ["--query-tile", "block"]),
    "cubes of 64 with remainder": ((4, 4, 4), ["--query-tile", "block", "--remainder", "one_softmax"]),
    "cubes of 72, a cube chooses": ((3, 3, 8), ["--query-tile", "block"]),
    "cubes of 72 with remainder": ((3, 3, 8), ["--query-tile", "block", "--remainder", "one_softmax"]),
    "cubes of 144 with remainder": ((6, 3, 8), ["--query-tile", "block", "--remainder", "one_softmax"]),
    "cubes of 288, each query chooses": ((4, 9, 8), ["--query-tile", "1"]),
}
PAPER = "the paper's blocks, each query chooses"


class Table:
    """Milliseconds by row: (name, density) -> lists of forward and of forward + backward, saved as they come."""

    def __init__(self, path=None):
        self.rows, self.failed, self.path = {}, {}, path

    def add(self, name, density, forward, total):
        row = self.rows.setdefault((name, density), {"forward": [], "total": []})
        row["forward"] += forward
        row["total"] += total
        if self.path:
            with open(self.path, "w") as file:
                json.dump([{"attention": n, "density": d, **row} for (n, d), row in self.rows.items()], file, indent=1)

    def attempt(self, name, measure):
        if name in self.failed:
            return
        try:
            measure()
        except Exception as error:  # a peer may fail in any way; the others are measured
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {str(error)[:200]}"


class Ours:
    def __init__(self, bench, repeats, warmup):
        self.bench, self.repeats, self.warmup = bench, repeats, warmup

    def call(self, arguments):
        with tempfile.TemporaryDirectory() as folder:
            result = os.path.join(folder, "attention.json")
            command = [self.bench, "attention", "--grid", GRID, "--heads", str(HEADS), "--head-dim", str(WIDTH)]
            command += ["--no-check", "--repeats", str(self.repeats), "--warmup", str(self.warmup), "--json", result]
            subprocess.run(command + arguments, check=True, stdout=subprocess.DEVNULL)
            with open(result) as file:
                return json.load(file)["cases"]

    def cubes(self, table, name, density):
        (t, h, w), arguments = CUBES[name]
        blocks = (24 // t) * (36 // h) * (64 // w)
        chosen = max(1, round(density * blocks))
        chunk = ["--spatiotemporal-chunk", str(t), str(h), str(w), "--spatiotemporal-topk", str(chosen)]
        case = self.call(TILES + arguments + chunk)[0]
        spread = case["spread"]["total_ms"]
        table.add(name, density, [case["fwd_ms"]], [spread["min"], case["total_ms"], spread["max"]])

    def paper(self, table, density):
        cases = self.call(["--density", str(density)])
        cases = [case for case in cases if case["density"] < 1.2 * density]  # 8 temporal blocks cannot be that sparse
        mean = lambda key: statistics.mean(key(case) for case in cases)
        spread = lambda end: mean(lambda case: case["spread"]["total_ms"][end])
        table.add(PAPER, density, [mean(lambda case: case["fwd_ms"])],
                  [spread("min"), mean(lambda case: case["total_ms"]), spread("max")])


class Peers:
    """Runs in this process; imports a peer's package when it is measured."""

    def __init__(self, repeats, warmup):
        import torch
        self.torch, self.repeats, self.warmup = torch, repeats, warmup

    def tensors(self, layout, gradients=True):
        shape = (1, HEADS, TOKENS, WIDTH) if layout == "bhsd" else (1, TOKENS, HEADS, WIDTH)
        draw = lambda: self.torch.randn(shape, device="cuda", dtype=self.torch.bfloat16)
        q, k, v = (draw().requires_grad_(gradients) for _ in range(3))
        return q, k, v, draw()

    def times(self, function):
        torch, found = self.torch, []
        for _ in range(self.warmup):
            function()
        for _ in range(self.repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end))
        return found

    def add(self, table, name, density, forward, inputs, dout):
        gradients = lambda: self.torch.autograd.grad(forward(), inputs, dout)
        table.add(name, density, self.times(forward), self.times(gradients))

    def chosen(self, block, density):
        """[1, heads, query blocks, chosen] ascending blocks of keys, int32."""
        torch, blocks = self.torch, TOKENS // block
        generator = torch.Generator(device="cuda").manual_seed(0)
        draws = torch.rand(1, HEADS, blocks, blocks, device="cuda", generator=generator)
        return draws.topk(max(1, round(blocks * density)), -1).indices.sort(-1).values.int().contiguous()

    def lists(self, chosen):
        """Counts and padded lists of both directions: of keys for each query block, of queries for each key block."""
        torch, blocks = self.torch, chosen.shape[2]
        mask = torch.zeros(1, HEADS, blocks, blocks, dtype=torch.bool, device="cuda").scatter_(-1, chosen.long(), True)

        def one_way(m):
            order = torch.where(m, torch.arange(blocks, device="cuda"), blocks).sort(-1).values.clamp(max=blocks - 1)
            return m.sum(-1).int(), order.int().contiguous()
        return one_way(mask), one_way(mask.transpose(-1, -2).contiguous())

    def cudnn_full(self, table):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        q, k, v, dout = self.tensors("bhsd")
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            attend = self.torch.nn.functional.scaled_dot_product_attention
            self.add(table, "cuDNN, full attention", 1, lambda: attend(q, k, v), (q, k, v), dout)

    def flash_attention(self, table):
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
        from flash_attn.cute.interface import flash_attn_func
        q, k, v, dout = self.tensors("bshd")
        first = lambda result: result[0] if isinstance(result, tuple) else result
        self.add(table, "FlashAttention-4, full attention", 1, lambda: first(flash_attn_func(q, k, v)), (q, k, v), dout)
        for density in DENSITIES:
            masks = []
            for count, blocks in self.lists(self.chosen(128, density)):
                none = self.torch.zeros_like(count), self.torch.zeros_like(blocks)
                masks.append(BlockSparseTensorsTorch(*none, count, blocks, block_size=(128, 128)))
            forward = lambda: first(flash_attn_func(q, k, v, block_sparse_tensors=masks[0],
                                                    block_sparse_tensors_bwd=masks[1]))
            self.add(table, "FlashAttention-4, 128 x 128 blocks", density, forward, (q, k, v), dout)

    def cudnn_sparse(self, table):
        from cudnn import BSA
        q, k, v, dout = self.tensors("bhsd", gradients=False)
        for block in (128, 64):
            for density in DENSITIES:
                chosen = self.chosen(block, density)
                keys = dict(block_sparse_num=chosen.shape[-1], sparse_block_size=block, layout="bhsd")
                forward = lambda: BSA.block_sparse_attention_forward(q, k, v, chosen, **keys)
                result = forward()
                backward = lambda: BSA.block_sparse_attention_backward(
                    dout, q, k, v, result["o_tensor"], result["lse_tensor"], chosen, **keys)
                both = lambda: (forward(), backward())
                table.add(f"cuDNN, {block} x {block} blocks", density, self.times(forward), self.times(both))

    def flex_attention(self, table):
        from torch.nn.attention.flex_attention import BlockMask, flex_attention
        compiled = self.torch.compile(flex_attention, dynamic=False)
        q, k, v, dout = self.tensors("bhsd")
        for density in DENSITIES:
            (count, blocks), _ = self.lists(self.chosen(128, density))
            none = self.torch.zeros_like(count), self.torch.zeros_like(blocks)
            mask = BlockMask.from_kv_blocks(*none, count, blocks, BLOCK_SIZE=(128, 128))
            self.add(table, "FlexAttention, 128 x 128 blocks", density, lambda: compiled(q, k, v, block_mask=mask),
                     (q, k, v), dout)

    def measure(self, table, wanted):
        peers = {"cudnn": self.cudnn_full, "fa4": self.flash_attention, "bsa": self.cudnn_sparse,
                 "flex": self.flex_attention}
        for name in wanted:
            table.attempt(name, lambda: peers[name](table))
            self.torch.cuda.empty_cache()


def print_table(table):
    full = statistics.median(table.rows[("cuDNN, full attention", 1)]["total"]) if (
        "cuDNN, full attention", 1) in table.rows else None
    print("| attention | density | forward ms | forward + backward ms | range | x over full |\n" + "|---" * 6 + "|")
    for (name, density), row in sorted(table.rows.items(), key=lambda item: -item[0][1]):
        total = statistics.median(row["total"])
        ratio = f"{full / total:.2f}" if full else "-"
        print(f"| {name} | {density} | {statistics.median(row['forward']):.2f} | {total:.2f} |"
              f" {min(row['total']):.2f} .. {max(row['total']):.2f} | {ratio} |")
    for name, reason in table.failed.items():
        print(f"\n{name} was not measured: {reason}")


WIDTH_PX, HEIGHT_PX, LEFT, RIGHT, TOP, BOTTOM = 800, 470, 60, 300, 46, 50
COLOURS = ["#0b7a75", "#12a89f", "#2563eb", "#60a5fa", "#7c3aed", "#111827", "#b45309", "#dc2626", "#ea580c", "#9ca3af",
           "#6b7280", "#059669", "#be185d"]


def line(x1, y1, x2, y2, more):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def draw(table, path):
    """A chart of forward + backward over density, both axes logarithmic."""
    points = {}
    for (name, density), row in sorted(table.rows.items()):
        if density < 1:
            points.setdefault(name, []).append((density, statistics.median(row["total"])))
    values = [ms for curve in points.values() for _, ms in curve]
    low, high = min(values) / 1.1, max(values) * 1.1
    base = HEIGHT_PX - BOTTOM
    x_of = lambda density: LEFT + (WIDTH_PX - LEFT - RIGHT) * math.log(density / 0.045) / math.log(0.22 / 0.045)
    y_of = lambda ms: TOP + (base - TOP) * math.log(high / ms) / math.log(high / low)
    title = "Forward + backward, 55,296 tokens, 12 heads x 128: ms over density"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" width="{WIDTH_PX}" '
           f'height="{HEIGHT_PX}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           text(LEFT, 24, title, "start", 15, "bold")]
    for ms in (4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150):
        if low < ms < high:
            out.append(line(LEFT, y_of(ms), WIDTH_PX - RIGHT, y_of(ms), 'stroke="#e5e7eb"'))
            out.append(text(LEFT - 8, y_of(ms) + 4, ms, "end", 12, colour="#555"))
    for density in DENSITIES:
        out.append(text(x_of(density), base + 20, f"{100 * density:.0f} %", "middle", 12, colour="#555"))
    slowest_first = sorted(points, key=lambda name: -points[name][-1][1])
    for place, name in enumerate(slowest_first):
        style = f'stroke="{COLOURS[place % len(COLOURS)]}" stroke-width="2"'
        style += "" if name in CUBES or name == PAPER else ' stroke-dasharray="5 4"'
        curve = " ".join(f"{x_of(density):.1f},{y_of(ms):.1f}" for density, ms in points[name])
        out.append(f'<polyline points="{curve}" fill="none" {style}/>')
        x, y = WIDTH_PX - RIGHT + 16, TOP + 12 + place * (base - TOP) / len(points)
        out += [line(x, y - 4, x + 24, y - 4, style), text(x + 30, y, name, "start", 12)]
    legend = "solid: this project, selection included; dashed: peers, which are given their mask"
    out.append(text(LEFT, HEIGHT_PX - 10, legend, "start", 12, colour="#555") + "</svg>")
    with open(path, "w") as file:
        file.write("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/bin/vmoba-bench")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["cudnn", "fa4", "bsa", "flex"])
    parser.add_argument("--ours", nargs="*", default=[*CUBES, PAPER], choices=[*CUBES, PAPER])
    parser.add_argument("--json", help="write all times to this file")
    parser.add_argument("--svg", help="draw a chart")
    options = parser.parse_args()
    table, ours = Table(options.json), Ours(options.bench, options.repeats, options.warmup)
    peers = Peers(options.repeats, options.warmup)
    for _ in range(options.rounds):
        peers.measure(table, options.peers)
        for name in options.ours:
            for density in DENSITIES:
                measure = ours.paper if name == PAPER else ours.cubes
                arguments = (table, density) if name == PAPER else (table, name, density)
                table.attempt(f"{name} at {density}", lambda: measure(*arguments))
    print_table(table)
    if options.svg:
        draw(table, options.svg)
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
