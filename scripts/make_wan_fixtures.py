#!/usr/bin/env python3
"""Makes tests/fixtures/model/wan_*.safetensors: small random Wan transformers with diffusers' outputs and gradients.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers safetensors
Usage: make_wan_fixtures.py OUT_DIR
       make_wan_fixtures.py --count      parameters of the published sizes, for tests/model/test_wan_dit.cpp

Each wan_NAME/ folder is what diffusers' save_pretrained writes (config.json, weights); wan_NAME.safetensors holds
  latents, timestep, text      the inputs
  output                       WanTransformer3DModel's output in fp32
  cotangent                    the loss is sum(output * cotangent)
  grad.<parameter>             gradient of every parameter
  grad.input.latents, .text    gradients of the inputs
"""
import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

CASES = {
    # name: (model, latent [B, C, T, H, W], text tokens). Heads of 20 split into 8 + 6 + 6 channels of t, h, w: unequal,
    # as 128 = 44 + 42 + 42 does.
    "t2v": (dict(num_attention_heads=2, attention_head_dim=20, in_channels=4, out_channels=4, text_dim=12, freq_dim=16,
                 ffn_dim=56, num_layers=2), (2, 4, 3, 6, 8), 5),
    # Patches in time, other channels out than in, no norm before cross attention, another eps, odd grid.
    "variant": (dict(num_attention_heads=3, attention_head_dim=12, in_channels=5, out_channels=3, text_dim=8,
                     freq_dim=10, ffn_dim=20, num_layers=2, patch_size=(2, 1, 3), cross_attn_norm=False, eps=1e-4),
                (1, 5, 4, 3, 9), 3),
}


def make(name, out):
    settings, latent_shape, text_tokens = CASES[name]
    torch.manual_seed(sorted(CASES).index(name))
    model = WanTransformer3DModel(**settings)
    with torch.no_grad():  # every parameter matters: none zero, norms not one
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in parameter_name))
    model.save_pretrained(out / f"wan_{name}")
    latents = torch.randn(latent_shape, requires_grad=True)
    text = torch.randn(latent_shape[0], text_tokens, settings["text_dim"], requires_grad=True)
    timestep = torch.tensor([903.25, 17.5])[: latent_shape[0]]
    output = model(latents, timestep, text, return_dict=False)[0]
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()
    tensors = {"latents": latents, "timestep": timestep, "text": text, "output": output, "cotangent": cotangent,
               "grad.input.latents": latents.grad, "grad.input.text": text.grad}
    tensors |= {f"grad.{key}": parameter.grad for key, parameter in model.named_parameters()}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()},
              out / f"wan_{name}.safetensors")


def count():
    for size in (dict(num_attention_heads=12, num_layers=30, ffn_dim=8960),
                 dict(num_attention_heads=40, num_layers=40, ffn_dim=13824)):
        with torch.device("meta"):
            model = WanTransformer3DModel(**size)
        print(size, sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    if sys.argv[1] == "--count":
        count()
        sys.exit()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for case in CASES:
        make(case, folder)
