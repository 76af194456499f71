"""Loads libvmoba_ops.so and calls it with options as Python values; what the other examples share."""
import json
import os

import torch


def load():
    """Of $VMOBA_OPS (build/lib/libvmoba_ops.so), else of the installed package vmoba."""
    path = os.environ.get("VMOBA_OPS")
    if path is None:
        import vmoba

        path = vmoba.ops_library
    torch.ops.load_library(path)


@torch.compiler.assume_constant_result  # torch.compile cannot look into json
def options_text(options):
    return json.dumps(dict(options))


def attention(q, k, v, grid, text_lengths=(), **options):
    """q, k, v [batch, tokens, heads, head_dim]; `options`: keys of the group `attention`, and `layer` (docs/ops.md)."""
    return torch.ops.vmoba.attention(q, k, v, list(grid), list(text_lengths), options_text(tuple(options.items())))
