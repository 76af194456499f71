"""vmoba's programs and libvmoba_ops.so, as they were built; nothing of the programs runs in Python.

    vmoba.ops_library   path for torch.ops.load_library
    vmoba.share         folder with the example configurations and clips
"""
from pathlib import Path

_here = Path(__file__).resolve().parent
__version__ = (_here / "VERSION").read_text().strip()
ops_library = str(_here / "lib" / "libvmoba_ops.so")
share = str(_here / "share")
