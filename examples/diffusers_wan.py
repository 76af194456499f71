"""VMoBA in the self attention of diffusers' WanTransformer3DModel.

    from diffusers_wan import use_vmoba
    use_vmoba(pipeline.transformer, preset="cubes", dense_layers=2)

Sampling, training and torch.compile go on as before; the options are those of docs/ops.md.
"""
import torch
import vmoba_ops


def rotate(x, cos, sin):
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class VmobaProcessor:
    def __init__(self, layer, options):
        self.grid, self.options = None, {**options, "layer": layer}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        out = vmoba_ops.attention(rotate(q, *rotary_emb), rotate(k, *rotary_emb), v, self.grid, **self.options)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def use_vmoba(transformer, **options):
    vmoba_ops.load()
    processors = [VmobaProcessor(layer, options) for layer in range(len(transformer.blocks))]
    for block, processor in zip(transformer.blocks, processors):
        block.attn1.set_processor(processor)

    def note_grid(_, args, kwargs):
        video = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        for processor in processors:
            processor.grid = [size // patch for size, patch in zip(video.shape[2:], transformer.config.patch_size)]

    transformer.register_forward_pre_hook(note_grid, with_kwargs=True)
