"""The Python half of test_hunyuan_pipelines.cpp: diffusers' pipelines with every part, small and random. Encoders,
tokenizers and VAEs are the fixtures of tests/fixtures/model.

hunyuan_pipelines.py make KIND FOLDER
                        transformer/, run.yaml for the programs here, image.png, and noise.safetensors (latents)
hunyuan_pipelines.py compare KIND FOLDER JOBS
                        samples for each job of the JSON file: "prompt", "latents" and "frames", a folder of pictures,
                        of the programs here, and perhaps "lora". Prints the largest difference of the latents over
                        their largest value, that of the pictures in levels, and how much a LoRA changes

KIND: t2v, i2v (token replace), i2v_concat (HunyuanVideo), t2v_15, i2v_15, i2v_meanflow_15 (1.5, step-distilled).
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance,
                       FlowMatchEulerDiscreteScheduler, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline,
                       HunyuanVideo15Transformer3DModel, HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline,
                       HunyuanVideoTransformer3DModel)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (ByT5Tokenizer, CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, LlamaConfig,
                          LlamaModel, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast,
                          Qwen2_5_VLTextModel, Qwen2Tokenizer, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel,
                          T5EncoderModel)

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from random_wan import randomise  # noqa: E402
from round_frequencies import round_frequencies_once  # noqa: E402

round_frequencies_once()

MODELS = ROOT / "tests/fixtures/model"
TEXT, BPE = MODELS / "hunyuan_text", MODELS / "bpe"
STEPS, FRAMES, SIDE = 4, 5, 64
EMBEDDED_GUIDANCE = 6.0
FP32 = {"dtype": torch.float32}

COMMON = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_refiner_layers": 1,
          "rope_axes_dim": (4, 2, 2), "text_embed_dim": 24}


def transformer_of(kind):
    torch.manual_seed(0)
    if kind.endswith("_15"):
        model = HunyuanVideo15Transformer3DModel(in_channels=9, out_channels=4, patch_size=1, text_embed_2_dim=20,
                                                 image_embed_dim=18, target_size=SIDE,
                                                 use_meanflow="meanflow" in kind, **COMMON)
    else:
        image = {"t2v": {}, "i2v": {"image_condition_type": "token_replace"},
                 "i2v_concat": {"image_condition_type": "latent_concat", "guidance_embeds": False}}[kind]
        model = HunyuanVideoTransformer3DModel(in_channels=9 if kind == "i2v_concat" else 4, out_channels=4,
                                               num_single_layers=2, pooled_projection_dim=24, **image, **COMMON)
    return randomise(model)


def parts_yaml(kind):
    first = not kind.endswith("_15")
    image = kind.startswith("i2v")
    text = {"t2v": "hunyuan", "i2v": "hunyuan_i2v", "i2v_concat": "hunyuan_i2v_concat"}.get(kind, "hunyuan_15")
    language = "{folder}/text_encoder" if first and image else f"{TEXT}/{'text_encoder' if first else 'qwen'}"
    tokenizer = "{folder}/tokenizer" if first else f"{BPE}/qwen"
    out = f"""model:
  architecture: {"hunyuan_video" if first else "hunyuan_video_15"}
  task: {"i2v" if image else "t2v"}
  weights: {{folder}}/transformer
  compute_dtype: fp32
codec:
  type: {"hunyuan_vae" if first else "hunyuan_15_vae"}
  weights: {MODELS}/{"hunyuan_vae" if first else "hunyuan15_vae"}
  tile_size: 0
text:
  type: {text}
  weights: {language}
  tokenizer: {tokenizer}
  weights_2: {TEXT}/{"text_encoder_2" if first else "byt5"}
  dtype: fp32
"""
    if first:
        out += f"  tokenizer_2: {BPE}/clip\n"
    if image and not first:
        out += "image_encoder:\n  type: siglip\n  weights: {folder}/image_encoder\n"
    return out


def run_yaml(kind, folder):
    guidance = "" if kind not in ("t2v", "i2v") else f"  embedded_guidance: {EMBEDDED_GUIDANCE}\n"
    return f"""seed: 7
run:
  threads: 1
