#!/usr/bin/env python3
"""Makes tests/fixtures/model/taehv*: small random autoencoders of the TAEHV architecture (github.com/madebyollin/taehv)
with latents and videos, and the names and shapes of the published ones.

Needs: torch, safetensors

taehv.safetensors, taehv_variant.safetensors    weights in fp16 under the published names; the variant has patches of
                                                two pixels, uneven widths, and latent frames that see no later frame
taehv_cases.safetensors   by case: NAME.video_u8 [3, F, H, W], to be read as x / 255; NAME.encoded [Z, T, h, w];
                          NAME.latents [Z, T, h, w]; NAME.decoded [3, F, H, W], not clamped, of `latents`; computed in
                          fp64
taehv_shapes.json         [name, shape] of each tensor of taew2_1 and taehv, and of taew2_2
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/model"
STRIDE = 4
BLOCKS = 3


class Memory(nn.Module):
    """A block that sees the frame before: frames [T, C, H, W] of one video."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x):
        before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return F.relu(x + self.conv(torch.cat([x, before], 1)))


class Pool(nn.Module):
    """One frame of `time` consecutive ones."""

    def __init__(self, width, time):
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(width * time, width, 1, bias=False)

    def forward(self, x):
        return self.conv(torch.stack([x[i::self.time] for i in range(self.time)], 1).flatten(1, 2))


class Grow(nn.Module):
    """`time` consecutive frames of one."""

    def __init__(self, width, time):
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(width, width * time, 1, bias=False)

    def forward(self, x):
        return self.conv(x).unflatten(1, (self.time, -1)).flatten(0, 1)


class Limit(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


class Autoencoder(nn.Module):
    def __init__(self, latent, patch, encoder, decoder, pools, grows, first_frame_alone=False):
        super().__init__()
        self.patch, self.first_frame_alone = patch, first_frame_alone
        layers = [nn.Conv2d(3 * patch**2, encoder[0], 3, padding=1), nn.ReLU()]
        for into, width, time in zip(encoder, encoder[1:], pools):
            layers += [Pool(into, time), nn.Conv2d(into, width, 3, stride=2, padding=1, bias=False)]
            layers += [Memory(width) for _ in range(BLOCKS)]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(encoder[-1], latent, 3, padding=1))
        layers = [Limit(), nn.Conv2d(latent, decoder[0], 3, padding=1), nn.ReLU()]
        for width, out, time in zip(decoder, decoder[1:], grows):
            layers += [Memory(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, time), nn.Conv2d(width, out, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(decoder[-1], 3 * patch**2, 3, padding=1))

    def encode(self, video):  # [F, 3, H, W], 1 + 4n frames
        edge = [video[:1]] * (STRIDE - 1) + [video] if self.first_frame_alone else [video] + [video[-1:]] * (STRIDE - 1)
        return self.encoder(F.pixel_unshuffle(torch.cat(edge), self.patch))

    def decode(self, latents):
        return F.pixel_shuffle(self.decoder(latents), self.patch)[STRIDE - 1:]


MODELS = {  # latent channels, patch, widths, strides
    "taehv": dict(latent=16, patch=1, encoder=(4, 4, 4, 4), decoder=(10, 6, 4, 4), pools=(2, 2, 1), grows=(1, 2, 2)),
    "taehv_variant": dict(latent=5, patch=2, encoder=(3, 4, 6, 5), decoder=(6, 5, 4, 3), pools=(1, 2, 2),
                          grows=(2, 1, 2), first_frame_alone=True),
}
CASES = {"taehv": (13, 16, 24), "taehv_variant": (9, 32, 16)}  # frames, height, width
PUBLISHED = dict(encoder=(64,) * 4, decoder=(256, 128, 64, 64), pools=(2, 2, 1), grows=(1, 2, 2))


@torch.no_grad()
def main():
    torch.manual_seed(0)
    cases = {}
    for name, sizes in MODELS.items():
        model = Autoencoder(**sizes)
        for parameter in model.parameters():  # values that fp16 holds, and outputs that depend on every frame
            parameter.copy_(((2.4 if parameter.dim() > 1 else 0.5) * parameter).half())
        last = model.decoder[-1]  # most values of a picture within [0, 1]
        spread = model.decode(2 * torch.randn(4, sizes["latent"], 2, 2)).std()
        last.weight.copy_((0.25 / spread * last.weight).half())
        last.bias.fill_(0.5)
        metadata = {"first_frame_alone": "true"} if sizes.get("first_frame_alone") else None
        state = {key: value.half() for key, value in model.state_dict().items()}
        save_file(state, OUT / f"{name}.safetensors", metadata)
        model.double()
        frames, height, width = CASES[name]
        video = torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8)
        encoded = model.encode(video.double() / 255)
        latents = 2 * torch.randn(encoded.shape)
        for key, value in {"video_u8": video, "encoded": encoded.float(), "latents": latents,
                           "decoded": model.decode(latents.double()).float()}.items():
            cases[f"{name}.{key}"] = value.transpose(0, 1).contiguous()
    save_file(cases, OUT / "taehv_cases.safetensors")
    shapes = {}
    for name, sizes in {"taew2_1": dict(latent=16, patch=1), "taew2_2": dict(latent=48, patch=2)}.items():
        state = Autoencoder(**sizes, **PUBLISHED).state_dict()
        shapes[name] = [[key, list(value.shape)] for key, value in state.items()]
    (OUT / "taehv_shapes.json").write_text(json.dumps(shapes) + "\n")


if __name__ == "__main__":
    main()
