#include "model/codec/wan_vae.h"

#include <ATen/ATen.h>

#include <functional>

#include "core/check.h"
#include "core/work_progress.h"
#include "model/codec/codec_checks.h"
#include "model/codec/tiling.h"
#include "model/codec/wan_vae_network.h"
#include "model/codec/wan_vae_weights.h"
#include "model/common/dtype.h"

// Shape letters: B samples, C colours or latent channels, F frames, T latent frames, H x W positions, Z latent
// channels, P values of a patch of patch_size pixels a side.
namespace vmoba::model {
namespace {

constexpr const char* kType = "wan_vae";

at::Tensor to_tensor(const std::vector<double>& values, at::Device device) {
  return at::tensor(values, at::kDouble).to(at::TensorOptions().dtype(at::kFloat).device(device));
}

class WanVae : public Codec {
 public:
  WanVae(const CodecConfig& codec, const WanVaeConfig& config, const TensorSource& weights, at::ScalarType dtype,
         at::Device device)
      : shape_(config.shape()),
        patch_(config.patch_size),
        options_(at::TensorOptions().dtype(dtype).device(device)),
        tile_(codec.tile_size),
        overlap_(codec.tile_overlap),
        encoder_(config, weights),
        decoder_(config, weights),
        mean_Z_(to_tensor(config.latents_mean, device)),
        deviation_Z_(to_tensor(config.latents_std, device)) {}

  CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override;
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override;

 private:
  bool tiled(int64_t height, int64_t width) const { return tile_ > 0 && (height > tile_ || width > tile_); }
  at::Tensor to_patches(const at::Tensor& frames_CFHW) const;
  at::Tensor to_pixels(const at::Tensor& patches_FHWP) const;
  at::Tensor encode_region(const at::Tensor& video_CFHW) const;
  using ChunkSink = std::function<void(int64_t first_frame, const at::Tensor& patches_FHWP)>;
  void decode_chunks(const at::Tensor& latents_THWZ, const ChunkSink& sink, WorkProgress& progress) const;
  at::Tensor decode_region(const at::Tensor& latents_THWZ, WorkProgress& progress) const;

