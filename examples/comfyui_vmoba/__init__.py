"""A ComfyUI node that gives the self attention of Wan's video models to VMoBA.

Copy or link this folder into ComfyUI/custom_nodes, install the package vmoba into ComfyUI's Python (or set VMOBA_OPS
to libvmoba_ops.so), and put the node "VMoBA attention" between the model's loader and the sampler. Cross attention,
and calls with more tokens than the video has (reference images), stay with ComfyUI's own attention.
"""
import json
import os

import torch


def ops_library():
    if "VMOBA_OPS" in os.environ:
        return os.environ["VMOBA_OPS"]
    import vmoba

    return vmoba.ops_library


class VmobaAttention:
    CATEGORY = "model_patches"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",),
                             "options": ("STRING", {"multiline": True, "default": '{"preset": "cubes"}'})}}

    def patch(self, model, options):
        torch.ops.load_library(ops_library())
        options = json.loads(options)

        def attend(original, q, k, v, heads, *args, **kwargs):
            where = kwargs.get("transformer_options") or {}
            grid = [int(size) for size in where.get("grid_sizes", ())]
            tokens = grid[0] * grid[1] * grid[2] if len(grid) == 3 else -1
            plain = not args and not any(kwargs.get(name) is not None and kwargs[name] is not False
                                         for name in ("mask", "skip_reshape", "skip_output_reshape"))
            if not plain or q.dim() != 3 or q.shape[1] != tokens or k.shape[1] != tokens:
                return original(q, k, v, heads, *args, **kwargs)
            layer = json.dumps({**options, "layer": where.get("block_index", 0)})
            q, k, v = (x.unflatten(2, (heads, -1)) for x in (q, k, v))
            half = q.dtype == torch.float16  # the kernels know bf16
            q, k, v = (x.bfloat16() if half else x for x in (q, k, v))
            out = torch.ops.vmoba.attention(q, k, v, grid, [], layer).flatten(2)
            return out.half() if half else out

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attend
        return (model,)


NODE_CLASS_MAPPINGS = {"VmobaAttention": VmobaAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"VmobaAttention": "VMoBA attention"}
