#!/usr/bin/env python3
"""Makes tests/fixtures/model/umt5: a small SentencePiece model, prompts with the ids and cleaned texts that Wan's
pipeline gets for them, and a small random UMT5 encoder with its outputs.

Needs: torch, transformers, diffusers, ftfy, sentencepiece, safetensors (the versions are written into cases.json).
"""
import io
import json
import pathlib
import shutil

import diffusers
import ftfy
import sentencepiece
import torch
import transformers
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model/umt5"
EXTRA_IDS = 30
MAX_TOKENS = 48

CORPUS = """
A technician in a hooded cleanroom suit stands in a red lift and looks at huge bright gold hexagonal mirror segments.
The camera pans slowly over a quiet harbour at dawn; fishing boats rock on the water and gulls cross the frame.
Close-up of a cat's face, its whiskers moving, soft light from the left. 4K, 24 fps, shallow depth of field.
A rocket lifts off from the launch pad, white smoke billows, people cheer. It's 10:30 in the morning.
一只猫坐在垫子上，阳光从窗户照进来。色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止。
镜头缓慢移动，海边的城市在黎明时分醒来，渔船在水面上摇晃。最差质量，低质量，多余的手指，画得不好的手部。
夕方の港で漁船が揺れている。カメラはゆっくりと右へ動く。猫が座っている。
Кошка сидит на коврике, солнечный свет падает из окна. Камера медленно движется вправо.
Un chat est assis sur le tapis, près de la fenêtre ; la lumière du matin éclaire la pièce où rêve l'élève.
Eine Katze sitzt auf der Matte am Fenster; schöne Grüße aus der großen weiten Welt, über Straßen und Brücken.
""".strip().splitlines()

# A part of NFKC and of nmt's rules, so that the model's own normaliser has work and the file stays small.
RULES = {"\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "\u200b": "", "\u2026": "...", "\u00bd": "1\u20442",
         "e\u0301": "\u00e9", "u\u0308": "\u00fc", "o\u0308": "\u00f6", "\ufb01": "fi", "\u2122": "TM", "\u00b2": "2",
         **{chr(0xFF00 + i): chr(0x20 + i) for i in range(1, 0x5F)}}

PROMPTS = [
    "", " ", "a", "A cat sits on a mat.", "two  spaces   three", "  lead and trail  ", "tab\tnew\nline\r\nend",
    "一只猫坐在垫子上，阳光从窗户照进来。", "色调艳丽，过曝，静态，细节模糊不清，字幕", "夕方の港で　漁船が揺れている。",
    "Кошка сидит на коврике", "mixed 猫 and кошка, chat & Katze", "emoji 😀 here", "😀🎉", "x😀🎉y 👨‍👩‍👧 z", "🎉 🎉",
    "unknown ‡‡ signs ‡ §§", "ＦＵＬＬ　ＷＩＤＴＨ１２３！", "half ｶﾀｶﾅ", "cafe\u0301 u\u0308ber", "zero\u200bwidth \u200b alone",
    "nbsp\u00a0here", "“curly” ‘quotes’ it’s", "ﬁne ﬂow oﬃce", "Tom &amp; Jerry &lt;3", "&amp;amp; twice",
    "&amp;amp;amp; three times", "&eacute;t&eacute; &NTILDE; &nbsp; x&nbsp;y", "&#65;&#x42;&#x1F600; &#128; &#0; &#xD800;",
    "&copy 2024 &notin; &notit; &bogus; &", "a <b>bold</b> &amp; &ldquo;x&rdquo;", "&ldquo;x&rdquo; &apos;y&apos;",
    "line one &amp; x\nline <b> &ldquo;two&rdquo;\nline &ldquo;three&rdquo;", "\x1b[31mred\x1b[0m text", "bell\x07 and \ufeffbom",
    "sentinel <extra_id_0> inside", "<extra_id_3><extra_id_29>", "x<extra_id_5>y <extra_id_30> <extra_id_99>",
    "ends with </s>", "a<pad>b <unk> c", "<s> start", "<extra_id_1", "no_space<extra_id_2>.", "under▁score x",
    "A technician in a hooded cleanroom suit stands in a red lift and looks at huge bright gold hexagonal mirror "
    "segments. " * 3, "w " * 100, "½ ² ™ …", "\u0085next\u2028line", "&#59;&#38;amp; &semi;", "100% &gt;&gt; 50&percnt;",
    "&Alpha;&omega;&OMEGA;&alpha &SZLIG; &szlig;", "&hellip;&mdash;&euro;&trade;", "C:\\path\\file_name.mp4 #tag @me",
    "ĳ Ǆ ŉ ſt", "￥￠￣", "&#xFFFE;x&#7;y", "&lt;br&gt;", "&AMP;&AMP &LT;b", "\u2003em\u2002en\u2009thin", "a\u0000b",
]


def train_tokenizer():
    sentences = [s for line in CORPUS for s in [line] * 3]
    model = io.BytesIO()
    rules = OUT / "rules.tsv"
    rules.write_text("".join("{}\t{}\n".format(" ".join(f"{ord(c):X}" for c in k), " ".join(f"{ord(c):X}" for c in v))
                             for k, v in RULES.items()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="unigram", vocab_size=515, pad_id=0, eos_id=1,
        bos_id=-1, unk_id=2, byte_fallback=True, character_coverage=0.99, normalization_rule_tsv=str(rules),
        num_threads=1, minloglevel=2)
    rules.unlink()
    (OUT / "spiece.model").write_bytes(model.getvalue())


def ids_of(tokenizer, text):
    return tokenizer([text], max_length=MAX_TOKENS, truncation=True, add_special_tokens=True).input_ids[0]


def make_encoder(vocab):
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=vocab, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4,
                        relative_attention_num_buckets=32, relative_attention_max_distance=128,
                        feed_forward_proj="gated-gelu")
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
            elif "relative_attention_bias" in name:
                p.normal_(0, 1)
            else:
                p.copy_(p.to(torch.bfloat16))
    return model


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    train_tokenizer()
    (OUT / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA_IDS}))
    tokenizer = T5Tokenizer.from_pretrained(OUT)
    cases = [{"prompt": p, "clean": prompt_clean(p), "ids": ids_of(tokenizer, prompt_clean(p))} for p in PROMPTS]

    model = make_encoder(len(tokenizer) + 6)
    folder = OUT / "text_encoder"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="60KB")
    from safetensors.torch import save_file
    chosen = ["", "A cat sits on a mat.", "一只猫坐在垫子上，阳光从窗户照进来。", "x<extra_id_5>y 😀", PROMPTS[45]]
    inputs = tokenizer([prompt_clean(p) for p in chosen], padding="max_length", max_length=MAX_TOKENS, truncation=True,
                       return_attention_mask=True, return_tensors="pt")
    with torch.no_grad():
        out = model(inputs.input_ids, inputs.attention_mask).last_hidden_state
    for row, length in zip(out, inputs.attention_mask.sum(1)):
        row[length:] = 0
    save_file({"prompt_embeds": out.contiguous()}, OUT / "expected.safetensors")
    (OUT / "cases.json").write_text(json.dumps(
        {"made_with": {"transformers": transformers.__version__, "diffusers": diffusers.__version__,
                       "ftfy": ftfy.__version__, "sentencepiece": sentencepiece.__version__},
         "max_tokens": MAX_TOKENS, "encoded": chosen, "cases": cases}, ensure_ascii=True, indent=0))


if __name__ == "__main__":
    main()
