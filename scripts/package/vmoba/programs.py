"""The commands on the PATH: each replaces this process by the program of its name."""
import functools
import os
import sys
from pathlib import Path

BIN = Path(__file__).resolve().parent / "bin"


def run(name):
    os.execv(BIN / name, [name, *sys.argv[1:]])


for _program in sorted(BIN.glob("vmoba-*")):
    globals()[_program.name.replace("-", "_")] = functools.partial(run, _program.name)
