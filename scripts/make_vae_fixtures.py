#!/usr/bin/env python3
"""Makes tests/fixtures/model/wan_vae_*: small random Wan VAEs with diffusers' latents and videos, and the names and
shapes of the published ones.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers safetensors
Usage: make_vae_fixtures.py OUT_DIR

wan_vae_21/ and wan_vae_22/ are what diffusers' save_pretrained writes, weights in bf16 (the references are computed in
fp64 from these). wan_vae_NN.safetensors holds
  video_u8              [3, F, H, W], to be read as x / 127.5 - 1
  mean                  AutoencoderKLWan.encode(video).latent_dist.mode()
  latents, decoded      decode(latents); causal: the first frames alone give the same
  tile_video_u8, tile_mean, tile_latents, tile_decoded    the same with tiling; "tile" = [tile, overlap] in pixels
wan_vae_shapes.json: by version the published configuration and [diffusers' name, original name, shape] of each tensor.
"""
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from safetensors.torch import save_file

PUBLISHED = {
    "2.1": dict(base_dim=96, z_dim=16),
    "2.2": dict(base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12,
                patch_size=2, scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48),
}
SMALL = {"2.1": dict(base_dim=2), "2.2": dict(base_dim=2, decoder_base_dim=3, z_dim=16)}
FRAMES = 13
SIZE = {"2.1": (16, 24), "2.2": (32, 16)}                       # height, width of the video
TILED = {"2.1": (5, 24, 32, 16, 8), "2.2": (1, 48, 64, 32, 16)}  # frames, height, width, tile, overlap


