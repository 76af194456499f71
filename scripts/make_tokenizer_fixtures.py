#!/usr/bin/env python3
"""Makes tests/fixtures/model/bpe: small byte-level BPE vocabularies of the three kinds that HunyuanVideo's encoders use
(LLaMA-3, Qwen2.5, CLIP), and what the `tokenizers` package makes of some 12,000 strings with them.

Needs: torch, transformers, tokenizers (their versions are written into cases.json).

llama/   tokenizer.json, and tokenizer.model: the same vocabulary as tiktoken's rank file
qwen/    vocab.json, merges.txt, tokenizer_config.json
clip/    vocab.json, merges.txt
cases.json   "parts": what random strings are made of; "hashes": by kind, of the ids of each GROUP strings that the
             generator below draws (tests/model/bpe_fixture.h draws the same); "texts": strings with their ids
"""
import base64
import json
import pathlib

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, Qwen2Tokenizer

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model/bpe"
STRINGS, GROUP = 12000, 25
MERGES = {"llama": 700, "qwen": 600, "clip": 500}

LLAMA_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"] + [f"<|reserved_special_token_{i}|>" for i in range(4)] + [
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

WORDS = """
the a The cat sits on mat. camera pans slowly quiet harbour at dawn; fishing boats rock water, gulls cross frame
It's we're I'VE they'll he'd I'm 'tis don't O'Neill 's 'S 'T '' ' " “quoted” "text" 4K 24 fps 1234567 3.14159 10:30 2026
一只猫坐在垫子上 阳光从窗户照进来。 镜头缓慢移动， 海边的城市 夕方の港で 漁船が揺れている。 カメラは ゆっくりと 右へ
кошка сидит Камера élève naïve Straße größte œuvre İstanbul ſtraſſe Ångström 한국어 고양이 สวัสดี नमस्ते שלום مرحبا
<|eot_id|> <|im_start|> <|endoftext|> <|STARTOFTEXT|> <|begin_of_text|> <|im_end <|startoftext|> </w> Ġword #tag @me
C:\\path\\file_name.mp4 https://example.org/x?y=z&n=1 a_b-c (see) [x] {y} $5.00 100% 😀 🎉 👨‍👩‍👧 👍🏽 🇩🇪 ½ ² ™ … — ﬁne
""".split()

BLANKS = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085",
          "\u200b", "\u180e", "\ufeff", "\x0b\x0c", ""]

RANGES = [[0x20, 0x7E], [0x41, 0x5A], [0x30, 0x39], [0, 0x1F], [0x7F, 0xBF], [0xC0, 0x24F], [0x250, 0x2FF],
          [0x300, 0x345], [0x370, 0x3FF], [0x400, 0x52F], [0x5B0, 0x5EA], [0x620, 0x66D], [0x905, 0x94D],
          [0xE01, 0xE3A], [0x1100, 0x1112], [0x1161, 0x1175], [0x11A8, 0x11C2], [0x1E00, 0x1EFF], [0x1F00, 0x1FFE],
          [0x2000, 0x2064], [0x2070, 0x209C], [0x2100, 0x214F], [0x2150, 0x2188], [0x2190, 0x22FF], [0x2460, 0x24FF],
          [0x2600, 0x27BF], [0x3000, 0x303F], [0x3041, 0x3096], [0x3099, 0x30FF], [0x4E00, 0x9FA5], [0xAC00, 0xD7A3],
          [0xE000, 0xE010], [0xF900, 0xFA2D], [0xFB00, 0xFB06], [0xFB1D, 0xFB36], [0xFE00, 0xFE0F], [0xFF01, 0xFF5E],
          [0xFFF9, 0xFFFF], [0x10400, 0x1044F], [0x1D15E, 0x1D164], [0x1D400, 0x1D454], [0x1D7CE, 0x1D7FF],
          [0x1F1E6, 0x1F1FF], [0x1F300, 0x1F5FF], [0x1F600, 0x1F64F], [0x1F680, 0x1F6C5], [0x20000, 0x20010],
          [0x2F800, 0x2F810], [0x10FFFD, 0x10FFFF]]

