"""Makes tests/fixtures/train/*.safetensors with the real packages: torch==2.11.0 diffusers==0.42.1 safetensors.

python scripts/make_train_fixtures.py tests/fixtures/train
"""
import sys

import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from safetensors.torch import save_file

out_dir = sys.argv[1]
torch.manual_seed(0)

# AdamW with clipping: five steps on two tensors.
parameters = [torch.nn.Parameter(torch.randn(7, 5)), torch.nn.Parameter(torch.randn(11))]
optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
tensors = {f"start.{i}": p.detach().clone() for i, p in enumerate(parameters)}
norms = []
for step in range(5):
    for i, p in enumerate(parameters):
        p.grad = torch.randn_like(p) * (3.0 if step == 2 else 0.2)
        tensors[f"grad.{step}.{i}"] = p.grad.clone()
    norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    optimizer.step()
    for i, p in enumerate(parameters):
        tensors[f"after.{step}.{i}"] = p.detach().clone()
tensors["norms"] = torch.stack(norms)
save_file(tensors, f"{out_dir}/adamw.safetensors")

# Loss weights by noise level.
sigmas = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
save_file(
    {
        "sigma": sigmas,
        "sigma_sqrt": compute_loss_weighting_for_sd3("sigma_sqrt", sigmas),
        "cosmap": compute_loss_weighting_for_sd3("cosmap", sigmas),
    },
    f"{out_dir}/loss_weighting.safetensors",
)
