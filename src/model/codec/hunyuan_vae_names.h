// Names of the HunyuanVideo VAE's parameters: the original repository has diffusers'; ComfyUI also keeps those of
// latent diffusion's first VAE.
#pragma once
#include <string>

namespace vmoba::model {

// encoder.down.0.block.1.nin_shortcut.conv.weight -> encoder.down_blocks.0.resnets.1.conv_shortcut.conv.weight. A name
// in diffusers' layout, or one that is not such a VAE's, comes back as it is; a leading "vae." or "first_stage_model."
// is taken off.
std::string hunyuan_vae_name(const std::string& name);

}  // namespace vmoba::model
