#!/usr/bin/env python3
"""Makes tests/fixtures/model/packed.gguf and packed.safetensors: tensors as GGUF files of transformers hold them, made
with the PyPI package `gguf`, and the values that it reads from them.

Needs: gguf, numpy, safetensors.
"""

import pathlib

import gguf
import numpy as np
import safetensors.numpy
from gguf import GGMLQuantizationType as Type

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model"
ROWS, COLUMNS = 5, 512
# Where a block has half-precision numbers, in bytes from its begin.
HALVES = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}


def random_blocks(kind, random):
    """Bytes of a matrix: any bits are values, but the half-precision numbers have to be finite."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // values, size), dtype=np.uint8)
    for begin in HALVES[kind]:
        numbers = random.normal(0, 0.01, len(blocks)).astype(np.float16)
        blocks[:, begin : begin + 2] = numbers.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def main():
    random = np.random.default_rng(7)
    matrix = random.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    writer = gguf.GGUFWriter(OUT / "packed.gguf", "wan")
    writer.add_string("a text", "é")
    writer.add_array("some texts", ["a", "bc", ""])
    writer.add_array("some numbers", [1.5, 2.5])
    writer.add_bool("a flag", True)
    expected = {}

    def add(name, data, kind, values):
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = np.ascontiguousarray(values, dtype=np.float32)

    packed = {Type.Q8_0: gguf.quants.quantize(matrix, Type.Q8_0)}
    packed.update({kind: random_blocks(kind, random) for kind in HALVES})
    for kind, data in packed.items():
        add(kind.name, data, kind, gguf.quants.dequantize(data, kind))
    add("F32", matrix, Type.F32, matrix)
    add("F16", matrix.astype(np.float16), Type.F16, matrix.astype(np.float16))
    brain = (matrix.view(np.uint32) >> 16).astype(np.uint16)
    add("BF16", brain.view(np.uint8), Type.BF16, (brain.astype(np.uint32) << 16).view(np.float32))
    add("vector", matrix[0], Type.F32, matrix[0])
    # Of more than four dimensions: flat, with the sizes beside it.
    patch = matrix[:3, :8].reshape(3, 2, 1, 2, 2).astype(np.float16)
    writer.add_array("comfy.gguf.orig_shape.patch", list(patch.shape))
    add("patch", np.ascontiguousarray(patch.reshape(3, 8)), Type.F16, patch)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (OUT / "packed.safetensors").write_bytes(safetensors.numpy.save(expected))


if __name__ == "__main__":
    main()