CORPUS = """
A technician in a hooded cleanroom suit stands in a red lift and looks at huge bright gold hexagonal mirror segments.
The camera pans slowly over a quiet harbour at dawn; fishing boats rock on the water and gulls cross the frame.
Close-up of a cat's face, its whiskers moving, soft light from the left. 4K, 24 fps, shallow depth of field.
A rocket lifts off from the launch pad, white smoke billows, people cheer. It's 10:30 in the morning, we're early.
一只猫坐在垫子上，阳光从窗户照进来。色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止。
镜头缓慢移动，海边的城市在黎明时分醒来，渔船在水面上摇晃。最差质量，低质量，多余的手指，画得不好的手部。
夕方の港で漁船が揺れている。カメラはゆっくりと右へ動く。猫が座っている。
Кошка сидит на коврике, солнечный свет падает из окна. Камера медленно движется вправо. 한국어 고양이
Un chat est assis sur le tapis, près de la fenêtre ; la lumière du matin éclaire la pièce où rêve l'élève.
Eine Katze sitzt auf der Matte am Fenster; schöne Grüße aus der großen weiten Welt, über Straßen und Brücken. 😀🎉👍
Describe the video by detailing the following aspects: 1. The main content and theme of the video. 2. The color, shape.
""".strip().splitlines()

TEXTS = ["", " ", "  ", "a", "A cat sits on a mat.", "two  spaces   three", "\n\nlead and trail  \n", "I'Ve we'LL 'S 'ſ",
         "一只猫坐在垫子上，阳光从窗户照进来。", "cafe\u0301 u\u0308ber", "가나다 \u1100\u1161\u11a8", "\u212b \u2126 \uf900",
         "12 123 1234 12345 ١٢٣ ½Ⅷ", "<|eot_id|><|im_end|><|endoftext|> x", "a<|im_start|>user\nb", "👨‍👩‍👧 🇩🇪 👍🏽",
         "İSTANBUL ΣΑΣ ẞ", "<|ENDOFTEXT|> <|endoftext|>", "x\u180ey \u0085z", "nul\0here", "tab\tnew\r\n\r\nline",
         "'''quotes''' \"x\" “y”", "   leading", "trailing   ", "#$%^&*()_+", "\ufeffbom", "ﬁne ﬂow ﬃ", "w" * 300]


class Random:
    """splitmix64, which the test has too."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) % n


def random_string(number):
    """Bytes; one string in eight has bytes that are not UTF-8."""
    random = Random(number)
    broken = random.below(8) == 0
    out = b""
    for _ in range(1 + random.below(10)):
        kind = random.below(6)
        if kind <= 1:
            out += WORDS[random.below(len(WORDS))].encode()
        elif kind == 2:
            out += BLANKS[random.below(len(BLANKS))].encode()
        elif kind == 3:
            low, high = RANGES[random.below(len(RANGES))]
            for _ in range(1 + random.below(5)):
                out += chr(low + random.below(high - low + 1)).encode()
        elif kind == 4:
            out += WORDS[random.below(len(WORDS))].encode() + BLANKS[random.below(len(BLANKS))].encode()
        elif broken:
            out += bytes([0x80 + random.below(128)])
        else:
            low, high = RANGES[random.below(len(RANGES))]
            out += chr(low + random.below(high - low + 1)).encode()
    return out


def as_text(data):
    """Each byte of no well-formed sequence becomes U+FFFD."""
    out, at = "", 0
    while at < len(data):
        for count in (1, 2, 3, 4):
            try:
                out += data[at:at + count].decode()
                at += count
                break
            except UnicodeDecodeError:
                pass
        else:
            out += "\ufffd"
            at += 1
    return out


def hash_of(all_ids):
    """FNV-1a over ids as 4 bytes each and a 0xFFFFFFFF behind each string."""
    value = 0xCBF29CE484222325
    for ids in all_ids:
        for number in [*ids, 0xFFFFFFFF]:
            for byte in number.to_bytes(4, "little"):
                value = ((value ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{value:016x}"


def corpus():
    return CORPUS * 4 + [as_text(random_string(n)) for n in range(STRINGS, STRINGS + 1500)]


def trained(kind, normalizer, pre_tokenizer, suffix=""):
    """[(left, right)] of a training on the corpus, in vocabulary's spelling of bytes."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) * (2 if suffix else 1) + MERGES[kind]
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=alphabet, **({"end_of_word_suffix": suffix} if suffix else {})))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    letters = sorted(alphabet)
    vocab = letters + ([c + suffix for c in letters] if suffix else [])
    known = set(vocab)
    kept = []
    for left, right in merges:
        if left in known and right in known and left + right not in known:
            kept.append((left, right))
            known.add(left + right)
    return {token: i for i, token in enumerate(vocab + [a + b for a, b in kept])}, kept