def original_name(name, residual):
    """The name in Wan2.1_VAE.pth or Wan2.2_VAE.pth (wan/modules/vae2_1.py, vae2_2.py of Wan-Video/Wan2.2)."""
    parts = name.split(".")
    block = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
             "conv_shortcut": "shortcut"}

    def inside(rest):
        return ".".join([block.get(rest[0], rest[0])] + rest[1:])

    if parts[0] in ("quant_conv", "post_quant_conv"):
        return {"quant_conv": "conv1", "post_quant_conv": "conv2"}[parts[0]] + "." + parts[1]
    side, part = parts[0], parts[1]
    if part in ("conv_in", "norm_out", "conv_out"):
        return f"{side}." + {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[part] + "." + parts[2]
    if part == "mid_block":
        layer = 1 if parts[2] == "attentions" else 2 * int(parts[3])
        return f"{side}.middle.{layer}.{inside(parts[4:])}"
    stage = int(parts[2])
    if side == "encoder" and not residual:
        return f"encoder.downsamples.{stage}.{inside(parts[3:])}"
    resnets = 2 if side == "encoder" else 3
    is_resnet = parts[3] == "resnets"
    layer = int(parts[4]) if is_resnet else resnets
    rest = parts[5:] if is_resnet or parts[3] == "upsamplers" else parts[4:]
    if residual:
        word = "downsamples" if side == "encoder" else "upsamples"
        return f"{side}.{word}.{stage}.{word}.{layer}.{inside(rest)}"
    return f"decoder.upsamples.{4 * stage + layer}.{inside(rest)}"


def shapes(version):
    with torch.device("meta"):
        model = AutoencoderKLWan(**PUBLISHED[version])
    state = model.state_dict()
    rows = [[name, original_name(name, model.config.is_residual), list(value.shape)] for name, value in state.items()]
    if version == "2.1":  # the package has a converter for these
        converted = convert_wan_vae_to_diffusers({original: name for name, original, _ in rows})
        assert converted == {name: name for name in state}
    keys = ("base_dim", "decoder_base_dim", "z_dim", "is_residual", "patch_size")
    config = {key: model.config[key] for key in keys}
    if version == "2.1":
        config |= {key: list(model.config[key]) for key in ("latents_mean", "latents_std")}
    return {"config": config, "tensors": rows}


def random_model(version, out):
    torch.manual_seed(21 if version == "2.1" else 22)
    settings = PUBLISHED[version] | SMALL[version]
    z = settings["z_dim"]
    settings |= dict(latents_mean=torch.randn(z).mul(8).round().div(8).tolist(),
                     latents_std=torch.rand(z).add(0.5).mul(8).round().div(8).tolist())
    model = AutoencoderKLWan(**settings)
    with torch.no_grad():  # every parameter matters: none zero, norms not one
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() > 1:
                parameter.copy_(0.7 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            else:  # norms over two channels amplify rounding near zero, which biases keep away
                parameter.copy_(0.5 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(out / f"wan_vae_{version.replace('.', '')}")
    return model.double().eval()


def smooth_video(frames, height, width):
    coarse = torch.randn(1, 3, 1 + frames // 3, 1 + height // 5, 1 + width // 5)
    video = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)
    return (127.5 + 90 * video + 10 * torch.randn_like(video)).clamp(0, 255).to(torch.uint8)


def to_float(video):
    return video.double() / 127.5 - 1


@torch.no_grad()
def make(version, out):
    model = random_model(version, out)
    stride = 8 * (model.config.patch_size or 1)
    height, width = SIZE[version]
    tensors = {}
    video = smooth_video(FRAMES, height, width)
    mean = model.encode(to_float(video)).latent_dist.mode()
    latents = torch.randn(1, model.config.z_dim, 1 + FRAMES // 4, height // stride, width // stride).double()
    decoded = model.decode(latents).sample
    clamped = (decoded.abs() == 1).float().mean().item()
    assert 0.01 < clamped < 0.5, clamped
    for frames in (1, 5, 9):  # what lets the test take the first frames as the reference of shorter videos
        short = model.encode(to_float(video[:, :, :frames])).latent_dist.mode()
        assert torch.allclose(short, mean[:, :, : short.shape[2]], atol=1e-5), frames
        short = model.decode(latents[:, :, : 1 + frames // 4]).sample
        assert torch.allclose(short, decoded[:, :, :frames], atol=1e-5), frames
    tensors |= dict(video_u8=video[0], mean=mean[0], latents=latents[0], decoded=decoded[0])

    frames, height, width, tile, overlap = TILED[version]
    video = smooth_video(frames, height, width)
    latents = torch.randn(1, model.config.z_dim, 1 + frames // 4, height // stride, width // stride).double()
    whole_mean, whole = model.encode(to_float(video)).latent_dist.mode(), model.decode(latents).sample
    patch = model.config.patch_size or 1  # diffusers counts the encoder's tiles in patches, the decoder's in pixels
    model.enable_tiling(tile // patch, tile // patch, (tile - overlap) // patch, (tile - overlap) // patch)
    mean = model.encode(to_float(video)).latent_dist.mode()
    model.enable_tiling(tile, tile, tile - overlap, tile - overlap)
    decoded = model.decode(latents).sample
    print(version, "clamped", clamped, "tiled - whole, rms: latents", (mean - whole_mean).square().mean().sqrt().item(),
          "of", whole_mean.std().item(), "video", (decoded - whole).square().mean().sqrt().item(), "of",
          whole.std().item())
    tensors |= dict(tile=torch.tensor([tile, overlap]), tile_video_u8=video[0], tile_mean=mean[0],
                    tile_latents=latents[0], tile_decoded=decoded[0])
    save_file({key: (value.float() if value.is_floating_point() else value).contiguous().clone()
               for key, value in tensors.items()},
              out / f"wan_vae_{version.replace('.', '')}.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    WanUpsample.forward = torch.nn.Upsample.forward  # without its detour through fp32
    for key in PUBLISHED:
        make(key, folder)
    rows = {version: shapes(version) for version in PUBLISHED}
    (folder / "wan_vae_shapes.json").write_text(json.dumps(rows, separators=(",", ":")) + "\n")
