#!/usr/bin/env python3
"""Makes tests/fixtures/sample/wan_pipelines.safetensors: whole sampling runs of diffusers' WanPipeline and
WanImageToVideoPipeline on the small transformers of make_wan_fixtures.py.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers safetensors
Run from the repository root, after make_wan_fixtures.py: python scripts/make_pipeline_fixtures.py

The metadata entry `cases` lists every run; tensors are <case>.{latents,prompt_embeds,negative_prompt_embeds,
image_embeds,result} and the images `first`, `last`. The codec below is repeated in tests/sample/test_wan_pipelines.cpp.
"""
import json
import math
from types import SimpleNamespace

import torch
from diffusers import (FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline,
                       WanTransformer3DModel)
from random_wan import randomise, unipc
from safetensors.torch import save_file

OUT = "tests/fixtures/sample/wan_pipelines.safetensors"
FRAMES, HEIGHT, WIDTH, STEPS = 9, 32, 48, 4

CASES = {
    "t2v_unipc": dict(model="t2v", task="t2v", scheduler="unipc", shift=3.0, guidance=5.0),
    "t2v_euler": dict(model="t2v", task="t2v", scheduler="euler", shift=5.0, guidance=1.0),
    "i2v": dict(model="i2v", task="i2v", scheduler="unipc", shift=3.0, guidance=5.0),
    "flf2v": dict(model="flf2v", task="flf2v", scheduler="unipc", shift=16.0, guidance=5.5),
    "a14b_t2v": dict(model="t2v", task="t2v", scheduler="unipc", shift=12.0, guidance=4.0, guidance_2=3.0, boundary=875),
    # The boundary is a timestep that is met: it belongs to the expert of high noise.
    "a14b_i2v": dict(model="a14b_i2v", task="i2v", scheduler="unipc", shift=5.0, guidance=3.5, boundary=937),
    "ti2v_image": dict(model="ti2v", task="ti2v", scheduler="unipc", shift=5.0, guidance=5.0),
    "ti2v_text": dict(model="ti2v", task="ti2v", scheduler="unipc", shift=5.0, guidance=5.0, image=False),
}


class Codec(torch.nn.Module):
    """Every fourth frame, colours mixed, pooled 8x8; then the mean and deviation of each channel."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.config = SimpleNamespace(z_dim=channels, scale_factor_temporal=4, scale_factor_spatial=8,
                                      latents_mean=[0.25 * c - 0.5 for c in range(channels)],
                                      latents_std=[0.5 + 0.25 * c for c in range(channels)])

    def encode(self, video):
        mix = torch.tensor([[math.cos(c + 2 * k) for k in range(3)] for c in range(self.channels)])
        pooled = torch.nn.functional.avg_pool3d(video[:, :, ::4], (1, 8, 8))
        return SimpleNamespace(latents=torch.einsum("ck,bkthw->bcthw", mix, pooled))


def scheduler_of(case):
    if case["scheduler"] == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=case["shift"])
    return unipc(case["shift"])


def transformer_of(name):
    if name == "a14b_i2v":  # 36 channels and no image tokens in the real one; wan_i2v's shape without them
        torch.manual_seed(100)
        model = randomise(WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=10,
                                                out_channels=3, text_dim=4, freq_dim=8, ffn_dim=20, num_layers=1))
        model.save_pretrained("tests/fixtures/model/wan_a14b_i2v")
        return model
    return WanTransformer3DModel.from_pretrained(f"tests/fixtures/model/wan_{name}")


def low_noise(model, name):
    """The second expert: the first one's weights times 0.9."""
    other = transformer_of(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    return other


def run(name, case, images, tensors):
    transformer = transformer_of(case["model"])
    config = transformer.config
    torch.manual_seed(len(name))
    latents = torch.randn(1, config.out_channels, 1 + (FRAMES - 1) // 4, HEIGHT // 8, WIDTH // 8)
    tokens = 512 if config.image_dim else 6
    prompt, negative = torch.randn(2, 1, tokens, config.text_dim)
    experts = {}
    if "boundary" in case:
        experts = dict(transformer_2=low_noise(transformer, case["model"]), boundary_ratio=case["boundary"] / 1000)
    with_image = case["task"] != "t2v" and case.get("image", True)
    kind = WanImageToVideoPipeline if with_image else WanPipeline
    pipe = kind(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler_of(case), transformer=transformer,
                expand_timesteps=case["task"] == "ti2v", **experts)
    pipe.vae = Codec(config.out_channels)
    pipe.set_progress_bar_config(disable=True)
    tensors |= {f"{name}.latents": latents, f"{name}.prompt_embeds": prompt, f"{name}.negative_prompt_embeds": negative}
    extra = {}
    if with_image:
        extra["image"] = images["first"][None]
        if case["task"] == "flf2v":
            extra["last_image"] = images["last"][None]
        if config.image_dim:  # the pipeline takes an image or its tokens, but needs both
            count = 2 if case["task"] == "flf2v" else 1
            image_embeds = torch.randn(count, 7, config.image_dim)
            pipe.encode_image = lambda image, device: image_embeds
            tensors[f"{name}.image_embeds"] = image_embeds.view(1, -1, config.image_dim)
    result = pipe(prompt_embeds=prompt, negative_prompt_embeds=negative, height=HEIGHT, width=WIDTH, num_frames=FRAMES,
                  num_inference_steps=STEPS, guidance_scale=case["guidance"], guidance_scale_2=case.get("guidance_2"),
                  latents=latents.clone(), output_type="latent", **extra).frames
    tensors[f"{name}.result"] = result
    print(name, [int(t) for t in pipe.scheduler.timesteps], float(result.abs().max()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = {name: torch.rand(3, HEIGHT, WIDTH) * 2 - 1 for name in ("first", "last")}
    tensors = dict(images)
    for case_name, settings in CASES.items():
        run(case_name, settings, images, tensors)
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, OUT,
              {"cases": json.dumps(CASES)})
