"""The real packages on files that the programs write; run by test_convert_app.cpp with .venv-tests. Exits 0 where all holds.

  make DIR              small random transformers: DIR/t2v, DIR/i2v (CLIP tokens) as diffusers' save_pretrained writes them
  layouts DIR           DIR/<kind>_original.safetensors, <kind>_comfyui.safetensors and <kind>_sharded/ were converted from
                        DIR/<kind>: diffusers' own converter and loaders must give the transformer of DIR/<kind>
  lora DIR CHECKPOINT   files of CHECKPOINT/lora and the merged DIR/merged: each must load in diffusers without a warning
                        and give the output of base + scale * B A, taken from CHECKPOINT/state
"""
import io
import logging
import sys
import warnings
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file

SHAPES = {"t2v": dict(in_channels=16, out_channels=16),
          "i2v": dict(in_channels=36, out_channels=16, image_dim=20, added_kv_proj_dim=48)}
COMMON = dict(num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=3)


def make(folder):
    for seed, (kind, settings) in enumerate(SHAPES.items()):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(**COMMON, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
        model.save_pretrained(folder / kind)


def require_equal(found, expected, what):
    assert found.keys() == expected.keys(), (what, found.keys() ^ expected.keys())
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), (what, name)


def layouts(folder):
    for kind in SHAPES:
        expected = WanTransformer3DModel.from_pretrained(folder / kind).state_dict()
        for layout in ("original", "comfyui"):
            path = folder / f"{kind}_{layout}.safetensors"
            require_equal(convert_wan_transformer_to_diffusers(load_file(path)), expected, path)
            loaded = WanTransformer3DModel.from_single_file(str(path), config=str(folder / kind), local_files_only=True)
            require_equal(loaded.state_dict(), expected, path)
        model, report = WanTransformer3DModel.from_pretrained(folder / f"{kind}_sharded", output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        require_equal(model.state_dict(), expected, f"{kind}_sharded")
        assert len(list((folder / f"{kind}_sharded").glob("*-of-*.safetensors"))) > 1


def output(model):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 4, 8, generator=generator)
    text = torch.randn(1, 5, COMMON["text_dim"], generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([700.0]), text, return_dict=False)[0]


def lora(folder, checkpoint, alpha):
    stored = load_file(checkpoint / "state" / "lora.safetensors")
    model = WanTransformer3DModel.from_pretrained(folder / "t2v").eval()
    plain = output(model)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, a in stored.items():
            if ".lora_A." in name:
                b = stored[name.replace("lora_A", "lora_B")]
                weights[name.replace(".lora_A", "")].add_(b @ a * (alpha / a.shape[0]))
    expected = output(model)
    moved = (expected - plain).abs().max()
    assert moved > 1e-3, f"the LoRA changes nothing: {moved}"
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    handler.setLevel(logging.WARNING)
    diffusers_logging.get_logger("diffusers").addHandler(handler)
    logging.getLogger("peft").addHandler(handler)
    for file in ("comfyui", "diffusers", "kohya"):
        pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None,
                               transformer=WanTransformer3DModel.from_pretrained(folder / "t2v").eval())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipeline.load_lora_weights(str(checkpoint / "lora"), weight_name=f"{file}.safetensors")
        assert not heard.getvalue(), (file, heard.getvalue())
        difference = (output(pipeline.transformer) - expected).abs().max()
        assert difference < 1e-5 * expected.abs().max(), (file, difference)
    merged = WanTransformer3DModel.from_pretrained(folder / "merged").eval()
    difference = (output(merged) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max(), ("merged", difference)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(folder)
    elif command == "layouts":
        layouts(folder)
    else:
        lora(folder, Path(sys.argv[3]), float(sys.argv[4]))
