"""Sinusoids of timesteps and guidance in diffusers, of frequencies that do not depend on the CPU."""
import torch
from diffusers.models import embeddings


def round_frequencies_once():
    """Makes diffusers' frequencies exp() of fp64 rounded once to fp32, as this project computes them.

    exp() of fp32 differs in the last bit from CPU to CPU, and a guidance of 6 stands for angles of 6,000.
    """
    plain, exp = embeddings.get_timestep_embedding, torch.exp

    def waves(*args, **kwargs):
        torch.exp = lambda x: exp(x.double()).to(x.dtype)
        try:
            return plain(*args, **kwargs)
        finally:
            torch.exp = exp

    embeddings.get_timestep_embedding = waves
