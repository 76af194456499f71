"""HunyuanVideo's part of check_comfyui.py: 1.0 (T2V, I2V by concat), 1.5 (T2V, I2V, step-distilled weights).

Weights in ComfyUI's layout and in the original names; LoRAs of vmoba-train in ComfyUI's format and kohya's.
"""
import torch
from comfyui_loaders import OUTPUT_TOLERANCE, STRENGTH, WEIGHT_TOLERANCE, require, require_close, run
from diffusers import HunyuanVideo15Transformer3DModel, HunyuanVideoTransformer3DModel
from random_wan import randomise

TEXT, GLYPHS, IMAGE, POOLED, CHANNELS = 48, 1472, 1152, 768, 16
COMMON = dict(num_attention_heads=2, attention_head_dim=128, num_layers=2, num_refiner_layers=2, text_embed_dim=TEXT,
              out_channels=CHANNELS)
FIRST = COMMON | dict(num_single_layers=2, pooled_projection_dim=POOLED, in_channels=CHANNELS)
SECOND = COMMON | dict(in_channels=2 * CHANNELS + 1)
KINDS = {"hunyuan": FIRST,
         "hunyuan_concat": FIRST | dict(in_channels=2 * CHANNELS + 1, guidance_embeds=False,
                                        image_condition_type="latent_concat"),
         "hunyuan_15": SECOND | dict(task_type="t2v"),
         "hunyuan_15_i2v": SECOND | dict(task_type="i2v"),
         "hunyuan_15_meanflow": SECOND | dict(task_type="i2v", use_meanflow=True)}
MODEL_CLASS = {"hunyuan": "HunyuanVideo", "hunyuan_concat": "HunyuanVideoI2V"}  # others HunyuanVideo15
# Of a double block: q, k and v as one map, their output and two maps of the feed-forward, twice; a single block has
# linear1 and linear2.
PATCHED = {"hunyuan": 2 * 8 + 2 * 2, "hunyuan_15": 2 * 8}
GUIDANCE, NEXT_SIGMA = 6.0, 0.25


def is_15(kind):
    return kind.startswith("hunyuan_15")


def knows_15(comfyui):
    return hasattr(comfyui.comfy.model_base, "HunyuanVideo15")


def inputs(kind):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    patch = 1 if is_15(kind) else 2
    size = (3, 2 * patch, 4 * patch)
    given = {"latents": draw(1, CHANNELS, *size), "text": draw(1, 7, TEXT)}
    if KINDS[kind]["in_channels"] > CHANNELS:
        given["condition"] = draw(1, CHANNELS + 1, *size)
    if not is_15(kind):
        return given | {"pooled": draw(1, POOLED)}
    given["glyphs"] = draw(1, 5, GLYPHS)
    return given | ({"image": draw(1, 9, IMAGE)} if kind != "hunyuan_15" else {})


def ones(tokens):
    return torch.ones(1, tokens.shape[1], dtype=torch.long)


@torch.no_grad()
def velocity_of_diffusers(folder, kind, sigma):
    given, timestep = inputs(kind), torch.tensor([1000 * sigma])
    latents = torch.cat([given["latents"]] + [given[c] for c in ("condition",) if c in given], 1)
    text = given["text"]
    if not is_15(kind):
        model = HunyuanVideoTransformer3DModel.from_pretrained(folder).eval()
        guidance = torch.tensor([1000 * GUIDANCE]) if model.config.guidance_embeds else None
        return model(latents, timestep, text, ones(text), given["pooled"], guidance, return_dict=False)[0]
    model = HunyuanVideo15Transformer3DModel.from_pretrained(folder).eval()
    next_timestep = torch.tensor([1000 * NEXT_SIGMA]) if model.config.use_meanflow else None
    image = given.get("image", torch.zeros(1, 2, IMAGE))
    return model(latents, timestep, text, ones(text), next_timestep, given["glyphs"], ones(given["glyphs"]), image,
                 return_dict=False)[0]


def load(comfyui, file, kind):
    return comfyui.model(file, MODEL_CLASS.get(kind, "HunyuanVideo15"))


def velocity(comfyui, patcher, kind, sigma):
    given = inputs(kind)
    more = {"transformer_options": {"sigmas": torch.tensor([sigma]),
                                    "sample_sigmas": torch.tensor([sigma, NEXT_SIGMA, 0.0])}}
    if is_15(kind):
        more |= {"txt_byt5": given["glyphs"]} | ({"clip_fea": given["image"]} if "image" in given else {})
    else:
        more |= {"y": given["pooled"], "guidance": torch.tensor([GUIDANCE])}
    return comfyui.velocity(patcher, given["latents"], sigma, given["text"], given.get("condition"), **more)


