"""The Python half of test_finetune.cpp.

finetune.py make FOLDER                                     a small random Wan transformer, and inputs for sampling
finetune.py compare TRANSFORMER FOLDER LATENTS [LORA]       prints the largest difference of diffusers' final latents
                                                            from LATENTS, and how far the untrained model's are
"""
import logging
import sys

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file


def make(folder):
    torch.manual_seed(0)
    model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=24, in_channels=16, out_channels=16,
                                  text_dim=32, freq_dim=32, ffn_dim=64, num_layers=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.2 * noise + ("norm" in name))
    model.save_pretrained(f"{folder}/transformer")
    save_file({"latents": torch.randn(1, 16, 2, 4, 8), "prompt_embeds": torch.randn(1, 8, 32),
               "negative_prompt_embeds": torch.randn(1, 8, 32)}, f"{folder}/inputs.safetensors")


def sample(transformer, folder, lora):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                        num_train_timesteps=1000, flow_shift=5.0)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler,
                       transformer=WanTransformer3DModel.from_pretrained(transformer))
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora)
    return pipe(**load_file(f"{folder}/inputs.safetensors"), height=32, width=64, num_frames=5, num_inference_steps=4,
                guidance_scale=3.0, output_type="latent").frames


def compare(transformer, folder, latents, lora=None):
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    diffusers_logging.get_logger("diffusers").addHandler(handler)
    expected = sample(transformer, folder, lora)
    found = load_file(latents)["latents"]
    before = sample(f"{folder}/transformer", folder, None)
    size = expected.abs().max()
    for warning in warnings:
        print("warning", warning)
    print("error", float((found - expected).abs().max() / size))
    print("learnt", float((before - expected).abs().max() / size))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
