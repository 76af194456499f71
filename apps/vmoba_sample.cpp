// vmoba-sample: text (and an image) -> video, from a checkpoint of vmoba-train or from pretrained weights as they are
// (docs/running.md).
#include <iostream>

#include "apps/main_guard.h"
#include "apps/sample/job.h"
#include "config/device.h"
#include "core/log.h"
#include "data/video_writer.h"
#include "model/weights/safetensors.h"

namespace {

using namespace vmoba;

int write_sample(const apps::SampleArguments& a) {
  const RootConfig config = apps::sample_config(a);
  set_log_level(log_level_from_name(config.run.log_level));
  const at::Device device = prepare_device(config.run);
  const sample::SampleRequest request = apps::sample_request(a, config);
  const std::string out = a.out.empty() && a.output_latents.empty() ? "sample.mp4" : a.out;

  // Encoders whose work was given are not loaded.
  std::unique_ptr<model::Codec> codec;
  std::unique_ptr<model::TextEncoder> text;
  std::unique_ptr<model::ImageEncoder> image;
  if (!out.empty() || request.first_CHW.defined()) codec = model::make_codec(config.codec, device);
  const bool needs_negative = config.sample.guidance > 1 && !request.given.negative.tokens_BLE.defined();
  if (!request.given.prompt.tokens_BLE.defined() || needs_negative)
    text = model::make_text_encoder(config.text, device);
  if (config.model.image_dim > 0 && !request.given.image_1IM.defined())
    image = model::make_image_encoder(config.image_encoder, device);

  const apps::SampleModel model = apps::load_sample_model(a, config, device);
  sample::Pipeline pipeline({model.borrowed(), model::codec_shape(config.codec), codec.get(), text.get(), image.get()},
                            config.model, config.experts, resolved(config.sample, config.model, config.text),
                            config.attention, device);
  const at::Tensor latents = pipeline.generate_latents(
      request, [](int64_t step, int64_t steps) { log_info("sampling step {}/{}", step, steps); });
  if (!a.output_latents.empty()) {
    model::write_safetensors(a.output_latents, {{"latents", latents}});
    std::cout << a.output_latents << "\n";
  }
  if (!out.empty()) {
    data::write_video(out, pipeline.decode(latents), config.sample.fps);
    std::cout << out << "\n";
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Samples a video from a checkpoint of vmoba-train, or from the pretrained weights of a configuration."};
  apps::SampleArguments a;
  app.add_option("--checkpoint", a.checkpoint, "checkpoint-<step> folder of a run");
  app.add_option("--config", a.config, "Configuration whose model.weights are sampled from, untrained");
  app.add_option("--prompt", a.prompt, "What to show");
  app.add_option("--negative-prompt", a.negative, "What to steer away from (default: the configuration's)");
  app.add_option("--image", a.image, "First frame: an image, or a video whose first frame is taken (model.task)");
  app.add_option("--last-image", a.last_image, "Last frame (model.task flf2v)");
  app.add_option("--out", a.out, "The .mp4 to write (sample.mp4; none where only --output-latents is given)");
  app.add_option("--latents", a.latents, "safetensors file with starting noise: latents");
  app.add_option("--embeds", a.embeds,
                 "safetensors file with prompt_embeds, negative_prompt_embeds, image_embeds (any of them)");
  app.add_option("--output-latents", a.output_latents, "safetensors file to write the final latents to");
  app.add_option("--seed", a.seed, "Seed of the noise (default: sample.seed)");
  app.add_flag("--ema,!--no-ema", a.use_ema, "Use the averaged weights where the checkpoint has them (default)");
  app.add_option("--lora", a.loras,
                 "LoRA file to add, in any format of docs/pretrained.md; may be repeated. N:FILE adds to expert N (the "
                 "first is 1, where no number stands)");
  app.add_option("--lora-2", a.loras_2, "The last release's word for --lora 2:FILE; the next one refuses it");
  app.add_option("--lora-strength", a.lora_strength, "Factor of what --lora adds (1)");
  app.add_option("overrides", a.overrides, "key.sub=value, for example sample.steps=20 attention.backend=full");
  return apps::guarded_main(app, argc, argv, [&] { return write_sample(a); });
}
