#!/usr/bin/env python3
"""Chooses the coefficients of the `dct` codec and measures their means and deviations (src/model/codec/dct_codec.cpp).

Needs: ffmpeg on PATH; pip install numpy
Usage: measure_dct_codec.py [--evaluate] VIDEO[:STREAM] ...

Every video is decoded at 15 frames a second and at three sizes, cut into 4x8x8 blocks of three colours, transformed,
and the 16 coefficients with the greatest mean square about their mean are kept. Prints the C++ table. With --evaluate
it prints, per video and size, the PSNR of the reconstruction from the table in dct_codec.cpp's place, in RGB.
"""
import subprocess
import sys

import numpy as np

SIZES = [(448, 256), (320, 176), (208, 112)]
CHANNELS = 16
# Orthonormal luma, blue-yellow and green-magenta.
COLOUR = np.array([[1, 1, 1], [-1, 0, 1], [-1, 2, -1]], float)
COLOUR /= np.linalg.norm(COLOUR, axis=1, keepdims=True)


def dct_matrix(n):
    k, x = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * (2 * x + 1) * k / (2 * n)) * np.sqrt(2 / n)
    matrix[0] /= np.sqrt(2)
    return matrix


def read(name, width, height):
    path, _, stream = name.partition(":")
    scale = f"fps=15,scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic,crop={width}:{height}"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", path, "-map", f"0:{stream or 'v:0'}", "-vf", scale, "-f", "rawvideo",
               "-pix_fmt", "rgb24", "-"]
    raw = np.frombuffer(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout, np.uint8)
    return raw.reshape(-1, height, width, 3).astype(np.float32) / 127.5 - 1


def blocks(video):
    """[F, H, W, 3] -> coefficients [n, 3 colours, 4, 8, 8] of whole blocks of four frames."""
    frames, height, width, _ = video.shape
    cut = video[: frames // 4 * 4] @ COLOUR.T
    cut = cut.reshape(frames // 4, 4, height // 8, 8, width // 8, 8, 3).transpose(0, 2, 4, 6, 1, 3, 5)
    cut = cut.reshape(-1, 3, 4, 8, 8)
    return np.einsum("nctyx,kt,ly,mx->ncklm", cut, dct_matrix(4), dct_matrix(8), dct_matrix(8), optimize=True)


def main(arguments):
    names = [a for a in arguments if a != "--evaluate"]
    count, total, squares = 0, 0, 0
    per_video = []
    for name in names:
        for width, height in SIZES:
            coefficients = blocks(read(name, width, height)).astype(np.float64).reshape(-1, 3 * 4 * 8 * 8)
            # Every video and size counts alike, whatever its length.
            total = total + coefficients.mean(0)
            squares = squares + (coefficients**2).mean(0)
            count += 1
            per_video.append((f"{name} {width}x{height}", coefficients))
    mean = total / count
    variance = squares / count - mean**2
    order = sorted(np.argsort(-variance)[:CHANNELS])
    order = sorted(order, key=lambda i: -variance[i])
    for index in order:
        colour, t, y, x = np.unravel_index(index, (3, 4, 8, 8))
        print(f"    {{{colour}, {t}, {y}, {x}, {mean[index]:.3f}, {np.sqrt(variance[index]):.3f}}},")
    print(f"kept {variance[order].sum() / variance.sum():.4f} of the variance")
    if "--evaluate" in arguments:
        dropped = np.ones(768, bool)
        dropped[order] = False
        for label, coefficients in per_video:
            error = (coefficients[:, dropped] ** 2).sum(1).mean() / 768
            print(f"{label}: {10 * np.log10(4 / error):.2f} dB")


if __name__ == "__main__":
    main(sys.argv[1:])
