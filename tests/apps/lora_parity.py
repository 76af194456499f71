"""Adapters written by the real peft and diffusers, and the weights they give; run by test_lora_parity.cpp.

  make DIR    DIR/base, a small random transformer; DIR/<variant>/ with what the packages write, and
              DIR/<variant>.safetensors, the transformer that the packages make of base and adapter; prints "variant path"
  check DIR   DIR/<variant>_merged/, written by vmoba-convert, must be that transformer
"""
import sys
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

SHAPE = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8,
             ffn_dim=20, num_layers=3, image_dim=None)
ALL = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def base(folder):
    return WanTransformer3DModel.from_pretrained(folder / "base", torch_dtype=torch.float32)


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)


PEFT = {
    "alpha": dict(r=3, lora_alpha=5),
    "patterns": dict(r=3, lora_alpha=5, rank_pattern={r"blocks\.[01]\.attn1\..*": 2, "ffn.net.2": 4, "^blocks.2.attn2.to_q": 1},
                     alpha_pattern={"to_q": 7, r"blocks\.\d+\.attn2\.to_(k|v)": 11, "(attn1|attn2).to_out.0": 13,
                                    "attn1.to_v": 17, "o_v": 19}),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True),
    "dora": dict(r=3, lora_alpha=5, use_dora=True),
    "bias_of_b": dict(r=3, lora_alpha=5, lora_bias=True),
    "dora_patterns": dict(r=3, lora_alpha=5, use_dora=True, use_rslora=True, alpha_pattern={"attn2.*": 9},
                          rank_pattern={"blocks.0.*": 2}),
}


def of_peft(folder, name, settings, seed):
    model = get_peft_model(base(folder), LoraConfig(target_modules=ALL, **settings))
    randomise(model, seed)
    model.save_pretrained(folder / name)
    merged = PeftModel.from_pretrained(base(folder), folder / name).merge_and_unload()
    return folder / name, merged.state_dict()


def pipeline(folder):
    return WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=base(folder))


def fused(folder, load):
    pipe = pipeline(folder)
    load(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.transformer.state_dict()


def adapted(folder, settings, seed):
    model = base(folder)
    model.add_adapter(LoraConfig(target_modules=ALL, **settings))
    randomise(model, seed)
    return model


def of_model(folder, name, model):
    model.save_lora_adapter(folder / name)
    file = folder / name / "pytorch_lora_weights.safetensors"
    # diffusers reads the metadata of a file only where it is told that it is safetensors.
    return file, fused(folder, lambda pipe: pipe.transformer.load_lora_adapter(
        str(folder / name), weight_name=file.name, use_safetensors=True, prefix=None))


def of_pipeline(folder, name, model):
    adapter = next(iter(model.peft_config))
    metadata = {"transformer_lora_adapter_metadata": model.peft_config[adapter].to_dict()}
    WanPipeline.save_lora_weights(folder / name, transformer_lora_layers=get_peft_model_state_dict(
        model, adapter_name=adapter), **metadata)
    file = folder / name / "pytorch_lora_weights.safetensors"
    return file, fused(folder, lambda pipe: pipe.load_lora_weights(str(folder / name)))


def kohya_tensors(folder, seed):
    """Every module that diffusers asks for, each with a rank and an alpha of its own."""
    generator = torch.Generator().manual_seed(seed)
    weights, names = base(folder).state_dict(), {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
    out = {}
    for i in range(SHAPE["num_layers"]):
        modules = {f"attn{n}.{d}": f"{k}_{o}" for n, k in ((1, "self_attn"), (2, "cross_attn")) for d, o in names.items()}
        modules |= {"ffn.net.0.proj": "ffn_0", "ffn.net.2": "ffn_2"}
        for j, (diffusers, kohya) in enumerate(modules.items()):
            rows, columns = weights[f"blocks.{i}.{diffusers}.weight"].shape
            rank = 2 + (i + j) % 3
            key = f"lora_unet_blocks_{i}_{kohya}"
            out[key + ".lora_down.weight"] = torch.randn(rank, columns, generator=generator) * 0.3
            out[key + ".lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.3
            out[key + ".alpha"] = torch.tensor(1 + j) if j % 2 else torch.tensor(0.5 + j)
    return out


def resaved_kohya(folder):
    (folder / "kohya").mkdir()
    file = folder / "kohya" / "lora.safetensors"
    save_file(kohya_tensors(folder, 11), file)
    yield "kohya", file, fused(folder, lambda pipe: pipe.load_lora_weights(str(file)))
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(file), adapter_name="default")
    yield "kohya_resaved", *of_model(folder, "kohya_resaved", pipe.transformer)
    yield "kohya_resaved_by_pipeline", *of_pipeline(folder, "kohya_resaved_by_pipeline", pipe.transformer)


def variants(folder):
    for seed, (name, settings) in enumerate(PEFT.items()):
        yield name, *of_peft(folder, name, settings, seed)
    for seed, name in enumerate(("alpha", "patterns", "rslora", "dora", "bias_of_b")):
        model = adapted(folder, PEFT[name], 20 + seed)
        yield f"model_{name}", *of_model(folder, f"model_{name}", model)
        yield f"pipeline_{name}", *of_pipeline(folder, f"pipeline_{name}", model)
    yield from resaved_kohya(folder)


def make(folder):
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    model.save_pretrained(folder / "base")
    for name, path, expected in variants(folder):
        save_file({key: value.contiguous() for key, value in expected.items()}, folder / f"{name}.safetensors")
        print(f"variant {name} {path}", flush=True)


def check(folder):
    plain = load_file(folder / "base" / "diffusion_pytorch_model.safetensors")
    for path in sorted(folder.glob("*.safetensors")):
        expected = load_file(path)
        found = load_file(folder / f"{path.stem}_merged" / "diffusion_pytorch_model.safetensors")
        assert found.keys() == expected.keys(), (path.stem, found.keys() ^ expected.keys())
        moved = [name for name in plain if not torch.equal(plain[name], expected[name])]
        assert len(moved) >= 3 * len(ALL), (path.stem, "the adapter changes nothing")
        for name in expected:
            difference = (found[name] - expected[name]).abs().max() / expected[name].abs().max()
            assert difference < 2e-6, (path.stem, name, difference)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