  CodecShape shape_;
  int64_t patch_;
  at::TensorOptions options_;  // of activations
  int64_t tile_, overlap_;     // pixels
  WanVaeEncoder encoder_;
  WanVaeDecoder decoder_;
  at::Tensor mean_Z_, deviation_Z_;
};

// The values of a patch are in (colour, column, row) order, as in the original's rearrange.
at::Tensor WanVae::to_patches(const at::Tensor& frames_CFHW) const {
  const int64_t frames = frames_CFHW.size(1), rows = frames_CFHW.size(2) / patch_,
                columns = frames_CFHW.size(3) / patch_;
  return frames_CFHW.to(options_)
      .reshape({3, frames, rows, patch_, columns, patch_})
      .permute({1, 2, 4, 0, 5, 3})
      .reshape({frames, rows, columns, 3 * patch_ * patch_});
}

at::Tensor WanVae::to_pixels(const at::Tensor& patches_FHWP) const {
  const int64_t frames = patches_FHWP.size(0), rows = patches_FHWP.size(1), columns = patches_FHWP.size(2);
  return patches_FHWP.view({frames, rows, columns, 3, patch_, patch_})
      .permute({3, 0, 1, 5, 2, 4})
      .reshape({3, frames, rows * patch_, columns * patch_});
}

// -> means [T, H, W, Z], fp32, not normalised.
at::Tensor WanVae::encode_region(const at::Tensor& video_CFHW) const {
  const int64_t stride = shape_.spatial_stride;
  at::Tensor mean_THWZ = at::empty({shape_.latent_frames(video_CFHW.size(1)), video_CFHW.size(2) / stride,
                                    video_CFHW.size(3) / stride, shape_.channels},
                                   options_.dtype(at::kFloat));
  FrameMemory memory;
  for (int64_t t = 0; t < mean_THWZ.size(0); ++t) {
    const int64_t end = shape_.frames(t + 1), begin = t == 0 ? 0 : end - shape_.temporal_stride;
    mean_THWZ.narrow(0, t, 1).copy_(encoder_(to_patches(video_CFHW.slice(1, begin, end)), memory));
  }
  return mean_THWZ;
}

at::Tensor WanVae::encode(const at::Tensor& video_BCFHW) const {
  const at::NoGradGuard no_grad;
  check_codec_video(video_BCFHW, shape_, kType);
  const int64_t height = video_BCFHW.size(3), width = video_BCFHW.size(4);
  std::vector<at::Tensor> samples;
  for (const at::Tensor& video : video_BCFHW.unbind(0)) {
    at::Tensor mean_THWZ;
    if (tiled(height, width)) {
      const Tiling tiling = {tile_, tile_ - overlap_, 1, shape_.spatial_stride};
      mean_THWZ = run_tiled(height, width, tiling, [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
        return encode_region(video.narrow(2, y, rows).narrow(3, x, columns));
      });
    } else {
      mean_THWZ = encode_region(video);
    }
    samples.push_back(((mean_THWZ - mean_Z_) / deviation_Z_).permute({3, 0, 1, 2}));
  }
  return at::stack(samples).contiguous();
}

// Latents, not normalised -> patches, not clamped, chunk after chunk.
void WanVae::decode_chunks(const at::Tensor& latents_THWZ, const ChunkSink& sink, WorkProgress& progress) const {
  FrameMemory memory;
  for (int64_t t = 0; t < latents_THWZ.size(0); ++t) {
    const at::Tensor chunk = latents_THWZ.narrow(0, t, 1).to(options_).contiguous();
    sink(t == 0 ? 0 : shape_.frames(t), decoder_(chunk, memory));
    progress.add(1);
  }
}

// The same in one piece [F, H, W, P], fp32.
at::Tensor WanVae::decode_region(const at::Tensor& latents_THWZ, WorkProgress& progress) const {
  const int64_t scale = shape_.spatial_stride / patch_;
  const at::Tensor patches_FHWP = at::empty({shape_.frames(latents_THWZ.size(0)), latents_THWZ.size(1) * scale,
                                             latents_THWZ.size(2) * scale, 3 * patch_ * patch_},
                                            options_.dtype(at::kFloat));
  const auto keep = [&](int64_t frame, const at::Tensor& chunk) {
    patches_FHWP.narrow(0, frame, chunk.size(0)).copy_(chunk);
  };
  decode_chunks(latents_THWZ, keep, progress);
  return patches_FHWP;
}

at::Tensor WanVae::decode(const at::Tensor& latents_BCTHW) const {
  const at::NoGradGuard no_grad;
  check_codec_latents(latents_BCTHW, shape_, kType);
  const int64_t stride = shape_.spatial_stride, height = latents_BCTHW.size(3), width = latents_BCTHW.size(4);
  const at::TensorOptions fp32 = options_.dtype(at::kFloat);
  const at::Tensor video_BCFHW = at::empty(
      {latents_BCTHW.size(0), 3, shape_.frames(latents_BCTHW.size(2)), height * stride, width * stride}, fp32);
  const bool in_tiles = tiled(height * stride, width * stride);
  const Tiling tiling = {tile_ / stride, (tile_ - overlap_) / stride, stride / patch_, 1};
  const auto steps = [&](int64_t size) { return in_tiles ? (size + tiling.stride - 1) / tiling.stride : 1; };
  WorkProgress progress("decoding", latents_BCTHW.size(0) * latents_BCTHW.size(2) * steps(height) * steps(width),
                        in_tiles ? "latent frames of tiles" : "latent frames");
  for (int64_t b = 0; b < latents_BCTHW.size(0); ++b) {
    const at::Tensor latents_THWZ = latents_BCTHW[b].to(fp32).permute({1, 2, 3, 0}) * deviation_Z_ + mean_Z_;
    const ChunkSink write = [&, video_CFHW = video_BCFHW[b]](int64_t frame, const at::Tensor& patches) {
      video_CFHW.narrow(1, frame, patches.size(0)).copy_(to_pixels(patches.clamp(-1, 1)));
    };
    if (!in_tiles) {
      decode_chunks(latents_THWZ, write, progress);
      continue;
    }
    write(0, run_tiled(height, width, tiling, [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
            return decode_region(latents_THWZ.narrow(1, y, rows).narrow(2, x, columns), progress);
          }));
  }
  return video_BCFHW;
}

}  // namespace

CodecShape wan_vae_shape(const CodecConfig& config) {
  const CodecShape shape = WanVaeWeights(config.weights).config().shape();
  check_space_tiles(config, shape);
  return shape;
}

std::unique_ptr<Codec> make_wan_vae(const CodecConfig& config, at::Device device) {
  const WanVaeWeights weights(config.weights);
  check_space_tiles(config, weights.config().shape());
  const at::ScalarType dtype = scalar_type(config.compute_dtype);
  return std::make_unique<WanVae>(config, weights.config(), weights.load(dtype, device), dtype, device);
}

}  // namespace vmoba::model
