#!/usr/bin/env python3
"""Makes tests/fixtures/model/hunyuan_*: small random HunyuanVideo transformers with diffusers' outputs and gradients.

Needs: pip install torch==2.11.0 diffusers==0.42.1 transformers safetensors
Usage: make_hunyuan_fixtures.py OUT_DIR [CASE ...]
       make_hunyuan_fixtures.py --shapes OUT_FILE   names and shapes of the published models in every layout

hunyuan_t2v_LAYOUT.safetensors and those of 15_t2v and 15_meanflow are the same weights in the original repositories'
and ComfyUI's names; diffusers' own converter gives back 1.0's. Each hunyuan_NAME/ folder is what diffusers' save_pretrained writes (config.json, weights); hunyuan_NAME.safetensors has
  latents, timestep, text, length    the inputs; text behind a sample's length is noise that must not matter
  pooled, guidance                   of 1.0; guidance as users write it (diffusers takes a thousand times as much)
  glyphs, glyph_length, image        of 1.5
  next_timestep                      of step-distilled weights of 1.5
  output                             the transformer's output in fp32
  cotangent                          the loss is sum(output * cotangent)
  grad.<parameter>                   gradient of every parameter
  grad.input.latents, .text, ...     gradients of the inputs
"""
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from diffusers import HunyuanVideo15Transformer3DModel, HunyuanVideoTransformer3DModel
from diffusers.loaders import single_file_utils
from diffusers.models.transformers import transformer_hunyuan_video15
from random_wan import randomise
from round_frequencies import round_frequencies_once
from safetensors.torch import load_file, save_file

round_frequencies_once()

SMALL = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
             num_single_layers=3, num_refiner_layers=2, text_embed_dim=12, pooled_projection_dim=8,
             rope_axes_dim=(4, 2, 2))
CASES = {
    # name: (model, latent [B, C, T, H, W], text tokens of each sample)
    "t2v": (SMALL, (2, 4, 3, 6, 8), (7, 3)),
    # Patches in time, other channels out than in, another feed-forward, no guidance, a single text token, an odd grid.
    "variant": (dict(num_attention_heads=3, attention_head_dim=12, in_channels=5, out_channels=3, num_layers=1,
                     num_single_layers=1, num_refiner_layers=1, mlp_ratio=2, patch_size=1, patch_size_t=2,
                     guidance_embeds=False, text_embed_dim=8, pooled_projection_dim=6, rope_axes_dim=(4, 4, 4)),
                (1, 5, 4, 3, 9), (1,)),
    "replace": (SMALL | dict(num_layers=1, num_single_layers=1, num_refiner_layers=1,
                             image_condition_type="token_replace"), (2, 4, 3, 6, 8), (7, 3)),
    "concat": (SMALL | dict(num_layers=1, num_single_layers=1, num_refiner_layers=1, in_channels=9,
                            guidance_embeds=False, image_condition_type="latent_concat"), (1, 9, 3, 6, 8), (4,)),
}
SMALL_15 = dict(num_attention_heads=2, attention_head_dim=8, in_channels=9, out_channels=4, num_layers=3,
                num_refiner_layers=2, text_embed_dim=12, text_embed_2_dim=10, image_embed_dim=6,
                rope_axes_dim=(4, 2, 2))
CASES_15 = {
    # name: (model, latents, text tokens, glyph tokens, image tokens of all samples)
    "15_t2v": (SMALL_15, (2, 9, 3, 4, 5), (7, 5), (3, 0), 0),
    "15_i2v": (SMALL_15 | dict(num_layers=1), (2, 9, 3, 4, 5), (7, 5), (3, 0), 4),
    "15_variant": (dict(num_attention_heads=3, attention_head_dim=12, in_channels=7, out_channels=3, num_layers=1,
                        num_refiner_layers=1, mlp_ratio=2, patch_size=2, text_embed_dim=8, text_embed_2_dim=6,
                        image_embed_dim=6, rope_axes_dim=(4, 4, 4)), (1, 7, 3, 4, 8), (1,), (2,), 0),
    "15_meanflow": (SMALL_15 | dict(use_meanflow=True), (2, 9, 3, 4, 5), (7, 5), (3, 0), 4),
}
# diffusers fixes the inner width of the map of glyph tokens at 2048: four million values of no use here.
GLYPH_HIDDEN = 14


def masks(lengths, most):
    return torch.tensor([[1] * length + [0] * (most - length) for length in lengths])


def store(name, out, model, inputs, leaves, output):
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()
    tensors = inputs | leaves | {"output": output, "cotangent": cotangent}
    tensors |= {f"grad.input.{key}": value.grad for key, value in leaves.items()}
    zeros = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    tensors |= {f"grad.{key}": zeros[key] if value.grad is None else value.grad
                for key, value in model.named_parameters()}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()},
              out / f"hunyuan_{name}.safetensors")
    model.save_pretrained(out / f"hunyuan_{name}")


