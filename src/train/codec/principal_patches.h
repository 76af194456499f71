// The best linear codec of given clips: the principal components of their patches. A codec's training begins there.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::train {

// fp32, on the CPU. P values of a patch, in the order of model/codec/patch_codec_network.h; Z components.
struct PrincipalPatches {
  at::Tensor mean_P;
  at::Tensor components_ZP;  // orthonormal rows, that of greatest variance first
  at::Tensor deviations_Z;   // of the patches along each
};

// Clips uint8 [3, F, H, W] with F > 4, H and W multiples of 8. Each clip counts the same;
// of many, some are used, evenly spaced.
PrincipalPatches principal_patches(const std::vector<at::Tensor>& clips_CFHW, int64_t components);

}  // namespace vmoba::train
