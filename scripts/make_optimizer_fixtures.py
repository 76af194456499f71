"""Makes tests/fixtures/optim/*.safetensors with the real packages: torch==2.11.0 bitsandbytes==0.50.2 safetensors.

python scripts/make_optimizer_fixtures.py tests/fixtures/optim
"""
import sys

import bitsandbytes
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file

out_dir = sys.argv[1]
torch.manual_seed(0)

# AdamW8bit on the CPU: a parameter of 25 blocks, the last one ragged, and one too small for 8 bits. The package's fast
# path for fp32 on a CPU finds codes in a coarse table; for other types it takes the nearest, as on a GPU.
fast = cpu_ops._quant_blockwise_fp32_direct
cpu_ops._quant_blockwise_fp32_direct = lambda values, *rest: fast(values.double(), *rest)
shapes = {"coded": (70, 90), "small": (11,)}
parameters = {n: torch.nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
optimizer = bitsandbytes.optim.AdamW8bit(
    list(parameters.values()), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
)
tensors = {"map.signed": create_dynamic_map(signed=True), "map.unsigned": create_dynamic_map(signed=False)}
for n, p in parameters.items():
    tensors[f"start.{n}"] = p.detach().clone()
for step in range(5):
    for n, p in parameters.items():
        # Rows of very different sizes, as of a network's layers.
        p.grad = torch.randn_like(p) * 10.0 ** torch.linspace(-4, 0, p.numel()).view_as(p)
        tensors[f"grad.{step}.{n}"] = p.grad.clone()
    optimizer.step()
    for n, p in parameters.items():
        tensors[f"after.{step}.{n}"] = p.detach().clone()
state = optimizer.state[parameters["coded"]]
for key in ("state1", "state2", "absmax1", "absmax2"):
    tensors[key] = state[key].clone()
save_file(tensors, f"{out_dir}/adamw_8bit.safetensors")

# Muon: matrices higher than wide and wider than high, both learning rates of torch.
tensors = {}
for adjust in ("original", "match_rms_adamw"):
    parameters = [torch.nn.Parameter(torch.randn(24, 40)), torch.nn.Parameter(torch.randn(36, 16))]
    optimizer = torch.optim.Muon(parameters, lr=2e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust)
    for i, p in enumerate(parameters):
        tensors[f"{adjust}.start.{i}"] = p.detach().clone()
    for step in range(4):
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p) * (3.0 if step == 2 else 0.2)
            tensors[f"{adjust}.grad.{step}.{i}"] = p.grad.clone()
        optimizer.step()
        for i, p in enumerate(parameters):
            tensors[f"{adjust}.after.{step}.{i}"] = p.detach().clone()
save_file(tensors, f"{out_dir}/muon.safetensors")