def make(name, out):
    settings, latent_shape, lengths = CASES[name]
    torch.manual_seed(list(CASES).index(name))
    model = randomise(HunyuanVideoTransformer3DModel(**settings))
    batch = latent_shape[0]
    leaves = {"latents": torch.randn(latent_shape),
              "text": torch.randn(batch, max(lengths), settings["text_embed_dim"]),
              "pooled": torch.randn(batch, settings["pooled_projection_dim"])}
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    timestep = torch.tensor([903.25, 17.5])[:batch]
    guidance = torch.tensor([6.0, 1.0])[:batch]
    guided = settings.get("guidance_embeds", True)
    output = model(leaves["latents"], timestep, leaves["text"], masks(lengths, max(lengths)), leaves["pooled"],
                   guidance * 1000 if guided else None, return_dict=False)[0]
    inputs = {"timestep": timestep, "length": torch.tensor(lengths)}
    if guided:
        inputs["guidance"] = guidance
    if name == "replace":  # a timestep for each latent frame, the first one given
        inputs["timestep"] = timestep[:, None].repeat(1, latent_shape[2])
        inputs["timestep"][:, 0] = 0
    store(name, out, model, inputs, leaves, output)


def make_15(name, out):
    settings, latent_shape, lengths, glyph_lengths, images = CASES_15[name]
    torch.manual_seed(100 + list(CASES_15).index(name))
    projection = transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection
    model = HunyuanVideo15Transformer3DModel(**settings)
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    model.context_embedder_2 = projection(settings["text_embed_2_dim"], GLYPH_HIDDEN, width)
    randomise(model)
    batch = latent_shape[0]
    leaves = {"latents": torch.randn(latent_shape),
              "text": torch.randn(batch, max(lengths), settings["text_embed_dim"]),
              "glyphs": torch.randn(batch, max(glyph_lengths), settings["text_embed_2_dim"])}
    if images:
        leaves["image"] = torch.randn(batch, images, settings["image_embed_dim"])
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    timestep = torch.tensor([903.25, 17.5])[:batch]
    image = leaves["image"] if images else torch.zeros(batch, 2, settings["image_embed_dim"])
    inputs = {"timestep": timestep, "length": torch.tensor(lengths), "glyph_length": torch.tensor(glyph_lengths)}
    if settings.get("use_meanflow"):
        inputs["next_timestep"] = torch.tensor([850.0, 0.0])[:batch]
    output = model(leaves["latents"], timestep, leaves["text"], masks(lengths, max(lengths)),
                   inputs.get("next_timestep"), leaves["glyphs"], masks(glyph_lengths, max(glyph_lengths)), image,
                   return_dict=False)[0]
    store(name, out, model, inputs, leaves, output)


