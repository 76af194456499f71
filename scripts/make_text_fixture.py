#!/usr/bin/env python3
"""Prints the `hash` encoder's embedding of "lift" in four dimensions for tests/model/test_hash_text_encoder.cpp.

Needs: nothing but Python. Philox4x32-10, FNV-1a and Box-Muller are written here anew from their papers.
"""
import math


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def fnv1a(text):
    value = 14695981039346656037
    for byte in text.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def halves(value):
    return [value & 0xFFFFFFFF, value >> 32]


def normals(stream, text, count):
    key = philox(halves(0) + halves(fnv1a(stream)), (0x766D6F62, 0x61726E67))[:2]
    out, position = [], 0
    while len(out) < count:
        block = philox(halves(position) + halves(fnv1a(text)), key)
        position += 1
        u = [((block[i] | block[i + 1] << 32) >> 11) / 2**53 for i in (0, 2)]
        radius, angle = math.sqrt(-2 * math.log(1 - u[0])), 2 * math.pi * u[1]
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return out[:count]


def embed(previous, word, width):
    own, pair = normals("text_word", word, width), normals("text_pair", previous + " " + word, width)
    return [math.sqrt(0.75) * a + math.sqrt(0.25) * b for a, b in zip(own, pair)]


if __name__ == "__main__":
    for row in embed("", "lift", 4), embed("lift", "</s>", 4):
        print("{" + ", ".join(f"{x:.7f}" for x in row) + "},")
