// vmoba-train-codec: a small codec (codec.type patch_codec) from clips (docs/codec.md).
#include <algorithm>
#include <iostream>

#include "apps/main_guard.h"
#include "config/device.h"
#include "core/log.h"
#include "train/codec/codec_run.h"
#include "train/signals.h"

namespace {

using namespace vmoba;

struct Arguments {
  train::CodecRunConfig run;
  std::vector<std::string> data, validation;
  int64_t crop = 96, height = 144, width = 256, validation_clips = 32;
  double fps = 16;
  RunConfig device;
};

// Clips twice as long as a crop where the file has them, so that crops begin anywhere.
data::DataConfig data_config(const Arguments& a, const std::vector<std::string>& paths, std::vector<int64_t> frames) {
  data::DataConfig config;
  for (const std::string& path : paths) config.sets.emplace_back().path = path;
  config.fps = a.fps;
  config.frames = std::move(frames);
  config.height = a.height;
  config.width = a.width;
  config.frame_extraction = "chunk";
  config.images = false;
  return config;
}

int train_codec(Arguments a) {
  const auto start = std::chrono::steady_clock::now();
  train::install_stop_signals();
  a.run.trainer.model.validate(a.run.out);
  a.run.crop.height = a.run.crop.width = a.crop;
  a.run.validate();
  const at::Device device = prepare_device(a.device);
  a.run.trainer.bf16 = device.is_cuda();
  log_info("{}", device_text(device));
  const int64_t frames = a.run.crop.frames;
  const std::vector<at::Tensor> clips = train::decode_clips(data_config(a, a.data, {frames, 2 * frames - 1}), device);
  std::vector<at::Tensor> held_out;
  if (!a.validation.empty()) {
    const std::vector<at::Tensor> all = train::decode_clips(data_config(a, a.validation, {frames}), device);
    const size_t count = std::min(all.size(), size_t(a.validation_clips));
    for (size_t i = 0; i < count; ++i) held_out.push_back(all[i * all.size() / count]);
  }
  log_info("{} clips to train on, {} held out", clips.size(), held_out.size());
  const train::CodecRunResult result = train::run_codec_training(a.run, clips, held_out, device, start);
  log_info("{} steps, loss {:.5f} to {:.5f}", result.steps, result.first_loss, result.last_loss);
  if (!held_out.empty()) std::cout << fmt::format("PSNR {:.2f} dB on held-out clips\n", result.psnr_db);
  return result.stopped ? train::kExitStopped : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Trains a small codec (codec.type patch_codec) on clips: 4x8x8 pixels to 16 latent channels."};
  Arguments a;
  app.add_option("--data", a.data, "Folders or manifests of clips to train on")->required();
  app.add_option("--validation", a.validation, "Folders or manifests of held-out clips, whose PSNR is printed");
  app.add_option("--out", a.run.out, "The safetensors file; written anew at every save")->required();
  app.add_option("--steps", a.run.steps, "Updates; 0: until --seconds are over")->check(CLI::NonNegativeNumber);
  app.add_option("--seconds", a.run.seconds, "Time from the start to the last update, decoding of the clips included")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--lr", a.run.lr, "Highest learning rate (AdamW); it falls to 0 over the run")
      ->check(CLI::PositiveNumber);
  app.add_option("--batch", a.run.batch, "Crops of an update")->check(CLI::PositiveNumber);
  app.add_option("--frames", a.run.crop.frames, "Frames of a crop, 1 + 4n")->check(CLI::PositiveNumber);
  app.add_option("--crop", a.crop, "Height and width of a crop in pixels")->check(CLI::PositiveNumber);
  app.add_option("--fps", a.fps, "Frames per second that are taken from the clips")->check(CLI::PositiveNumber);
  app.add_option("--height", a.height, "Height to which clips are brought")->check(CLI::PositiveNumber);
  app.add_option("--width", a.width, "Width to which clips are brought")->check(CLI::PositiveNumber);
  model::PatchCodecConfig& sizes = a.run.trainer.model;
  app.add_option("--encoder-width", sizes.encoder_width, "Channels of the encoder")->check(CLI::PositiveNumber);
  app.add_option("--encoder-blocks", sizes.encoder_blocks, "Blocks of the encoder")->check(CLI::NonNegativeNumber);
  app.add_option("--decoder-width", sizes.decoder_width, "Channels of the decoder")->check(CLI::PositiveNumber);
  app.add_option("--decoder-blocks", sizes.decoder_blocks, "Blocks of the decoder")->check(CLI::NonNegativeNumber);
  app.add_option("--fine-width", sizes.fine_width, "Channels of the decoder at 4x4 pixels")->check(CLI::PositiveNumber);
  app.add_option("--fine-blocks", sizes.fine_blocks, "Blocks of the decoder at 4x4 pixels")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--latent-noise", a.run.trainer.latent_noise,
                 "Deviation of noise that is put on latents of deviation 1")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--validation-clips", a.validation_clips, "Held-out clips that are used, at most")
      ->check(CLI::PositiveNumber);
  app.add_option("--save-every", a.run.save_every_s, "Seconds between saves")->check(CLI::PositiveNumber);
  app.add_option("--seed", a.run.trainer.seed, "Of weights, crops and noise");
  app.add_option("--device", a.device.device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  return vmoba::apps::guarded_main(app, argc, argv, [&] { return train_codec(a); });
}