data:
  path: {ROOT}/assets/clips
  fps: 8
  frames: [{FRAMES}]
  height: {SIDE}
  width: {SIDE}
  decode_threads: 2
{parts_yaml(kind).replace("{folder}", str(folder))}attention:
  preset: cubes
  spatiotemporal_chunk: [1, 2, 2]
cache:
  dir: {folder}/cache
train:
  steps: 3
  global_batch: 2
  micro_batch: 1
  checkpoint_every: 3
  optimizer:
    lr: 2.0e-2
    warmup_steps: 0
  tensorboard: false
lora:
  rank: 4
  alpha: 6
  save_dtype: fp32
  formats: [comfyui, diffusers, kohya]
sample:
  steps: {STEPS}
  frames: {FRAMES}
  height: {SIDE}
  width: {SIDE}
{guidance}"""


def make(kind, folder):
    transformer_of(kind).save_pretrained(f"{folder}/transformer")
    if kind in ("i2v_15", "i2v_meanflow_15"):  # takes pictures as they are: PIL's resizing is compared elsewhere
        randomise(SiglipVisionModel(SiglipVisionConfig(
            hidden_size=18, intermediate_size=28, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE,
            patch_size=16))).save_pretrained(f"{folder}/image_encoder")
    Path(folder, "run.yaml").write_text(run_yaml(kind, folder))
    if not kind.endswith("_15"):
        Path(folder, "tokenizer").mkdir()
        llama_tokenizer().backend_tokenizer.save(f"{folder}/tokenizer/tokenizer.json")
    if kind in ("i2v", "i2v_concat"):
        llava().save_pretrained(f"{folder}/text_encoder")
    stride = 16 if kind.endswith("_15") else 8
    torch.manual_seed(1)
    noise = torch.randn(1, 4, 1 + (FRAMES - 1) // 4, SIDE // stride, SIDE // stride)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5), (SIDE, SIDE), mode="bilinear")[0]
    pixels = (255 * picture).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"{folder}/image.png")
    start = noise
    if kind in ("i2v", "i2v_concat"):  # diffusers begins with a little of the image, the programs here with noise alone
        model = vae()
        image = model.encode((pixels / 127.5 - 1)[None, :, None]).latent_dist.mode() * model.config.scaling_factor
        start = noise * torch.tensor([0.999]) + image * (1 - torch.tensor([0.999]))
    save_file({"latents": noise}, f"{folder}/diffusers_noise.safetensors")
    save_file({"latents": start.contiguous()}, f"{folder}/noise.safetensors")


def vae():
    return AutoencoderKLHunyuanVideo.from_pretrained(MODELS / "hunyuan_vae", torch_dtype=torch.float32)


def llava():
    """LLaVA of HunyuanVideo's image-to-video, which sees pictures as they are: PIL's resizing is compared elsewhere."""
    tokenizer = llama_tokenizer()
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2,
                                       image_size=SIDE, patch_size=16),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer) + 5, hidden_size=24, intermediate_size=40, num_hidden_layers=5,
            num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
        vision_feature_layer=-2, vision_feature_select_strategy="default"))
    return randomise(model)


def llama_tokenizer():
    tokenizer = Tokenizer.from_file(str(BPE / "llama/tokenizer.json"))
    tokenizer.add_special_tokens(["<image>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>",
                                   pad_token="<|reserved_special_token_0|>")


def merges_of(name):
    return [tuple(line.split(" ")) for line in (BPE / name / "merges.txt").read_text().splitlines()[1:]]


def clip_tokenizer():
    vocab = json.loads((BPE / "clip/vocab.json").read_text())
    return CLIPTokenizer(vocab=vocab, merges=merges_of("clip"), model_max_length=77)


def qwen_tokenizer():
    tokenizer = Qwen2Tokenizer(vocab=json.loads((BPE / "qwen/vocab.json").read_text()), merges=merges_of("qwen"))
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    tokenizer.padding_side = "right"
    return tokenizer


def first_pipeline(kind, folder):
    """HunyuanVideo, and what its call is told."""
    tokenizer = llama_tokenizer()
    parts = {"tokenizer": tokenizer, "tokenizer_2": clip_tokenizer(), "vae": vae(),
             "text_encoder_2": CLIPTextModel.from_pretrained(TEXT / "text_encoder_2", **FP32),
             "transformer": HunyuanVideoTransformer3DModel.from_pretrained(f"{folder}/transformer"),
             "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0)}
    call = {"guidance_scale": EMBEDDED_GUIDANCE, "height": SIDE, "width": SIDE}
    if kind == "t2v":
        template = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["template"]
        pipe = HunyuanVideoPipeline(text_encoder=LlamaModel.from_pretrained(TEXT / "text_encoder", **FP32), **parts)
        place = {}
    else:
        template = pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE["template"]
        size = {"height": SIDE, "width": SIDE}
        pipe = HunyuanVideoImageToVideoPipeline(
            text_encoder=LlavaForConditionalGeneration.from_pretrained(f"{folder}/text_encoder", **FP32),
            image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size), **parts)
        call["image"] = Image.open(f"{folder}/image.png")
        first, rows = len(tokenizer(template.split("<image>")[0]).input_ids), (SIDE // 16) ** 2
        place = {"image_emb_start": first, "image_emb_end": first + rows, "image_emb_len": rows}
    crop = len(tokenizer(template.split("{}")[0]).input_ids)
    return pipe, call | {"prompt_template": {"template": template, "crop_start": crop} | place}


def pipeline_15(kind, folder):
    tokenizer = qwen_tokenizer()
    parts = {"text_encoder": Qwen2_5_VLTextModel.from_pretrained(TEXT / "qwen", **FP32), "tokenizer": tokenizer,
             "text_encoder_2": T5EncoderModel.from_pretrained(TEXT / "byt5", **FP32), "tokenizer_2": ByT5Tokenizer(),
             "transformer": HunyuanVideo15Transformer3DModel.from_pretrained(f"{folder}/transformer"),
             "vae": AutoencoderKLHunyuanVideo15.from_pretrained(MODELS / "hunyuan15_vae", torch_dtype=torch.float32),
             "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0 if "meanflow" in kind else 5.0),
             "guider": ClassifierFreeGuidance(guidance_scale=1.0 if "meanflow" in kind else 6.0)}
    if kind == "t2v_15":
        pipe, call = HunyuanVideo15Pipeline(**parts), {"height": SIDE, "width": SIDE}
    else:
        pipe = HunyuanVideo15ImageToVideoPipeline(
            image_encoder=SiglipVisionModel.from_pretrained(f"{folder}/image_encoder"),
            feature_extractor=SiglipImageProcessor(size={"height": SIDE, "width": SIDE}), **parts)
        call = {"image": Image.open(f"{folder}/image.png")}
    system = f"<|im_start|>system\n{pipe.system_message}<|im_end|>\n<|im_start|>user\n"
    pipe.prompt_template_encode_start_idx = len(tokenizer(system).input_ids)
    return pipe, call


def pipeline(kind, folder):
    pipe, call = pipeline_15(kind, folder) if kind.endswith("_15") else first_pipeline(kind, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call | {"num_frames": FRAMES, "num_inference_steps": STEPS, "output_type": "latent",
                         "latents": load_file(f"{folder}/diffusers_noise.safetensors")["latents"]}


def pictures(pipe, latents):
    video = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return ((video[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 3, 0).numpy()


def compare(kind, folder, jobs):
    for job in json.loads(Path(jobs).read_text()):
        pipe, call = pipeline(kind, folder)
        result = {"prompt": job["prompt"]}
        if "lora" in job:
            before = pipe(prompt=job["prompt"], **call).frames
            if kind.endswith("_15"):
                pipe.transformer.load_lora_adapter(load_file(job["lora"]), prefix="transformer")
            else:
                pipe.load_lora_weights(job["lora"])
        expected = pipe(prompt=job["prompt"], **call).frames
        found, size = load_file(job["latents"])["latents"], expected.abs().max()
        whole = kind != "i2v_concat"  # of which diffusers leaves out the first latent frame
        found = found if whole else found[:, :, 1:]
        result["error"] = float((found - expected).abs().max() / size)
        if "lora" in job:
            result["learnt"] = float((before - expected).abs().max() / size)
        if whole:
            files = sorted(Path(job["frames"]).glob("*.png"))
            shown = np.stack([np.array(Image.open(file).convert("RGB")) for file in files]).astype(float)
            result["levels"] = float(np.abs(shown - pictures(pipe, expected)).max())
        print("result", json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