# Names of modules, original <- diffusers, in the order in which they are tried.
RENAMED = [
    ("x_embedder.proj", "img_in.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_embed.timestep_embedder_r.linear_1", "time_r_in.mlp.0"),
    ("time_embed.timestep_embedder_r.linear_2", "time_r_in.mlp.2"),
    ("cond_type_embed", "cond_type_embedding"),
    ("context_embedder_2.norm", "byt5_in.layernorm"),
    ("context_embedder_2.linear_1", "byt5_in.fc1"),
    ("context_embedder_2.linear_2", "byt5_in.fc2"),
    ("context_embedder_2.linear_3", "byt5_in.fc3"),
    ("image_embedder.norm_in", "vision_in.proj.0"),
    ("image_embedder.linear_1", "vision_in.proj.1"),
    ("image_embedder.linear_2", "vision_in.proj.3"),
    ("image_embedder.norm_out", "vision_in.proj.4"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
    ("context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.linear_1"),
    ("context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.linear_2"),
    ("context_embedder.proj_in", "txt_in.input_embedder"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
]
IN_BLOCKS = {
    "context_embedder.token_refiner.refiner_blocks": ("txt_in.individual_token_refiner.blocks", [
        ("norm1", "norm1"), ("norm2", "norm2"), ("attn.to_out.0", "self_attn_proj"), ("ff.net.0.proj", "mlp.fc1"),
        ("ff.net.2", "mlp.fc2"), ("norm_out.linear", "adaLN_modulation.1")]),
    "transformer_blocks": ("double_blocks", [
        ("norm1.linear", "img_mod.linear"), ("norm1_context.linear", "txt_mod.linear"),
        ("attn.to_out.0", "img_attn_proj"), ("attn.to_add_out", "txt_attn_proj"),
        ("attn.norm_q", "img_attn_q_norm"), ("attn.norm_k", "img_attn_k_norm"),
        ("attn.norm_added_q", "txt_attn_q_norm"), ("attn.norm_added_k", "txt_attn_k_norm"),
        ("ff.net.0.proj", "img_mlp.fc1"), ("ff.net.2", "img_mlp.fc2"),
        ("ff_context.net.0.proj", "txt_mlp.fc1"), ("ff_context.net.2", "txt_mlp.fc2")]),
    "single_transformer_blocks": ("single_blocks", [
        ("norm.linear", "modulation.linear"), ("attn.norm_q", "q_norm"), ("attn.norm_k", "k_norm"),
        ("proj_out", "linear2")]),
}
FUSED = {
    "context_embedder.token_refiner.refiner_blocks": [("self_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v"))],
    "transformer_blocks": [("img_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
                           ("txt_attn_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"))],
    "single_transformer_blocks": [("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))],
}
# ComfyUI's names, of the original ones.
COMFYUI = [(r"_mod\.linear", "_mod.lin"), (r"\.modulation\.linear", ".modulation.lin"),
           (r"_attn_q_norm\.weight", "_attn.norm.query_norm.scale"),
           (r"_attn_k_norm\.weight", "_attn.norm.key_norm.scale"),
           (r"(single_blocks\.\d+\.)q_norm\.weight", r"\1norm.query_norm.scale"),
           (r"(single_blocks\.\d+\.)k_norm\.weight", r"\1norm.key_norm.scale"),
           (r"_attn_qkv", "_attn.qkv"), (r"_attn_proj", "_attn.proj"), (r"mlp\.fc1", "mlp.0"), (r"mlp\.fc2", "mlp.2"),
           (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.0", r"\1.in_layer"),
           (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.2", r"\1.out_layer"),
           (r"c_embedder\.linear_1", "c_embedder.in_layer"), (r"c_embedder\.linear_2", "c_embedder.out_layer")]


def in_original_layout(state, fuse_double):
    """diffusers' weights under the original names; without `fuse_double` q, k and v of double blocks stay apart."""
    out = {}
    for name, tensor in state.items():
        block = re.match(r"(.*blocks)\.(\d+)\.(.*)\.(\w+)$", name)
        if not block:
            module, kind = name.rsplit(".", 1)
            if module == "norm_out.linear":
                tensor = torch.cat(tensor.chunk(2)[::-1])
            out[f"{dict(RENAMED)[module]}.{kind}"] = tensor
            continue
        prefix, number, module, kind = block.groups()
        stored, renamed = IN_BLOCKS[prefix]
        fused = [(into, parts) for into, parts in FUSED[prefix] if module in parts]
        if fused and (fuse_double or prefix != "transformer_blocks"):
            into, parts = fused[0]
            out[f"{stored}.{number}.{into}.{kind}"] = torch.cat(
                [state[f"{prefix}.{number}.{part}.{kind}"] for part in parts])
        elif fused:
            into, parts = fused[0]
            out[f"{stored}.{number}.{into[:-3]}{'qkv'[parts.index(module)]}.{kind}"] = tensor
        else:
            out[f"{stored}.{number}.{dict(renamed)[module]}.{kind}"] = tensor
    return out


def comfyui_names(state):
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in COMFYUI:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def check_converter(original, state, width):
    """diffusers' converter of single files, with its width of 3072 replaced, gives the weights back."""
    source = inspect.getsource(single_file_utils.convert_hunyuan_video_transformer_to_diffusers)
    scope = dict(vars(single_file_utils))
    exec(source.replace("hidden_size = 3072", f"hidden_size = {width}"), scope)
    found = scope["convert_hunyuan_video_transformer_to_diffusers"](dict(original))
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def layouts_of(name, state):
    if "cond_type_embed.weight" in state:
        return {"original": in_original_layout(state, False), "comfyui": in_original_layout(state, True)}
    original = in_original_layout(state, True)
    return {"original": original, "comfyui": comfyui_names(original)}


def make_layouts(name, out):
    folder = out / f"hunyuan_{name}"
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    files = layouts_of(name, state)
    if name == "t2v":
        check_converter(files["original"], state, state["x_embedder.proj.bias"].numel())
    for layout, tensors in files.items():
        save_file({key: value.contiguous().clone() for key, value in tensors.items()},
                  out / f"hunyuan_{name}_{layout}.safetensors")


def shapes(path):
    """Names and shapes of diffusers' published models, blocks of one kind once."""
    published = {"hunyuan_video": HunyuanVideoTransformer3DModel, "hunyuan_video_15": HunyuanVideo15Transformer3DModel}
    out = {}
    for name, kind in published.items():
        with torch.device("meta"):
            model = kind()
        parameters = {key: list(value.shape) for key, value in model.named_parameters()}
        first = {key: value for key, value in parameters.items()
                 if "transformer_blocks." not in key or "transformer_blocks.0." in key}
        layouts = {}
        for layout, tensors in layouts_of(name, {key: value.detach() for key, value in model.named_parameters()}).items():
            once = {key: list(value.shape) for key, value in tensors.items()
                    if not re.search(r"_blocks\.[1-9]|\.blocks\.[1-9]", key)}
            layouts[layout] = {"tensors": len(tensors), "shapes": once}
        out[name] = {"layouts": layouts, "tensors": len(parameters), "values": sum(value.numel() for value in model.parameters()),
                     "blocks": [len(model.transformer_blocks), len(getattr(model, "single_transformer_blocks", []))],
                     "shapes": first}
    Path(path).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--shapes":
        shapes(sys.argv[2])
        sys.exit()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for case in sys.argv[2:] or [*CASES, *CASES_15]:
        (make if case in CASES else make_15)(case, folder)
        if case in ("t2v", "15_t2v", "15_meanflow"):
            make_layouts(case, folder)