def check_weights(comfyui, programs, folder, kind):
    file, half_file = folder / f"{kind}.safetensors", folder / f"{kind}_bf16.safetensors"
    run(programs / "vmoba-convert", folder / kind, file, "--layout", "comfyui")
    run(programs / "vmoba-convert", folder / kind, half_file, "--layout", "comfyui", "--dtype", "bf16")
    patcher = load(comfyui, file, kind)
    for sigma in (0.4, 1.0):
        require_close(velocity(comfyui, patcher, kind, sigma), velocity_of_diffusers(folder / kind, kind, sigma),
                      OUTPUT_TOLERANCE, f"{kind}, timestep {1000 * sigma:.0f}, ComfyUI and diffusers")
    half = load(comfyui, half_file, kind).model.state_dict()
    for name, tensor in patcher.model.state_dict().items():
        if name.startswith("diffusion_model."):
            require(torch.equal(half[name], tensor.bfloat16().float()), kind, "in bf16:", name)
    if not is_15(kind):  # ComfyUI reads 1.0's original names as well
        run(programs / "vmoba-convert", folder / kind, folder / f"{kind}_original", "--layout", "original")
        original = load(comfyui, folder / f"{kind}_original/diffusion_pytorch_model.safetensors", kind)
        require_close(velocity(comfyui, original, kind, 0.4), velocity_of_diffusers(folder / kind, kind, 0.4),
                      OUTPUT_TOLERANCE, f"{kind}, original names")


def train(programs, folder, kind):
    """A LoRA run; the folder of its files."""
    run(programs / "vmoba-train", "--config", "tests/fixtures/train/tiny_hunyuan.yaml", f"run.dir={folder}/{kind}_lora",
        f"model.architecture={'hunyuan_video_15' if is_15(kind) else 'hunyuan_video'}",
        f"model.weights={folder / kind}", f"text.dim={TEXT}", f"text.pooled_dim={0 if is_15(kind) else POOLED}",
        "lora.rank=4", "lora.alpha=6", "lora.formats=[comfyui, diffusers, kohya]", "lora.save_dtype=fp32",
        "train.steps=3", "train.checkpoint_every=3", "train.optimizer.lr=0.02")
    return folder / f"{kind}_lora/checkpoint-3/lora"


def check_lora(comfyui, programs, folder, kind, file):
    """A LoRA file of ComfyUI's format beside the merged weights."""
    merged = folder / "merged.safetensors"
    merge = ("--lora", file, "--lora-strength", STRENGTH, "--architecture",
             "hunyuan_video_15" if is_15(kind) else "hunyuan_video")
    run(programs / "vmoba-convert", folder / kind, merged, "--layout", "comfyui", *merge)
    run(programs / "vmoba-convert", folder / kind, folder / "merged", "--layout", "diffusers", *merge)
    base = load(comfyui, folder / f"{kind}.safetensors", kind)
    complaints, patched = comfyui.with_lora(base, file, STRENGTH)
    require(not complaints, kind, file.name, complaints[:3])
    require(len(patched.patches) == PATCHED[kind], kind, len(patched.patches), "weights patched, expected",
            PATCHED[kind])
    before, found = velocity(comfyui, base, kind, 0.4), velocity(comfyui, patched, kind, 0.4)
    expected = load(comfyui, merged, kind).model.state_dict()
    weights = patched.model.state_dict()
    worst = max(float((weights[k] - v).abs().max() / v.abs().max()) for k, v in expected.items()
                if k.startswith("diffusion_model."))
    print(f"{kind}, patched weights and merged ones: {worst:.1e}")
    require(worst <= WEIGHT_TOLERANCE, kind, "patched weights differ by", worst)
    require_close(found, velocity_of_diffusers(folder / "merged", kind, 0.4), OUTPUT_TOLERANCE,
                  f"{kind}, ComfyUI with the LoRA and diffusers with merged weights")
    require((found - before).abs().max() > 1e-2 * before.abs().max(), kind, "changes nothing")
    comfyui.comfy.model_management.unload_all_models()


def check_hunyuan(comfyui, programs, folder):
    for seed, (kind, settings) in enumerate(KINDS.items()):
        if is_15(kind) and not knows_15(comfyui):
            print(f"{kind}: not looked at, this ComfyUI does not know HunyuanVideo 1.5")
            continue
        torch.manual_seed(20 + seed)
        model = HunyuanVideo15Transformer3DModel if is_15(kind) else HunyuanVideoTransformer3DModel
        patches = dict(patch_size=1, patch_size_t=1) if is_15(kind) else {}
        randomise(model(**settings, **patches)).save_pretrained(folder / kind)
        check_weights(comfyui, programs, folder, kind)
        if kind not in PATCHED:
            continue
        files = train(programs, folder, kind)
        check_lora(comfyui, programs, folder, kind, files / "comfyui.safetensors")
        converted = folder / f"{kind}_converted.safetensors"
        run(programs / "vmoba-convert", files / "diffusers.safetensors", converted, "--layout", "comfyui",
            "--architecture", "hunyuan_video_15" if is_15(kind) else "hunyuan_video")
        check_lora(comfyui, programs, folder, kind, converted)
        base = load(comfyui, folder / f"{kind}.safetensors", kind)
        for other in ("kohya", "diffusers"):
            complaints, patched = comfyui.with_lora(base, files / f"{other}.safetensors", 1.0)
            print(f"{kind}, {other}.safetensors: {len(patched.patches)} of {PATCHED[kind]} weights patched, "
                  f"{len(complaints)} tensors not loaded")
