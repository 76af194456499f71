#!/usr/bin/env python3
"""Makes tests/fixtures/model/clip: a small random CLIP vision model and what Wan's image-to-video pipeline computes with
it: the processor's pixels (every 7th row and column) and the hidden states before the last block.

Needs: torch, transformers, diffusers, pillow, numpy, safetensors. torchvision must be absent, so that PIL resizes.
"""
import pathlib
import shutil

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model/clip"
SIZES = {"exact": (224, 224), "wide": (150, 401), "tall": (377, 301), "small": (60, 45)}  # height, width


def image_of(height, width):
    """The same integers as in tests/model/test_clip_image_encoder.cpp."""
    c, y, x = numpy.meshgrid(numpy.arange(3), numpy.arange(height), numpy.arange(width), indexing="ij")
    return ((x * 7 + y * 3 + c * 40 + (x // 9 + y // 11) % 2 * 90 + (x * y) // 64) % 256).astype(numpy.uint8)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=28, num_hidden_layers=4, num_attention_heads=2,
                              image_size=224, patch_size=14, hidden_act="gelu")
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    model.save_pretrained(OUT / "image_encoder")
    processor = CLIPImageProcessor()
    tensors = {}
    for name, size in SIZES.items():
        image = Image.fromarray(image_of(*size).transpose(1, 2, 0))
        pixels = processor(images=image, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**pixels, output_hidden_states=True).hidden_states[-2]
        tensors[name + ".pixels"] = pixels["pixel_values"][:, :, ::7, ::7].contiguous()
        tensors[name + ".hidden"] = hidden.contiguous()
    save_file(tensors, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
