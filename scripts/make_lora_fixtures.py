#!/usr/bin/env python3
"""Makes tests/fixtures/model/lora/: a peft adapter of the small Wan transformer wan_t2v with its output and gradients.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 safetensors
Usage: make_lora_fixtures.py tests/fixtures/model

  lora/adapter_model.safetensors, adapter_config.json    what peft's save_pretrained writes (alpha is not the rank)
  lora_expected.safetensors                              output in fp32 for the inputs of wan_t2v.safetensors, and
                                                         grad.<module>.lora_A.weight, .lora_B.weight of
                                                         sum(output * cotangent)
"""
import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(5)
base = WanTransformer3DModel.from_pretrained(folder / "wan_t2v", torch_dtype=torch.float32)
targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=targets))
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
model.save_pretrained(folder / "lora")
(folder / "lora" / "README.md").unlink(missing_ok=True)
inputs = load_file(folder / "wan_t2v.safetensors")
output = model(inputs["latents"], inputs["timestep"], inputs["text"], return_dict=False)[0]
(output * inputs["cotangent"]).sum().backward()
expected = {"output": output.detach()}
for name, parameter in model.named_parameters():
    if "lora_" in name:
        name = name.removeprefix("base_model.model.").replace(".default.", ".")
        expected[f"grad.{name}"] = parameter.grad
save_file(expected, folder / "lora_expected.safetensors")
