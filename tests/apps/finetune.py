"""The Python half of test_finetune.cpp.

finetune.py make FOLDER FIXTURES    small random "pretrained" pipelines in FOLDER, as diffusers' save_pretrained writes
                                    them: t2v/ (two experts) and i2v/; starting noise and an image
finetune.py compare FOLDER JOBS     samples each job of the JSON file in diffusers; prints for each the largest
                                    difference from the job's latents, and how far those of the untrained model are
"""
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModel, T5Tokenizer, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from random_wan import randomise, unipc  # noqa: E402

PROMPT, NEGATIVE = "A rocket lifts off; white smoke &amp; people cheer.", "最差质量，低质量"
BOUNDARY = 0.875


def transformer(text_encoder, **settings):
    return randomise(WanTransformer3DModel(num_attention_heads=2, attention_head_dim=24, out_channels=16, freq_dim=32,
                                           text_dim=text_encoder.config.d_model, ffn_dim=64, num_layers=3, **settings))


def make(folder, fixtures):
    torch.manual_seed(0)
    umt5, clip = f"{fixtures}/umt5", f"{fixtures}/clip/image_encoder"
    parts = dict(tokenizer=T5Tokenizer.from_pretrained(umt5), scheduler=unipc(5.0),
                 text_encoder=UMT5EncoderModel.from_pretrained(f"{umt5}/text_encoder", dtype=torch.float32),
                 vae=AutoencoderKLWan.from_pretrained(f"{fixtures}/wan_vae_21", torch_dtype=torch.float32))
    text_encoder, image_encoder = parts["text_encoder"], CLIPVisionModel.from_pretrained(clip)
    WanPipeline(**parts, transformer=transformer(text_encoder, in_channels=16),
                transformer_2=transformer(text_encoder, in_channels=16), boundary_ratio=BOUNDARY
                ).save_pretrained(f"{folder}/t2v")
    width = image_encoder.config.hidden_size
    WanImageToVideoPipeline(
        **parts, image_encoder=image_encoder, image_processor=CLIPImageProcessor(),
        transformer=transformer(text_encoder, in_channels=36, image_dim=width, added_kv_proj_dim=48),
    ).save_pretrained(f"{folder}/i2v")
    for name in ("t2v", "i2v"):  # the published folders have it beside tokenizer.json
        shutil.copy(f"{umt5}/spiece.model", f"{folder}/{name}/tokenizer/spiece.model")
    for name, size in (("t2v", (4, 8)), ("i2v", (28, 28))):
        save_file({"latents": torch.randn(1, 16, 2, *size)}, f"{folder}/{name}.safetensors")
    # Of CLIP's size, so that nobody resizes.
    y, x = numpy.mgrid[:224, :224]
    Image.fromarray(numpy.stack([x, y, (x + y) // 2], -1).astype(numpy.uint8)).save(f"{folder}/first.png")


def sample(folder, job):
    kind, low = job["kind"], job.get("transformer_2")
    replaced = {"transformer": WanTransformer3DModel.from_pretrained(job["transformer"])}
    if kind == "t2v":
        replaced |= {"transformer_2": low and WanTransformer3DModel.from_pretrained(low),
                     "boundary_ratio": BOUNDARY if low else None}
    pipe = (WanPipeline if kind == "t2v" else WanImageToVideoPipeline).from_pretrained(f"{folder}/{kind}", **replaced)
    pipe.set_progress_bar_config(disable=True)
    for file, extra in zip(job.get("loras", []), ({}, {"load_into_transformer_2": True})):
        pipe.load_lora_weights(file, **extra)
    latents = load_file(f"{folder}/{kind}.safetensors")["latents"]
    extra = {"image": Image.open(f"{folder}/first.png")} if kind == "i2v" else {}
    return pipe(prompt=PROMPT, negative_prompt=NEGATIVE, latents=latents, height=8 * latents.shape[3],
                width=8 * latents.shape[4], num_frames=5, num_inference_steps=4, guidance_scale=3.0,
                output_type="latent", **extra).frames


def compare(folder, jobs):
    handler = logging.Handler()
    diffusers_logging.get_logger("diffusers").addHandler(handler)
    for job in json.loads(Path(jobs).read_text()):
        warnings = []
        handler.emit = lambda record: warnings.append(record.getMessage())
        expected, found = sample(folder, job), load_file(job["latents"])["latents"]
        untrained = {"kind": job["kind"], "transformer": f"{folder}/{job['kind']}/transformer"}
        if "transformer_2" in job:
            untrained["transformer_2"] = f"{folder}/t2v/transformer_2"
        before, size = sample(folder, untrained), expected.abs().max()
        print("result", json.dumps({"name": job["name"], "error": float((found - expected).abs().max() / size),
                                    "learnt": float((before - expected).abs().max() / size), "warnings": warnings}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
