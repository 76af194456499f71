"""What the checks with ComfyUI's own loaders share: ComfyUI, what it says while it loads, running a program."""
import logging
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = Path(__file__).resolve().parent.parent
STRENGTH = 0.8
# fp32, other orders of additions; timesteps of 1000 have angles that are known to 6e-5.
OUTPUT_TOLERANCE, WEIGHT_TOLERANCE = 2e-5, 1e-6


def import_comfyui(folder):
    sys.path.insert(0, folder)
    sys.argv[1:] = ["--cpu"]
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sd
    import comfyui_version
    print("ComfyUI", comfyui_version.__version__)
    return comfy


class Heard(logging.Handler):
    """What ComfyUI says while it loads."""

    def __enter__(self):
        self.messages, self.root = [], logging.getLogger()
        self.before, self.root.handlers = self.root.handlers, [self]
        self.root.setLevel(logging.INFO)
        return self

    def emit(self, record):
        self.messages.append((record.levelno, record.getMessage()))

    def __exit__(self, *error):
        self.root.handlers = self.before
        self.root.setLevel(logging.WARNING)

    def complaints(self):
        return [text for level, text in self.messages if level >= logging.WARNING or "left over" in text]


def require(condition, *what):
    if not condition:
        raise SystemExit(" ".join(str(w) for w in ("does not hold:",) + what))


def require_close(found, expected, tolerance, what):
    error = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    print(f"{what}: {error:.1e}")
    require(error <= tolerance, what, "differs by", error)


def run(*command):
    result = subprocess.run([str(c) for c in command], cwd=SOURCE, capture_output=True, text=True)
    require(result.returncode == 0, *command, result.stdout, result.stderr)


class ComfyUi:
    def __init__(self, folder):
        self.comfy = import_comfyui(folder)

    def model(self, file, kind):
        """As UNETLoader does it, in fp32; `kind`: the class of ComfyUI that it must become."""
        with Heard() as heard:
            patcher = self.comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
        require(not heard.complaints(), file, heard.complaints())
        require(type(patcher.model).__name__ == kind, file, "is taken for", type(patcher.model).__name__)
        return patcher

    def with_lora(self, patcher, file, strength):
        """As LoraLoaderModelOnly does it; what was complained of, and the patched model."""
        lora = self.comfy.utils.load_torch_file(str(file), safe_load=True)
        with Heard() as heard:
            patched, _ = self.comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0)
        return heard.complaints(), patched

    @torch.no_grad()
    def velocity(self, patcher, latents, sigma, text, condition=None, **more):
        """As a sampler gets it; leaves the weights patched."""
        self.comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)
        denoised = patcher.model.apply_model(latents, torch.tensor([sigma]), c_concat=condition, c_crossattn=text,
                                             **more)
        return (latents - denoised) / sigma
