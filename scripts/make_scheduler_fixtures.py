#!/usr/bin/env python3
"""Makes tests/fixtures/sample/{schedulers,pipeline}.json with diffusers' own schedulers and WanPipeline.

Needs: pip install diffusers==0.42.1 transformers torch numpy
Run from the repository root: python scripts/make_scheduler_fixtures.py

The velocity functions below are repeated in tests/sample/; the noise is made by an independent numpy Philox.
"""
import contextlib
import json
import math
import os

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline

OUT = "tests/fixtures/sample"
START = [1.25, -0.5, 0.3, -2.0]


def velocity(x, timestep):
    return torch.tanh(0.7 * x + 0.3 * math.cos(timestep / 150.0)) + 0.2 * x


def make(name, shift):
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift)


def trajectory(name, steps, shift, dtype, schedule):
    scheduler = make(name, shift)
    if schedule == "wan":  # FlowUniPCMultistepScheduler's levels before the shift; its ends are fp32
        scheduler.set_timesteps(sigmas=np.linspace(float(np.float32(0.999)), 0, steps + 1)[:-1])
    else:
        scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    sigmas = [float(s) for s in scheduler.sigmas]
    if dtype == torch.float64:  # the same formulas without rounding, from the same (fp32) sigmas
        scheduler.sigmas = scheduler.sigmas.double()
    x = torch.tensor(START, dtype=dtype).view(1, 4, 1, 1, 1)
    rows = []
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(t)).to(dtype), t, x, return_dict=False)[0]
        rows.append([float(v) for v in x.flatten()])
    return [float(t) for t in scheduler.timesteps], sigmas, rows


def schedulers():
    cases = []
    for name, schedule in (("euler", "diffusers"), ("unipc", "diffusers"), ("unipc", "wan")):
        for shift in (0.7, 1.0, 3.0, 5.0, 12.0):
            for steps in (1, 2, 3, 10) + ((50,) if shift in (1.0, 5.0) else ()):
                timesteps, sigmas, rows = trajectory(name, steps, shift, torch.float32, schedule)
                case = dict(name=name, schedule=schedule, shift=shift, steps=steps, timesteps=timesteps, sigmas=sigmas, fp32=rows)
                if name == "unipc":  # FlowMatchEulerDiscreteScheduler always computes in fp32
                    torch.set_default_dtype(torch.float64)
                    case["fp64"] = trajectory(name, steps, shift, torch.float64, schedule)[2]
                    torch.set_default_dtype(torch.float32)
                cases.append(case)
    return dict(start=START, cases=cases)


# ---- the whole sampling loop --------------------------------------------------------------------------------------

def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def split(x):
    return [x & 0xFFFFFFFF, x >> 32]


def normals(seed, stream, index, count):
    """core/random.h's fill_normal from its description."""
    name = 14695981039346656037
    for ch in stream.encode():
        name = ((name ^ ch) * 1099511628211) & (2**64 - 1)
    key = philox(split(seed) + split(name), [0x766D6F62, 0x61726E67])[:2]
    out = []
    for block in range((count + 1) // 2):
        w = philox(split(block) + split(index), key)
        u1, u2 = (((w[i] | w[i + 1] << 32) >> 11) * 2.0**-53 for i in (0, 2))
        radius = math.sqrt(-2.0 * math.log(1.0 - u1))
        out += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    return np.array(out[:count], dtype=np.float32)


class Transformer(torch.nn.Module):
    """Stands in for the DiT: an analytic velocity of latents, timestep and text."""

    class config:
        in_channels, patch_size = 2, (1, 2, 2)

    dtype, device = torch.float32, torch.device("cpu")

    def cache_context(self, *_, **__):
        return contextlib.nullcontext()

    def forward(self, hidden_states, timestep, encoder_hidden_states, **_):
        text = encoder_hidden_states.sum(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        phase = torch.cos(timestep.float() / 150.0).view(-1, 1, 1, 1, 1)
        return (torch.tanh(0.7 * hidden_states + text + 0.3 * phase) + 0.2 * hidden_states,)


def embed(prompt):
    out = torch.zeros(1, 8, 3)
    for i, ch in enumerate(prompt.encode()[:8]):
        out[0, i] = ch / 1000.0
    return out


def pipeline():
    cases = []
    for name, steps, shift, guidance in (("unipc", 6, 3.0, 5.0), ("euler", 5, 5.0, 2.5), ("unipc", 4, 5.0, 1.0)):
        pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=make(name, shift),
                           transformer=Transformer())
        pipe.set_progress_bar_config(disable=True)
        case = dict(name=name, steps=steps, shift=shift, guidance=guidance, prompt="a red fox", negative_prompt="blur",
                    seed=7, index=3, frames=5, height=16, width=32)
        noise = torch.from_numpy(normals(7, "sample_noise", 3, 2 * 2 * 2 * 4)).view(1, 2, 2, 2, 4)
        latents = pipe(prompt_embeds=embed(case["prompt"]), negative_prompt_embeds=embed(case["negative_prompt"]),
                       height=16, width=32, num_frames=5, num_inference_steps=steps, guidance_scale=guidance,
                       latents=noise, output_type="latent").frames
        case["noise"] = [float(v) for v in noise.flatten()]
        case["latents"] = [float(v) for v in latents.flatten()]
        cases.append(case)
    return dict(cases=cases)


os.makedirs(OUT, exist_ok=True)
for file, content in (("schedulers", schedulers()), ("pipeline", pipeline())):
    with open(f"{OUT}/{file}.json", "w") as f:
        f.write(json.dumps(content, separators=(",", ":")) + "\n")
    print(f"{OUT}/{file}.json: {os.path.getsize(f'{OUT}/{file}.json')} bytes, {len(content['cases'])} cases")
