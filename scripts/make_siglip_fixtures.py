#!/usr/bin/env python3
"""Makes tests/fixtures/model/siglip: a small random SigLIP vision model and what HunyuanVideo 1.5's image-to-video
pipeline computes with it: the processor's pixels (every 3rd row and column) and the last hidden states.

Needs: torch, transformers, diffusers, pillow, numpy, safetensors. torchvision must be absent, so that PIL resizes.
"""
import pathlib
import shutil

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline
from make_clip_fixtures import image_of
from PIL import Image
from safetensors.torch import save_file
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model/siglip"
PIXELS = 45  # three whole patches of 14 and three pixels more, as 384 has 27 and six more
SIZES = {"exact": (PIXELS, PIXELS), "wide": (150, 401), "small": (31, 23)}  # height, width


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(7)
    model = SiglipVisionModel(SiglipVisionConfig(
        hidden_size=18, intermediate_size=28, num_hidden_layers=3, num_attention_heads=3, image_size=PIXELS,
        patch_size=14)).eval()
    for name, p in model.named_parameters():
        p.normal_(0, 0.3)
        if "norm" in name and name.endswith("weight"):
            p.add_(1)
    model.save_pretrained(OUT / "image_encoder")
    processor = SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    tensors = {}
    for name, size in SIZES.items():
        image = Image.fromarray(image_of(*size).transpose(1, 2, 0))
        pixels = processor.preprocess(images=image, do_resize=True, return_tensors="pt", do_convert_rgb=True)
        hidden = HunyuanVideo15ImageToVideoPipeline._get_image_embeds(model, processor, image, torch.device("cpu"))
        tensors[name + ".pixels"] = pixels["pixel_values"][:, :, ::3, ::3].contiguous()
        tensors[name + ".hidden"] = hidden.contiguous()
    save_file(tensors, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
