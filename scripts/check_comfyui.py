#!/usr/bin/env python3
"""ComfyUI's own loaders on files that the programs write, on the CPU.

python scripts/check_comfyui.py COMFYUI [PROGRAMS]    COMFYUI: a checkout of ComfyUI; PROGRAMS: build/bin

Needs what ComfyUI imports, diffusers and accelerate. Makes small random transformers of Wan and HunyuanVideo (what
ComfyUI takes for granted, such as heads of 128, is as published), converts them with vmoba-convert, trains LoRAs with
vmoba-train, and loads all as ComfyUI's nodes do. Ends with "all holds", or with an error and exit code 1. It looks at:

- vmoba-convert --layout comfyui, all kinds of Wan and HunyuanVideo (check_comfyui_hunyuan.py; 1.5 where the checkout
  knows it), fp32 and bf16: recognised, every tensor used and none missing, the output that of diffusers; ComfyUI's
  scaled fp8 of Wan widened: the output that ComfyUI has from the fp8 file
- LoRA files comfyui and, of Wan, kohya, of one transformer and of two experts: every tensor of the file used, none
  unknown, patched weights those of vmoba-convert --lora, the output that of diffusers and of vmoba-sample --checkpoint
"""
import sys
import tempfile
from pathlib import Path

import torch
from check_comfyui_hunyuan import check_hunyuan
from comfyui_loaders import (OUTPUT_TOLERANCE, SOURCE, STRENGTH, WEIGHT_TOLERANCE, ComfyUi, require, require_close, run)
from diffusers import WanTransformer3DModel
from random_wan import randomise
from safetensors.torch import load_file, save_file

COMMON = dict(num_attention_heads=2, attention_head_dim=128, ffn_dim=320, num_layers=2)
KINDS = {"t2v": dict(in_channels=16, out_channels=16),
         "i2v": dict(in_channels=36, out_channels=16, image_dim=1280, added_kv_proj_dim=256),
         "flf2v": dict(in_channels=36, out_channels=16, image_dim=1280, added_kv_proj_dim=256, pos_embed_seq_len=514),
         "ti2v": dict(in_channels=48, out_channels=48)}
MODEL_CLASS = {"t2v": "WAN21", "i2v": "WAN21", "flf2v": "WAN21", "ti2v": "WAN22"}
MODULES = {"t2v": 10, "i2v": 12}  # of a block: q, k, v, o of both attentions, feed-forward, k and v of the image


def inputs(kind):
    generator = torch.Generator().manual_seed(1)
    settings = KINDS[kind]
    tensors = {"latents": torch.randn(1, settings["out_channels"], 3, 4, 8, generator=generator),
               "prompt_embeds": torch.randn(1, 512, 4096, generator=generator)}
    if extra := settings["in_channels"] - settings["out_channels"]:
        tensors["condition"] = torch.randn(1, extra, 3, 4, 8, generator=generator)
    if "image_dim" in settings:
        tensors["image_embeds"] = torch.randn(1, settings.get("pos_embed_seq_len", 257), 1280, generator=generator)
    return tensors


@torch.no_grad()
def velocity_of_diffusers(folder, kind, sigma):
    given = inputs(kind)
    model = WanTransformer3DModel.from_pretrained(folder).eval()
    latents = torch.cat([given["latents"]] + [given[c] for c in ("condition",) if c in given], 1)
    image = given.get("image_embeds")
    if kind == "flf2v":  # diffusers wants the tokens of both images as a batch
        image = image.view(2, 257, -1)
    return model(latents, torch.tensor([1000 * sigma]), given["prompt_embeds"], image, return_dict=False)[0]


def model(comfyui, file, kind):
    return comfyui.model(file, MODEL_CLASS[kind])


def velocity_of(comfyui, patcher, kind, sigma):
    given = inputs(kind)
    extra = {"clip_fea": given["image_embeds"]} if "image_embeds" in given else {}
    return comfyui.velocity(patcher, given["latents"], sigma, given["prompt_embeds"], given.get("condition"), **extra)