def byte_level(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make_llama():
    vocab, merges = trained("llama", None, byte_level(LLAMA_PATTERN))
    # A token that no merge makes: only a piece that equals it gets it.
    vocab["Ġharbour;"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level(LLAMA_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA_SPECIALS])
    folder = OUT / "llama"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    unicode_to_byte = {c: b for b, c in byte_spelling().items()}
    ranks = [(bytes(unicode_to_byte[c] for c in token), rank) for token, rank in vocab.items()]
    (folder / "tokenizer.model").write_text(
        "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks))
    return tokenizer


def byte_spelling():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {b: chr(b) for b in printable}
    others = [b for b in range(256) if b not in spelled]
    return spelled | {b: chr(256 + i) for i, b in enumerate(others)}


def write_pair(kind, vocab, merges):
    folder = OUT / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return folder


def make_qwen():
    reference = Qwen2Tokenizer().backend_tokenizer
    vocab, merges = trained("qwen", reference.normalizer, reference.pre_tokenizer)
    folder = write_pair("qwen", vocab, merges)
    first = len(vocab)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {str(first + i): {"content": token, "lstrip": False, "normalized": False,
                                                  "rstrip": False, "single_word": False, "special": True}
                                 for i, token in enumerate(QWEN_SPECIALS)}}, indent=0))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for token in QWEN_SPECIALS:
        tokenizer.backend_tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return tokenizer.backend_tokenizer


def make_clip():
    reference = CLIPTokenizer().backend_tokenizer
    vocab, merges = trained("clip", reference.normalizer, reference.pre_tokenizer, "</w>")
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    write_pair("clip", vocab, merges)
    return CLIPTokenizer(vocab=vocab, merges=merges).backend_tokenizer


def main():
    all_tokenizers = {"llama": make_llama(), "qwen": make_qwen(), "clip": make_clip()}
    strings = [as_text(random_string(n)) for n in range(STRINGS)]
    cases = {"made_with": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
             "strings": STRINGS, "group": GROUP,
             "parts": {"words": WORDS, "blanks": BLANKS, "ranges": RANGES}, "hashes": {}, "texts": []}
    for kind, tokenizer in all_tokenizers.items():
        ids = [e.ids for e in tokenizer.encode_batch(strings, add_special_tokens=False)]
        cases["hashes"][kind] = [hash_of(ids[n:n + GROUP]) for n in range(0, STRINGS, GROUP)]
        print(kind, tokenizer.get_vocab_size(), "mean tokens", sum(map(len, ids)) / STRINGS)
    for text in TEXTS:
        cases["texts"].append({"text": text} | {kind: tokenizer.encode(text, add_special_tokens=False).ids
                                                for kind, tokenizer in all_tokenizers.items()})
    (OUT / "cases.json").write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
