#include "train/cache/cache_keys.h"

#include <filesystem>

#include "core/check.h"
#include "core/hash.h"
#include "model/conditioning.h"
#include "model/image_text_encoder.h"
#include "model/weights/model_folder.h"
#include "model/weights/weight_files.h"

namespace vmoba::train {
namespace {

// To be raised where decoding or encoding changes its result.
constexpr int kClipVersion = 2, kTextVersion = 1;

template <typename Config>
std::string settings_text(Config config) {
  return config_to_yaml([&](ConfigVisitor& v) { config.visit(v); });
}

// Of the weights and of the config.json beside them.
std::string weights_hash(FileHashes& files, const std::string& path, const std::string& part, const std::string& key) {
  return files.of_weights({path}, [&] {
    std::vector<std::string> list = model::find_weight_files(model::model_folder(path, part, key));
    const std::filesystem::path config = std::filesystem::path(list.front()).parent_path() / "config.json";
    if (std::filesystem::exists(config)) list.push_back(config.string());
    return list;
  });
}

std::string clip_settings(const RootConfig& config, FileHashes& files) {
  model::CodecConfig codec = config.codec;
  codec.weights = weights_hash(files, codec.weights, "vae", "codec.weights");
  std::string text =
      fmt::format("version {}\n{}latents {}\n", kClipVersion, settings_text(codec), config.cache.latent_dtype);
  if (model::needs_first_frame(config.model) || (config.model.task == "ti2v" && config.model.image_dim > 0)) {
    model::ImageEncoderConfig image = config.image_encoder;
    image.weights = weights_hash(files, image.weights, "image_encoder", "image_encoder.weights");
    text += fmt::format("{} {}\n{}", config.model.task, config.model.image_dim, settings_text(image));
  }
  return hash_text(content_hash(text));
}

// Where the encoder computes is no setting of the result.
std::string text_settings(const RootConfig& config, FileHashes& files) {
  model::TextEncoderConfig text = config.text;
  text.weights =
      files.of_weights({text.weights, text.weights_2}, [&] { return model::text_encoder_files(config.text); });
  text.tokenizer.clear();
  text.weights_2.clear();
  text.tokenizer_2.clear();
  text.device = model::TextEncoderConfig().device;
  return hash_text(content_hash(fmt::format("version {}\n{}", kTextVersion, settings_text(text))));
}

}  // namespace

CacheKeys::CacheKeys(const RootConfig& config, FileHashes& files)
    : files_(files),
      clip_settings_(clip_settings(config, files)),
      text_settings_(text_settings(config, files)),
      sees_images_(model::sees_images(config.text)) {
  const char* dropped = config.train.flow.caption_dropout > 0 ? " and without" : "";
  if (sees_images_)
    clip_settings_ = hash_text(content_hash(fmt::format("{}\ncaptions {}{}", clip_settings_, text_settings_, dropped)));
}

std::string CacheKeys::clip(const data::ClipPlan& plan, int64_t clip, bool flip) {
  const data::Clip& c = plan.clips[size_t(clip)];
  const data::Bucket& bucket = plan.buckets[size_t(c.bucket)];
  const std::string crop =
      c.crop.width == 0 ? "" : fmt::format("_{}x{}+{}+{}", c.crop.width, c.crop.height, c.crop.x, c.crop.y);
  const std::string caption = sees_images_ ? fmt::format("_{}", hash_text(content_hash(c.caption))) : "";
  return fmt::format("clip/{}/{}/{:.6f}s_{}fps_{}x{}x{}{}{}{}", clip_settings_, files_.of_file(c.path), c.start_s,
                     c.fps, c.frames, bucket.height, bucket.width, crop, flip ? "_mirrored" : "", caption);
}

std::string CacheKeys::text(const std::string& caption) const {
  return fmt::format("text/{}/{}", text_settings_, hash_text(content_hash(caption)));
}

}  // namespace vmoba::train