def train(programs, folder, name, kind, weights, *overrides):
    """A LoRA run; its last checkpoint."""
    settings = KINDS[kind]
    run(programs / "vmoba-train", "--config", "tests/fixtures/train/tiny.yaml", f"run.dir={folder}/{name}",
        f"model.weights={weights}", "model.layers=2", "model.head_dim=128", "model.ffn_dim=320", "model.text_dim=4096",
        "model.freq_dim=256", f"model.in_channels={settings['in_channels']}", "text.dim=4096", "lora.rank=4",
        "lora.alpha=6", "lora.formats=[comfyui, diffusers, kohya]", "lora.save_dtype=fp32", "train.steps=3",
        "train.ema.enabled=false", "train.optimizer.lr=0.02", "train.optimizer.warmup_steps=0",
        "train.tensorboard=false", *overrides)
    return folder / name / "checkpoint-3"


def clip_of_published_width(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModel
    CLIPVisionModel(CLIPVisionConfig(hidden_size=1280, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=16, image_size=224, patch_size=14, hidden_act="gelu")
                    ).save_pretrained(folder)
    return folder


def check_scaled_fp8(comfyui, programs, folder, kind):
    """A file as Comfy-Org publishes them, every matrix in fp8 with one scale, and what vmoba-convert reads in it."""
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(folder / f"{kind}.safetensors").items():
        name = name.removeprefix("model.diffusion_model.")
        if name.endswith(".weight") and tensor.dim() == 2:
            scale = tensor.abs().max() / 448
            tensors[name.replace(".weight", ".scale_weight")] = scale
            tensor = (tensor / scale).to(torch.float8_e4m3fn)
        elif name.endswith(".bias"):  # ComfyUI of 2025 rounds these as well
            tensor = tensor.to(torch.float8_e4m3fn).float()
        tensors[name] = tensor.contiguous()
    fp8, widened = folder / "fp8_scaled.safetensors", folder / "widened.safetensors"
    save_file(tensors, fp8)
    run(programs / "vmoba-convert", fp8, widened, "--layout", "comfyui", "--dtype", "fp32")
    require_close(velocity_of(comfyui, model(comfyui, widened, kind), kind, 0.7),
                  velocity_of(comfyui, model(comfyui, fp8, kind), kind, 0.7),
                  OUTPUT_TOLERANCE, f"{kind}, scaled fp8 widened and as ComfyUI has it")


def check_weights(comfyui, programs, folder, kind):
    run(programs / "vmoba-convert", folder / kind, folder / f"{kind}.safetensors", "--layout", "comfyui")
    run(programs / "vmoba-convert", folder / kind, folder / f"{kind}_bf16.safetensors", "--layout", "comfyui",
        "--dtype", "bf16")
    patcher = model(comfyui, folder / f"{kind}.safetensors", kind)
    for sigma in (0.3, 1.0):
        require_close(velocity_of(comfyui, patcher, kind, sigma), velocity_of_diffusers(folder / kind, kind, sigma),
                      OUTPUT_TOLERANCE, f"{kind}, timestep {1000 * sigma:.0f}, ComfyUI and diffusers")
    check_scaled_fp8(comfyui, programs, folder, kind)
    half = model(comfyui, folder / f"{kind}_bf16.safetensors", kind).model.state_dict()
    for name, tensor in patcher.model.state_dict().items():
        if name.startswith("diffusion_model."):
            require(torch.equal(half[name], tensor.bfloat16().float()), kind, "in bf16:", name)


def check_lora(comfyui, programs, folder, kind, weights, file):
    """A LoRA file of ComfyUI's or kohya's format beside the merged weights."""
    name = f"{kind}, {file.parent.parent.parent.name}/{file.name}"
    plain, merged = folder / "plain.safetensors", folder / "merged.safetensors"
    run(programs / "vmoba-convert", weights, plain, "--layout", "comfyui")
    run(programs / "vmoba-convert", weights, merged, "--layout", "comfyui", "--lora", file, "--lora-strength", STRENGTH)
    run(programs / "vmoba-convert", weights, folder / "merged", "--layout", "diffusers", "--lora", file,
        "--lora-strength", STRENGTH)
    base = model(comfyui, plain, kind)
    complaints, patched = comfyui.with_lora(base, file, STRENGTH)
    require(not complaints, name, complaints[:3])
    modules = 2 * MODULES[kind]
    require(len(patched.patches) == modules, name, len(patched.patches), "weights patched, expected", modules)
    before = velocity_of(comfyui, base, kind, 0.7)
    found = velocity_of(comfyui, patched, kind, 0.7)
    expected = {k.removeprefix("model."): v for k, v in load_file(merged).items()}
    weights_of = patched.model.state_dict()
    worst = max(float((weights_of[k] - v).abs().max() / v.abs().max()) for k, v in expected.items())
    print(f"{name}, patched weights and merged ones: {worst:.1e}")
    require(worst <= WEIGHT_TOLERANCE, name, "patched weights differ by", worst)
    require_close(found, velocity_of_diffusers(folder / "merged", kind, 0.7), OUTPUT_TOLERANCE,
                  f"{name}, ComfyUI with the LoRA and diffusers with merged weights")
    require((found - before).abs().max() > 1e-2 * before.abs().max(), name, "changes nothing")
    full_strength = velocity_of(comfyui, comfyui.with_lora(base, file, 1.0)[1], kind, 1.0)
    comfyui.comfy.model_management.unload_all_models()
    return full_strength


def check_sample(programs, folder, checkpoint, velocity):
    """One Euler step from timestep 1000 is the noise less the velocity."""
    given, out = inputs("t2v"), folder / "sampled.safetensors"
    save_file({"latents": given["latents"]}, folder / "latents.safetensors")
    save_file({"prompt_embeds": given["prompt_embeds"]}, folder / "embeds.safetensors")
    run(programs / "vmoba-sample", "--checkpoint", checkpoint, "--prompt", "x", "--latents",
        folder / "latents.safetensors", "--embeds", folder / "embeds.safetensors", "--output-latents", out,
        "sample.frames=9", "sample.steps=1", "sample.guidance=1", "sample.scheduler=euler", "attention.backend=full")
    require_close(given["latents"] - load_file(out)["latents"], velocity, OUTPUT_TOLERANCE,
                  "t2v, vmoba-sample --checkpoint and ComfyUI with the LoRA")


def check_wan(comfyui, programs, folder):
    for seed, (kind, settings) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        randomise(WanTransformer3DModel(**COMMON, **settings)).save_pretrained(folder / kind)
        check_weights(comfyui, programs, folder, kind)

    lora = train(programs, folder, "lora", "t2v", folder / "t2v")
    for format in ("comfyui", "kohya"):
        velocity = check_lora(comfyui, programs, folder, "t2v", folder / "t2v", lora / f"lora/{format}.safetensors")
    check_sample(programs, folder, lora, velocity)
    complaints, patched = comfyui.with_lora(model(comfyui, folder / "t2v.safetensors", "t2v"),
                                            lora / "lora/diffusers.safetensors", 1.0)
    print(f"diffusers.safetensors: {len(patched.patches)} weights patched, {len(complaints)} tensors not loaded")
    for format in ("comfyui", "kohya"):  # and what vmoba-convert makes of it
        converted = folder / "converted/checkpoint/lora" / f"{format}.safetensors"
        converted.parent.mkdir(parents=True, exist_ok=True)
        run(programs / "vmoba-convert", lora / "lora/diffusers.safetensors", converted, "--layout", format)
        check_lora(comfyui, programs, folder, "t2v", folder / "t2v", converted)

    images = train(programs, folder, "i2v_lora", "i2v", folder / "i2v", "model.task=i2v", "model.image_dim=1280",
                   "image_encoder.type=clip", f"image_encoder.weights={clip_of_published_width(folder / 'clip')}",
                   "lora.targets=[blocks.*.attn*.to_*, blocks.*.attn2.add_*, blocks.*.ffn.net.*]")
    for format in ("comfyui", "kohya"):
        check_lora(comfyui, programs, folder, "i2v", folder / "i2v", images / f"lora/{format}.safetensors")

    torch.manual_seed(9)
    randomise(WanTransformer3DModel(**COMMON, **KINDS["t2v"])).save_pretrained(folder / "low")
    experts = train(programs, folder, "experts", "t2v", "''", f"experts=[{{weights: '{folder / 't2v'}', "
                    f"until_timestep: 750}}, {{weights: '{folder / 'low'}'}}]")
    for format in ("comfyui", "kohya"):
        for expert, weights in (("high", "t2v"), ("low", "low")):
            check_lora(comfyui, programs, folder, "t2v", folder / weights,
                       experts / f"lora/{format}_{expert}_noise.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkout, binaries = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else SOURCE / "build/bin").resolve()
    comfyui = ComfyUi(checkout)
    for check in (check_wan, check_hunyuan):
        with tempfile.TemporaryDirectory() as temporary:
            check(comfyui, binaries, Path(temporary))
    print("all holds")
