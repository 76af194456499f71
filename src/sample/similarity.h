// How near two videos are to each other: of samples with equal noise under two attentions. Frames are uint8 [3, F, H,
// W], latents [1, C, T, H, W]; both of a pair have one shape. Computed on the tensors' device; waits for it.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::sample {

// Peak signal-to-noise ratio over all values of the video, in decibels; infinite for equal ones.
double psnr_db(const at::Tensor& video_CFHW, const at::Tensor& other_CFHW);

// Structural similarity (Wang et al. 2004): windows of 11 x 11 with a Gaussian of 1.5, no padding (smaller ones where
// the frames are), constants 0.01 and 0.03; mean over windows, channels and frames. 1 for equal videos.
double ssim(const at::Tensor& video_CFHW, const at::Tensor& other_CFHW);

// Norm of the difference over the norm of `other`.
double relative_error(const at::Tensor& latents, const at::Tensor& other);

}  // namespace vmoba::sample
