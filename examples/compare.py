"""VMoBA beside torch's attention: equal results and the speed.

    python examples/compare.py                    on a GPU: Wan's 480p clip of 81 frames, bf16
    python examples/compare.py --grid 21 45 80    another grid of patches
    python examples/compare.py --small            anywhere, in fp32: equality alone

Equal results: with all blocks chosen VMoBA is full attention; the kernels choose and compute what the plain tensor
operations do. Ends with exit code 1 where one of these does not hold.
"""
import argparse
import sys

import torch
import vmoba_ops

ALL = dict(preset="none", tau=1.0, full_when_faster=False)
VARIANTS = {"paper, tau 0.25, temporal": dict(tau=0.25, layer=0), "paper, tau 0.25, spatial": dict(tau=0.25, layer=1),
            "cubes, density 0.2": dict(preset="cubes"), "cubes, density 0.1": dict(preset="cubes", density=0.1)}


def inputs(grid, heads, head_dim, device, dtype):
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, grid[0] * grid[1] * grid[2], heads, head_dim)
    return [torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_() for _ in range(3)]


def full(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def results(function, qkv):
    out = function(*qkv)
    weight = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
    return [out, *torch.autograd.grad((out * weight).float().sum(), qkv)]


def difference(a, b):
    return max(((x - y).float().norm() / y.float().norm()).item() for x, y in zip(a, b))


def holds(text, error, bound):
    good = error <= bound
    print(f"{text:<58} {error:9.2e}   at most {bound:.0e}   {'holds' if good else 'DOES NOT HOLD'}", flush=True)
    return good


def equality(grid, heads, head_dim, device, dtype):
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
    qkv = inputs(grid, heads, head_dim, device, dtype)
    exact = results(full, [x.detach().double().requires_grad_() for x in qkv] if device == "cpu" else qkv)
    good = True
    for layer, partition in enumerate(("temporal", "spatial", "spatiotemporal")):
        own = results(lambda q, k, v: vmoba_ops.attention(q, k, v, grid, layer=layer, **ALL), qkv)
        good &= holds(f"all blocks, {partition}: full attention", difference(own, exact), bound)
    for name, options in VARIANTS.items():
        options = dict(options, full_when_faster=False)
        own = results(lambda q, k, v: vmoba_ops.attention(q, k, v, grid, **options), qkv)
        plain = results(lambda q, k, v: vmoba_ops.attention(q, k, v, grid, implementation="reference", **options), qkv)
        good &= holds(f"{name}: the plain tensor operations", difference(own, plain), bound)
    return good


def milliseconds(function, repeats):
    for _ in range(3):
        function()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def speed(grid, heads, head_dim, repeats):
    qkv = inputs(grid, heads, head_dim, "cuda", torch.bfloat16)
    calls = {"torch, cuDNN": full}
    for name, options in VARIANTS.items():
        calls[name] = lambda q, k, v, options=options: vmoba_ops.attention(q, k, v, grid, **options)
    print(f"\n{torch.cuda.get_device_name()}, grid {'x'.join(map(str, grid))}, {heads} heads of {head_dim}, bf16")
    print(f"{'':<30} {'forward ms':>11} {'ratio':>7} {'both ms':>11} {'ratio':>7}")
    first = None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        for name, call in calls.items():
            with torch.no_grad():
                forward = milliseconds(lambda: call(*qkv), repeats)
            both = milliseconds(lambda: torch.autograd.grad(call(*qkv).sum(), qkv), repeats)
            first = first or (forward, both)
            ratios = first[0] / forward, first[1] / both
            print(f"{name:<30} {forward:11.2f} {ratios[0]:7.2f} {both:11.2f} {ratios[1]:7.2f}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--grid", type=int, nargs=3, default=[21, 30, 52])
    arguments.add_argument("--heads", type=int, default=12)
    arguments.add_argument("--head-dim", type=int, default=128)
    arguments.add_argument("--repeats", type=int, default=20)
    arguments.add_argument("--small", action="store_true")
    a = arguments.parse_args()
    vmoba_ops.load()
    if a.small or not torch.cuda.is_available():
        return 0 if equality([4, 8, 8], 2, 16, "cpu", torch.float32) else 1
    good = equality([9, 16, 24], 4, a.head_dim, "cuda", torch.bfloat16)
    speed(a.grid, a.heads, a.head_dim, a.repeats)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
