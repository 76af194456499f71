#!/usr/bin/env python3
"""Writes tests/fixtures/data/pictures: small pictures of the encoders behind Pillow (libjpeg, libpng, libwebp, libtiff,
libavif), for tests/data/test_pictures.cpp.

Needs: .venv-tests (numpy, Pillow). `turned_<n>.<format>` is stored with EXIF orientation n and shows, upright, 96 x 64
pixels in four quarters: red, green above blue, white. `grey.*` is a ramp from 0 at the left to 255 at the right.
"""
import io
import pathlib
import struct
import zlib

import numpy
from PIL import Image, ImageDraw

OUT = pathlib.Path(__file__).parents[1] / "tests/fixtures/data/pictures"
# The stored picture from the upright one, by EXIF orientation.
STORED = {2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
          5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
          8: [Image.Transpose.ROTATE_270]}


def quarters():
    image = Image.new("RGB", (96, 64), "red")
    draw = ImageDraw.Draw(image)
    draw.rectangle((48, 0, 95, 31), fill=(0, 255, 0))
    draw.rectangle((0, 32, 47, 63), fill=(0, 0, 255))
    draw.rectangle((48, 32, 95, 63), fill="white")
    return image


def turned():
    options = {"jpg": {"quality": 95, "subsampling": 0}, "png": {}, "webp": {"lossless": True},
               "tif": {"compression": "tiff_adobe_deflate"}, "avif": {"quality": 90, "subsampling": "4:4:4"}}
    for number in range(1, 9):
        image = quarters()
        for step in STORED.get(number, []):
            image = image.transpose(step)
        exif = Image.Exif()
        exif[0x0112] = number
        for kind, more in options.items():
            image.save(OUT / f"turned_{number}.{kind}", exif=exif, **more)


def photograph(width, height):
    """Texture like a photograph's: smooth colours under noise, so that a JPEG of it is not tiny."""
    random = numpy.random.default_rng(7)
    y, x = numpy.mgrid[0:height, 0:width]
    base = numpy.stack([128 + 90 * numpy.sin(x / 17), 128 + 90 * numpy.cos(y / 11), 128 + 60 * numpy.sin((x + y) / 23)], -1)
    noise = random.normal(0, 18, (height, width, 1)) + random.normal(0, 6, (height, width, 3))
    return Image.fromarray(numpy.clip(base + noise, 0, 255).astype(numpy.uint8))


def jpegs():
    image = photograph(144, 96)
    image.save(OUT / "photo.png")
    image.save(OUT / "photo.jpg", quality=92)
    image.save(OUT / "photo_progressive.jpg", quality=92, progressive=True, optimize=True)
    image.convert("CMYK").save(OUT / "photo_cmyk.jpg", quality=95)
    # As cameras write it: a thumbnail that is a JPEG of its own, and bytes behind the picture.
    thumbnail = io.BytesIO()
    image.resize((72, 48)).save(thumbnail, "jpeg")
    data = (OUT / "photo.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1, 1 << 16) + struct.pack(">I", 0)
    segment = exif + thumbnail.getvalue()
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    (OUT / "photo_camera.jpg").write_bytes(data[:2] + segment + data[2:] + thumbnail.getvalue() + bytes(500))


def greys():
    ramp = numpy.tile(numpy.linspace(0, 255, 96).round().astype(numpy.uint8), (32, 1))
    for name, more in {"grey.jpg": {"quality": 98}, "grey.png": {}, "grey.tif": {}, "grey.webp": {"lossless": True}}.items():
        Image.fromarray(ramp).save(OUT / name, **more)
    Image.merge("LA", [Image.fromarray(ramp), Image.new("L", (96, 32), 200)]).save(OUT / "grey_alpha.png")
    Image.fromarray(ramp.astype(numpy.uint16) * 257).save(OUT / "grey_16.png")
    Image.fromarray(ramp).convert("P").save(OUT / "grey_palette.png")
    Image.fromarray(ramp).convert("P").save(OUT / "grey_palette.gif")


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def animations():
    """Three shades, shown for 1, 2 and 0.25 seconds."""
    frames = [Image.new("RGB", (64, 48), (shade, shade, shade)) for shade in (40, 120, 220)]
    times = [1000, 2000, 250]
    for name in ("holds.gif", "holds.png"):
        frames[0].save(OUT / name, save_all=True, append_images=frames[1:], duration=times, loop=0)
    frames[0].save(OUT / "one_frame.gif")
    png = io.BytesIO()
    frames[0].save(png, "png")
    data = png.getvalue()
    still = data[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 1, 0, 0)) + data[33:]
    (OUT / "one_frame.apng").write_bytes(still)


OUT.mkdir(parents=True, exist_ok=True)
turned()
jpegs()
greys()
animations()
