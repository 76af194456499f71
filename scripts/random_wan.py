"""What the makers of small random Wan models in scripts/ and tests/ share. Needs torch and diffusers."""
import torch
from diffusers import UniPCMultistepScheduler


def randomise(model):
    """Every parameter matters: none zero, norms not one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in name))
    return model


def unipc(shift):
    """The published pipelines' scheduler."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000,
                                   flow_shift=shift)
