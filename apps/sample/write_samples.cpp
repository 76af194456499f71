#include "apps/sample/write_samples.h"

#include <chrono>
#include <iostream>

#include "config/device.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "data/video_writer.h"
#include "model/weights/safetensors.h"

namespace vmoba::apps {
namespace {

// All that the videos share, loaded once. Encoders whose work was given are not loaded.
struct Parts {
  std::unique_ptr<model::Codec> codec;
  std::unique_ptr<model::TextEncoder> text;
  std::unique_ptr<model::ImageEncoder> image;
  SampleModel model;
};

Parts load_parts(const SampleArguments& a, const RootConfig& config, const std::vector<VideoOrder>& orders,
                 at::Device device) {
  Parts parts;
  bool decodes = false, guides = false;
  for (const VideoOrder& order : orders) {
    decodes |= !order.out.empty() || !order.image.empty() || !order.last_image.empty();
    guides |= order.settings.guidance > 1;
  }
  const sample::GivenTensors given = sample_request(a, orders.front()).given;
  if (decodes) parts.codec = model::make_codec(config.codec, device);
  if (!given.prompt.tokens_BLE.defined() || (guides && !given.negative.tokens_BLE.defined()))
    parts.text = model::make_text_encoder(config.text, device);
  if (config.model.image_dim > 0 && !given.image_1IM.defined())
    parts.image = model::make_image_encoder(config.image_encoder, device);
  parts.model = load_sample_model(a, config, device);
  return parts;
}

void write_one(const SampleArguments& a, const RootConfig& config, const Parts& parts, const VideoOrder& order,
               at::Device device) {
  attention::AttentionStats stats;
  const sample::SampleRequest request = sample_request(a, order);
  const SampleConfig settings = resolved(order.settings, config.model, config.text);
  sample::Pipeline pipeline({parts.model.borrowed(), model::codec_shape(config.codec), parts.codec.get(),
                             parts.text.get(), parts.image.get(), &stats},
                            config.model, config.experts, settings, config.attention, device);
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor latents = pipeline.generate_latents(
      request, [](int64_t step, int64_t steps) { log_info("sampling step {}/{}", step, steps); });
  if (!a.output_latents.empty()) {
    model::write_safetensors(a.output_latents, {{"latents", latents}});
    std::cout << a.output_latents << "\n";
  }
  const double density = stats.densities()["all"];  // waits for the GPU
  const double denoising_s = seconds_since(start);
  if (!order.out.empty()) {
    data::write_video(order.out, pipeline.decode(latents), settings.fps);
    std::cout << order.out << std::endl;
  }
  log_info("{}: seed {}, {} frames of {}x{}, density {:.3f}, {:.1f} s of which denoising {:.1f} s",
           order.out.empty() ? a.output_latents : order.out, order.seed, settings.frames, settings.width,
           settings.height, density, seconds_since(start), denoising_s);
}

}  // namespace

int write_samples(const SampleArguments& given) {
  const SampleArguments a = with_checkpoint(given);
  const RootConfig config = sample_config(a);
  set_log_level(log_level_from_name(config.run.log_level));
  const std::vector<VideoOrder> orders = sample_orders(a, config);
  if (orders.empty()) return 0;
  const at::Device device = prepare_device(config.run);
  const Parts parts = load_parts(a, config, orders, device);
  for (const VideoOrder& order : orders) write_one(a, config, parts, order, device);
  return 0;
}

}  // namespace vmoba::apps
