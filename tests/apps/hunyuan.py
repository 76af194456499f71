"""The Python half of test_hunyuan_app.cpp.

hunyuan.py make FOLDER       a small random HunyuanVideo transformer, transformer/, as diffusers' save_pretrained writes
                             it, and what a sampling run is given: given.safetensors
hunyuan.py compare FOLDER JOBS
                             samples each job of the JSON file in diffusers; prints for each the largest difference from
                             the job's latents, and how far those of the untrained transformer are
"""
import inspect
import json
import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from random_wan import randomise  # noqa: E402
from round_frequencies import round_frequencies_once  # noqa: E402

round_frequencies_once()

STEPS, GUIDANCE, SHIFT = 4, 6.0, 7.0
HEADS, HEAD_DIM = 2, 8


def accept_small_width():
    """diffusers' converter of original LoRA names has the published width written into it."""
    scope = dict(vars(lora_conversion_utils))
    source = inspect.getsource(lora_conversion_utils._convert_hunyuan_video_lora_to_diffusers)
    exec(source.replace("3072", str(HEADS * HEAD_DIM)), scope)
    lora_pipeline._convert_hunyuan_video_lora_to_diffusers = scope["_convert_hunyuan_video_lora_to_diffusers"]


def make(folder):
    torch.manual_seed(0)
    randomise(HunyuanVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, text_embed_dim=32, pooled_projection_dim=12,
        rope_axes_dim=(4, 2, 2))).save_pretrained(f"{folder}/transformer")
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    save_file({"prompt_embeds": torch.randn(1, 8, 32), "prompt_attention_mask": mask.float(),
               "pooled_prompt_embeds": torch.randn(1, 12), "latents": torch.randn(1, 16, 2, 4, 8)},
              f"{folder}/given.safetensors")


def sample(folder, transformer, lora=None):
    pipe = HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, vae=None,
        transformer=HunyuanVideoTransformer3DModel.from_pretrained(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT))
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora)
    given = load_file(f"{folder}/given.safetensors")
    return pipe(prompt_embeds=given["prompt_embeds"], pooled_prompt_embeds=given["pooled_prompt_embeds"],
                prompt_attention_mask=given["prompt_attention_mask"].long(), latents=given["latents"], height=32,
                width=64, num_frames=5, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                output_type="latent").frames


def compare(folder, jobs):
    accept_small_width()
    base = f"{folder}/transformer"
    before = sample(folder, base)
    for job in json.loads(Path(jobs).read_text()):
        expected = sample(folder, job.get("transformer", base), job.get("lora"))
        found, size = load_file(job["latents"])["latents"], expected.abs().max()
        print("result", json.dumps({"name": job["name"], "error": float((found - expected).abs().max() / size),
                                    "learnt": float((before - expected).abs().max() / size)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
