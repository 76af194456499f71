"""The examples on the CPU: diffusers' own output with all blocks, and ComfyUI's override without ComfyUI."""
import importlib.util
import json
from pathlib import Path

import torch
import vmoba_ops
from diffusers import WanTransformer3DModel
from diffusers_wan import use_vmoba

SHAPE = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8,
             ffn_dim=20, num_layers=3, image_dim=None)


def diffusers():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SHAPE).eval()
    video, text, timestep = torch.randn(2, 4, 3, 8, 12), torch.randn(2, 5, 8), torch.tensor([500, 20])

    def outputs():
        x = video.clone().requires_grad_()
        out = model(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
        return out.detach(), torch.autograd.grad(out.square().mean(), x)[0]

    own = outputs()
    use_vmoba(model, tau=1.0, full_when_faster=False, temporal_chunk=1, spatial_chunk=[2, 2],
              spatiotemporal_chunk=[2, 2, 3])
    for a, b in zip(outputs(), own):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    print("diffusers with all blocks holds")
    use_vmoba(model, tau=0.1, temporal_chunk=1, spatial_chunk=[2, 2], spatiotemporal_chunk=[2, 2, 3])
    sparse = outputs()
    assert torch.isfinite(sparse[0]).all() and (sparse[0] - own[0]).abs().max() > 1e-4  # it is another attention
    print("diffusers sparse holds")


def compiled():
    options = dict(preset="cubes", spatiotemporal_chunk=[1, 2, 3], layer=2)

    def call(q, k, v):
        return vmoba_ops.attention(q, k, v, [3, 4, 6], **options)

    torch.manual_seed(0)
    qkv = [torch.randn(1, 72, 2, 32) for _ in range(3)]
    out = torch.compile(call, backend="aot_eager", fullgraph=True)(*qkv)
    torch.testing.assert_close(out, call(*qkv), rtol=0, atol=0)
    print("compiled holds")


class Model:
    """What a node sees of ComfyUI's ModelPatcher."""

    def __init__(self):
        self.model_options = {"transformer_options": {}}

    def clone(self):
        other = Model()
        other.model_options = {key: dict(value) for key, value in self.model_options.items()}
        return other


def comfyui():
    path = Path(__file__).resolve().parents[2] / "examples/comfyui_vmoba/__init__.py"
    spec = importlib.util.spec_from_file_location("comfyui_vmoba", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    node = module.NODE_CLASS_MAPPINGS["VmobaAttention"]
    assert set(node.INPUT_TYPES()["required"]) == {"model", "options"} and node.RETURN_TYPES == ("MODEL",)
    before = Model()
    (after,) = getattr(node(), node.FUNCTION)(before, json.dumps(dict(tau=1.0, temporal_chunk=1, spatial_chunk=[2, 2])))
    assert before.model_options == {"transformer_options": {}}
    override = after.model_options["transformer_options"]["optimized_attention_override"]
    asked = []

    def original(q, k, v, heads, **kwargs):
        asked.append(kwargs.get("mask"))
        parts = [x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 24, 16) for _ in range(3))
    where = dict(grid_sizes=torch.Size([2, 3, 4]), block_index=1)
    own = override(original, q, k, v, heads=2, transformer_options=where)
    assert not asked  # VMoBA computed it
    torch.testing.assert_close(own, original(q, k, v, heads=2), rtol=1e-5, atol=1e-5)
    asked.clear()
    override(original, q, k[:, :7], v[:, :7], heads=2, transformer_options=where)  # cross attention
    override(original, q, k, v, heads=2, transformer_options={})  # another model
    override(original, q, k, v, heads=2, mask=torch.zeros(1), transformer_options=where)
    assert len(asked) == 3
    half = override(original, q.half(), k.half(), v.half(), heads=2, transformer_options=where)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), own, rtol=3e-2, atol=3e-2)
    print("comfyui holds")


diffusers()
comfyui()
compiled()
