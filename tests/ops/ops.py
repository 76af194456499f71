"""torch.ops.vmoba.attention in Python; run by test_ops.cpp, which wrote the calls and their results into DIR."""
import json
import sys
from pathlib import Path

import torch
import vmoba_ops

vmoba_ops.load()
OP = torch.ops.vmoba.attention


def parity(folder):
    files = sorted(folder.glob("*.pt"))
    for file in files:
        q, k, v, weight, *expected = torch.load(file)
        numbers = [int(word) for word in file.with_suffix(".sizes").read_text().split()]
        options = file.with_suffix(".options").read_text()
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        out = OP(*x, numbers[:3], numbers[3:], options)
        found = [out, *torch.autograd.grad(out, x, weight)]
        for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected):
            assert torch.equal(a, b), f"{file.stem}: {name} differs by {(a - b).abs().max()}"
    print(f"parity of {len(files)} calls holds")


def inputs(batch, tokens, dtype=torch.double):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, tokens, 2, 4, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


OPTIONS = json.dumps(dict(temporal_chunk=1, tau=0.3))
TILES = json.dumps(dict(temporal_chunk=1, select="topk", pool="query_head", density=0.5, query_tile="block"))


def gradcheck():
    # Small steps: the selection is held constant, and must not change between the two sides.
    for options, tokens, lengths in ((OPTIONS, 12, []), (OPTIONS, 15, [1, 3]), (TILES, 12, [])):
        call = lambda q, k, v: OP(q, k, v, [3, 2, 2], lengths, options)
        assert torch.autograd.gradcheck(call, inputs(2, tokens), eps=1e-7, atol=1e-5, rtol=1e-4)
    print("gradcheck holds")


def opcheck():
    for options, tokens, lengths in ((OPTIONS, 12, []), (OPTIONS, 15, [1, 3]), (TILES, 12, [])):
        torch.library.opcheck(OP.default, (*inputs(2, tokens), [3, 2, 2], lengths, options))
    print("opcheck holds")


def same(compiled, plain, x, extra=()):
    out, expected = compiled(*x, *extra), plain(*x, *extra)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), x)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def compiled():
    plain = lambda q, k, v: OP(q * 2, k, v, [3, 2, 2], [1, 3], OPTIONS) + 1
    same(torch.compile(plain, backend="aot_eager", fullgraph=True), plain, inputs(2, 15))
    same(torch.compile(plain, backend="inductor", fullgraph=True), plain, inputs(2, 15))
    print("compile holds")
    torch._dynamo.reset()
    moving = lambda q, k, v, grid: OP(q, k, v, grid, [], OPTIONS)
    function = torch.compile(moving, backend="aot_eager", fullgraph=True, dynamic=True)
    for grid in ([3, 2, 2], [4, 3, 2]):
        same(function, moving, inputs(2, grid[0] * grid[1] * grid[2]), (grid,))
    print("dynamic shapes holds")


def exported():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return OP(q, k, v, [3, 2, 2], [], OPTIONS)

    x = tuple(t.detach() for t in inputs(2, 12))
    program = torch.export.export(Layer(), x)
    assert any(node.target is OP.default for node in program.graph.nodes)
    assert torch.equal(program.module()(*x), Layer()(*x))
    print("export holds")


parity(Path(sys.argv[1]))
gradcheck()
opcheck()
compiled()
exported()
