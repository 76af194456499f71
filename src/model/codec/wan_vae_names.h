// Names of the Wan VAE's parameters: those of the original repository (Wan2.1_VAE.pth, Wan2.2_VAE.pth and the files of
// ComfyUI, which keep them) become diffusers', as scripts/convert_wan_to_diffusers.py of diffusers has it.
#pragma once
#include <string>

namespace vmoba::model {

// encoder.downsamples.0.residual.2.weight -> encoder.down_blocks.0.conv1.weight. A name in diffusers' layout, or one
// that is not a Wan VAE's, comes back as it is; a leading "model.", "vae." or "first_stage_model." is taken off.
std::string wan_vae_name(const std::string& name);

}  // namespace vmoba::model
