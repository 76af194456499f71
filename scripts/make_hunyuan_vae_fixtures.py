#!/usr/bin/env python3
"""Makes tests/fixtures/model/hunyuan_vae* and hunyuan15_vae*: small random VAEs of HunyuanVideo and HunyuanVideo 1.5
with diffusers' latents and videos, and the names and shapes of the published ones.

Needs: torch, diffusers, safetensors

hunyuan_vae/              what save_pretrained writes, weights in bf16 (the references are computed in fp64 from these)
hunyuan_vae.safetensors   by case: NAME.video_u8 [3, F, H, W], to be read as x / 127.5 - 1; NAME.mean, the mode of
                          encode(video); NAME.latents; NAME.decoded = decode(latents), clamped, every second row and
                          column
hunyuan_vae_cases.json    by case: "frames" and, where tiles are on, "tile_frames", "tile_frames_overlap", "tile_size",
                          "tile_overlap"; "published": [name, shape] of each tensor, "values" their number
hunyuan15_vae...          the same of the other
"""
import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model"
WHOLE = {"tile_frames": 0, "tile_size": 0}
CASES = {  # frames, height, width, tiles
    "frames_1": (1, 16, 16, WHOLE),
    "frames_5": (5, 16, 16, WHOLE),
    "frames_17": (17, 16, 16, WHOLE),
    "frames_33": (33, 16, 16, WHOLE),
    "diffusers_17": (17, 16, 16, {"tile_frames": 16, "tile_frames_overlap": 4, "tile_size": 0}),
    "diffusers_33": (33, 16, 16, {"tile_frames": 16, "tile_frames_overlap": 4, "tile_size": 0}),
    "diffusers_25": (25, 8, 8, {"tile_frames": 16, "tile_frames_overlap": 4, "tile_size": 0}),
    "published_69": (69, 8, 8, {"tile_frames": 64, "tile_frames_overlap": 16, "tile_size": 0}),
    "space": (1, 48, 64, {"tile_frames": 0, "tile_size": 32, "tile_overlap": 16}),
    "both": (13, 24, 32, {"tile_frames": 8, "tile_frames_overlap": 4, "tile_size": 16, "tile_overlap": 8}),
}


CASES_15 = {
    "frames_1": (1, 32, 32, {"tile_size": 0}),
    "frames_5": (5, 32, 32, {"tile_size": 0}),
    "frames_9": (9, 16, 32, {"tile_size": 0}),
    "frames_13": (13, 16, 32, {"tile_size": 0}),
    "space": (5, 48, 32, {"tile_size": 32, "tile_overlap": 16}),
    "space_wide": (1, 80, 96, {"tile_size": 64, "tile_overlap": 16}),
}


def randomise(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and not name.endswith("gamma"):
                p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
            elif "norm" in name and name.endswith(("weight", "gamma")):
                p.copy_(1 + 0.3 * torch.randn_like(p))
            else:
                p.copy_(0.3 * torch.randn_like(p))
            p.copy_(p.to(torch.bfloat16))
        model.decoder.conv_out.conv.weight.mul_(0.25)
    return model


def smooth_video(frames, height, width):
    coarse = torch.randn(1, 3, 1 + (frames + 1) // 3, 1 + height // 5, 1 + width // 5)
    video = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)
    return (127.5 + 90 * video + 10 * torch.randn_like(video)).clamp(0, 255).to(torch.uint8)


def set_tiles(model, tiles):
    if isinstance(model, AutoencoderKLHunyuanVideo15):
        size = tiles["tile_size"]
        model.use_tiling = size > 0
        if size:
            model.tile_sample_min_height = model.tile_sample_min_width = size
            model.tile_latent_min_height = model.tile_latent_min_width = size // 16
            model.tile_overlap_factor = tiles["tile_overlap"] / size
        return
    frames, size = tiles["tile_frames"], tiles["tile_size"]
    model.use_framewise_encoding = model.use_framewise_decoding = frames > 0
    if frames:
        model.tile_sample_min_num_frames = frames
        model.tile_sample_stride_num_frames = frames - tiles["tile_frames_overlap"]
    model.use_tiling = size > 0
    if size:
        stride = size - tiles["tile_overlap"]
        model.tile_sample_min_height = model.tile_sample_min_width = size
        model.tile_sample_stride_height = model.tile_sample_stride_width = stride


@torch.no_grad()
def make(name, model, all_cases, stride):
    model.to(torch.bfloat16).save_pretrained(OUT / name)
    model, channels = model.double().eval(), model.config.latent_channels
    tensors = {}
    for case, (frames, height, width, tiles) in all_cases.items():
        torch.manual_seed(len(case) + frames)
        video = smooth_video(frames, height, width)
        latents = torch.randn(1, channels, 1 + frames // 4, height // stride, width // stride).double()
        set_tiles(model, tiles)
        mean = model.encode(video.double() / 127.5 - 1).latent_dist.mode()
        decoded = model.decode(latents).sample
        set_tiles(model, WHOLE)
        change = (model.encode(video.double() / 127.5 - 1).latent_dist.mode() - mean).abs().max() / mean.abs().max()
        print(name, case, tuple(mean.shape), "clamped", (decoded.abs() >= 1).double().mean().item(), "tiles change",
              change.item())
        tensors |= {f"{case}.video_u8": video[0], f"{case}.mean": mean[0].float(),
                    f"{case}.latents": latents[0].float(),
                    f"{case}.decoded": decoded[0].clamp(-1, 1)[..., ::2, ::2].float()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, OUT / f"{name}.safetensors")
    with torch.device("meta"):
        published = type(model)().state_dict()
    cases = {case: {"frames": frames} | tiles for case, (frames, _, _, tiles) in all_cases.items()}
    cases["published"] = [[key, list(value.shape)] for key, value in published.items()]
    cases["values"] = sum(value.numel() for value in published.values())
    (OUT / f"{name}_cases.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def main():
    make("hunyuan_vae", randomise(AutoencoderKLHunyuanVideo(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        scaling_factor=0.476986), 5), CASES, 8)
    make("hunyuan15_vae", randomise(AutoencoderKLHunyuanVideo15(
        block_out_channels=(8, 8, 8, 8, 16), layers_per_block=1, latent_channels=4), 6), CASES_15, 16)


if __name__ == "__main__":
    sys.exit(main())
