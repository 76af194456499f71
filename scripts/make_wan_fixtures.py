#!/usr/bin/env python3
"""Makes tests/fixtures/model/wan_*.safetensors: small random Wan transformers with diffusers' outputs and gradients.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers safetensors
Usage: make_wan_fixtures.py OUT_DIR [CASE ...]
       make_wan_fixtures.py --count      names, shapes and parameters of the published sizes, for tests/model/test_wan_dit.cpp

Each wan_NAME/ folder is what diffusers' save_pretrained writes (config.json, weights); wan_NAME.safetensors holds
  latents, timestep, text      the inputs
  image                        tokens of an image, where the model takes some
  output                       WanTransformer3DModel's output in fp32
  cotangent                    the loss is sum(output * cotangent)
  grad.<parameter>             gradient of every parameter
  grad.input.latents, .text, .image    gradients of the inputs
"""
import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from random_wan import randomise
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
    # Wan2.1 I2V: condition channels, image tokens. diffusers counts 512 of the tokens as text, the rest as image.
    "i2v": (dict(num_attention_heads=2, attention_head_dim=12, in_channels=10, out_channels=3, text_dim=4, freq_dim=8,
                 ffn_dim=20, num_layers=2, image_dim=10, added_kv_proj_dim=24), (2, 10, 2, 4, 6), 512),
    # Wan2.1 FLF2V: tokens of two images (7 each) with learnt positions.
    "flf2v": (dict(num_attention_heads=2, attention_head_dim=12, in_channels=10, out_channels=3, text_dim=4, freq_dim=8,
                   ffn_dim=20, num_layers=1, image_dim=10, added_kv_proj_dim=24, pos_embed_seq_len=14),
              (1, 10, 2, 4, 6), 512),
    # Wan2.2 TI2V-5B: a timestep for each token, the first latent frame at 0.
    "ti2v": (dict(num_attention_heads=2, attention_head_dim=12, in_channels=6, out_channels=6, text_dim=4, freq_dim=8,
                  ffn_dim=20, num_layers=2), (2, 6, 3, 4, 6), 5),
}
IMAGE_TOKENS = 7


def make(name, out):
    settings, latent_shape, text_tokens = CASES[name]
    torch.manual_seed(list(CASES).index(name))
    model = randomise(WanTransformer3DModel(**settings))
    model.save_pretrained(out / f"wan_{name}")
    latents = torch.randn(latent_shape, requires_grad=True)
    text = torch.randn(latent_shape[0], text_tokens, settings["text_dim"], requires_grad=True)
    timestep = torch.tensor([903.25, 17.5])[: latent_shape[0]]
    if name == "ti2v":
        frames, frame_tokens = latent_shape[2], latent_shape[3] * latent_shape[4] // 4
        timestep = timestep[:, None].repeat(1, frames * frame_tokens)
        timestep[:, :frame_tokens] = 0
    image = None
    if "image_dim" in settings:
        images = 2 if "pos_embed_seq_len" in settings else 1
        image = torch.randn(images * latent_shape[0], IMAGE_TOKENS, settings["image_dim"], requires_grad=True)
    output = model(latents, timestep, text, image, return_dict=False)[0]
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()
    tensors = {"latents": latents, "timestep": timestep, "text": text, "output": output, "cotangent": cotangent,
               "grad.input.latents": latents.grad, "grad.input.text": text.grad}
    if image is not None:  # the tokens of one sample's images one after the other
        shape = (latent_shape[0], -1, settings["image_dim"])
        tensors |= {"image": image.view(shape), "grad.input.image": image.grad.view(shape)}
    tensors |= {f"grad.{key}": parameter.grad for key, parameter in model.named_parameters()}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()},
              out / f"wan_{name}.safetensors")


def fnv(text):
    value = 14695981039346656037
    for byte in text.encode():
        value = ((value ^ byte) * 1099511628211) & (2**64 - 1)
    return value


def count():
    """Parameters of each published model, and a hash of the sorted lines 'name AxBxC'."""
    sizes = {
        "2.1 T2V 1.3B": dict(num_attention_heads=12, num_layers=30, ffn_dim=8960),
        "2.1 T2V 14B, 2.2 T2V A14B": dict(num_attention_heads=40, num_layers=40, ffn_dim=13824),
        "2.1 I2V 14B": dict(num_attention_heads=40, num_layers=40, ffn_dim=13824, in_channels=36, image_dim=1280,
                            added_kv_proj_dim=5120),
        "2.1 FLF2V 14B": dict(num_attention_heads=40, num_layers=40, ffn_dim=13824, in_channels=36, image_dim=1280,
                              added_kv_proj_dim=5120, pos_embed_seq_len=514),
        "2.2 I2V A14B": dict(num_attention_heads=40, num_layers=40, ffn_dim=13824, in_channels=36),
        "2.2 TI2V 5B": dict(num_attention_heads=24, num_layers=30, ffn_dim=14336, in_channels=48, out_channels=48),
    }
    for name, size in sizes.items():
        with torch.device("meta"):
            model = WanTransformer3DModel(**({"out_channels": 16} | size))
        lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in model.named_parameters())
        print(name, len(lines), sum(value.numel() for value in model.parameters()), hex(fnv("\n".join(lines))))


if __name__ == "__main__":
    if sys.argv[1] == "--count":
        count()
        sys.exit()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        make(case, folder)
