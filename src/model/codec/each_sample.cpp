#include "model/codec/each_sample.h"

#include <ATen/ATen.h>

#include <vector>

#include "model/codec/codec_checks.h"

namespace vmoba::model {

at::Tensor encode_each(const at::Tensor& video_BCFHW, const CodecShape& shape, const char* type, double scale,
                       const std::function<at::Tensor(const at::Tensor& video_CFHW)>& encode) {
  const at::NoGradGuard no_grad;
  check_codec_video(video_BCFHW, shape, type);
  std::vector<at::Tensor> samples;
  for (const at::Tensor& video_CFHW : video_BCFHW.unbind(0))
    samples.push_back((encode(video_CFHW) * scale).permute({3, 0, 1, 2}));
  return at::stack(samples).contiguous();
}

at::Tensor decode_each(const at::Tensor& latents_BCTHW, const CodecShape& shape, const char* type, double scale,
                       at::Device device, const std::function<at::Tensor(const at::Tensor& latents_THWZ)>& decode) {
  const at::NoGradGuard no_grad;
  check_codec_latents(latents_BCTHW, shape, type);
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  std::vector<at::Tensor> videos;
  for (const at::Tensor& latents_CTHW : latents_BCTHW.unbind(0)) {
    const at::Tensor latents_THWZ = latents_CTHW.to(floats).permute({1, 2, 3, 0}) / scale;
    videos.push_back(decode(latents_THWZ).clamp(-1, 1).permute({3, 0, 1, 2}));
  }
  return at::stack(videos).contiguous();
}

}  // namespace vmoba::model
