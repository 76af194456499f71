#!/usr/bin/env python3
"""Makes tests/fixtures/model/hunyuan_text: small random encoders of HunyuanVideo and HunyuanVideo 1.5 and what
diffusers' pipelines make of captions with them. Tokenizers are those of make_tokenizer_fixtures.py, run first.

Needs: torch, transformers, diffusers, safetensors (their versions are written into cases.json).

text_encoder/      LlamaModel, in shards        text_encoder_2/  CLIPTextModel
qwen/              Qwen2_5_VLTextModel          byt5/            T5EncoderModel with ByT5's vocabulary
cases.json         "llama", "clip", "qwen": captions; "crop" and "max_tokens" of the language models
expected.safetensors   llama.N [X, E], clip.N [P], qwen.N [X, E], byt5.N [G, U] of caption N
"""
import copy
import json
import pathlib
import shutil
from types import SimpleNamespace

import diffusers
import torch
import transformers
from diffusers import HunyuanVideo15Pipeline, HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel,
                          PreTrainedTokenizerFast, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen2Tokenizer, T5Config,
                          T5EncoderModel)

MODELS = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model"
BPE, OUT = MODELS / "bpe", MODELS / "hunyuan_text"
LLAMA_TOKENS, QWEN_TOKENS = 256, 300
QUOTES = ['A sign says "OPEN" in the rain.', "no quotes, it's an 'apostrophe'", '“Hello 猫” and "two" and "two" again',
          'an empty "" pair', 'an "unpaired quote', 'over "a line\nfeed" here', '"' + "é" * 300 + '"', ""]


def randomise(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif "relative_attention_bias" in name:
                p.normal_(0, 1)
            elif "embed" in name:
                p.normal_(0, 1)
            elif p.dim() > 1:
                p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * torch.randn_like(p))
            p.copy_(p.to(torch.bfloat16))
    return model.eval()


def save(model, name, shard="5GB"):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    # A copy: its rotary frequencies become bf16, too.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    return model


def captions(count_of, lengths):
    """Captions of exactly so many tokens."""
    out = []
    for length in lengths:
        text = "" if length == 0 else "a" + " a" * (length - 1)
        assert count_of(text) == length, (length, count_of(text))
        out.append(text)
    return out


def llama(tensors):
    tokenizer = Tokenizer.from_file(str(BPE / "llama/tokenizer.json"))
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)])
    prompts = captions(lambda t: len(tokenizer.encode(t, add_special_tokens=False).ids), [0, 1, 256, 400])
    prompts += ["A cat sits on a mat.", " leading blank", "夕方の港で漁船が揺れている。", "x <|eot_id|> y", "\n\nline"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>",
                                   pad_token="<|reserved_special_token_0|>")
    model = LlamaModel(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 5, hidden_size=24, intermediate_size=40, num_hidden_layers=5,
        num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}))
    model = save(randomise(model, 1), "text_encoder", "60KB")
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    crop = len(tokenizer.encode(template.split("{}")[0]).ids)
    pipe = SimpleNamespace(tokenizer=fast, text_encoder=model, _execution_device="cpu")
    embeds, mask = HunyuanVideoPipeline._get_llama_prompt_embeds(
        pipe, prompts, {"template": template, "crop_start": crop}, dtype=torch.float32,
        max_sequence_length=LLAMA_TOKENS)
    for n, (row, length) in enumerate(zip(embeds, mask.sum(1))):
        tensors[f"llama.{n}"] = row[:length]
    print("llama crop", crop, "lengths", mask.sum(1).tolist())
    return {"prompts": prompts, "crop": crop, "max_tokens": LLAMA_TOKENS, "lengths": mask.sum(1).tolist()}


def clip(tensors):
    vocab = json.loads((BPE / "clip/vocab.json").read_text())
    merges = [tuple(line.split(" ")) for line in (BPE / "clip/merges.txt").read_text().splitlines()[1:]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    end = tokenizer.eos_token_id
    prompts = ["", "a cat", "A Cat SITS  on a mat.", "a" + " a" * 100, "b" * 90, "x <|endoftext|> y", "猫 😀 İ"]
    model = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=77, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end))
    model = save(randomise(model, 2), "text_encoder_2")
    pipe = SimpleNamespace(tokenizer_2=tokenizer, text_encoder_2=model, _execution_device="cpu")
    pooled = HunyuanVideoPipeline._get_clip_prompt_embeds(pipe, prompts, dtype=torch.float32)
    for n, row in enumerate(pooled):
        tensors[f"clip.{n}"] = row
    return {"prompts": prompts}


def qwen(tensors):
    vocab = json.loads((BPE / "qwen/vocab.json").read_text())
    merges = [tuple(line.split(" ")) for line in (BPE / "qwen/merges.txt").read_text().splitlines()[1:]]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    tokenizer.padding_side = "right"
    prompts = captions(lambda t: len(tokenizer(t).input_ids), [0, 1, QWEN_TOKENS - 5, 500])
    prompts += ["A cat sits on a mat.", "\nleading line feed", "夕方の港で漁船が揺れている。", "x <|im_end|> y"]
    model = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=24, intermediate_size=40, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, head_dim=6,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1000000.0}))
    model = save(randomise(model, 3), "qwen", "60KB")
    system = HunyuanVideo15Pipeline._get_mllm_prompt_embeds.__defaults__[2]
    crop = len(tokenizer(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n").input_ids)
    embeds, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
        model, tokenizer, prompts, torch.device("cpu"), tokenizer_max_length=QWEN_TOKENS, system_message=system,
        crop_start=crop)
    for n, (row, length) in enumerate(zip(embeds, mask.sum(1))):
        tensors[f"qwen.{n}"] = row[:length]
    print("qwen crop", crop, "lengths", mask.sum(1).tolist())
    return {"prompts": prompts, "crop": crop, "max_tokens": QWEN_TOKENS, "lengths": mask.sum(1).tolist()}


def byt5(tensors):
    tokenizer = ByT5Tokenizer()
    model = T5EncoderModel(T5Config(vocab_size=1510, d_model=20, d_kv=8, d_ff=32, num_layers=3, num_heads=3,
                                    feed_forward_proj="gated-gelu", relative_attention_num_buckets=32,
                                    relative_attention_max_distance=128))
    model = save(randomise(model, 4), "byt5")
    embeds, mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(tokenizer, model, QUOTES, torch.device("cpu"))
    for n, (row, length) in enumerate(zip(embeds, mask.sum(1))):
        tensors[f"byt5.{n}"] = row[:length]
    print("byt5 lengths", mask.sum(1).tolist())
    return {"prompts": QUOTES, "lengths": mask.sum(1).tolist()}


@torch.no_grad()
def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {}
    cases = {"made_with": {"transformers": transformers.__version__, "diffusers": diffusers.__version__},
             "llama": llama(tensors), "clip": clip(tensors), "qwen": qwen(tensors), "byt5": byt5(tensors)}
    save_file({k: v.float().contiguous().clone() for k, v in tensors.items()}, OUT / "expected.safetensors")
    (OUT / "cases.json").write_text(json.dumps(cases, indent=0) + "\n")


if __name__ == "__main__":
    main()
