#include "model/text/umt5_text_encoder.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>

#include "core/check.h"
#include "model/common/dtype.h"
#include "model/text/sentencepiece_tokenizer.h"
#include "model/text/t5_encoder.h"
#include "model/text/text_cleaning.h"
#include "model/weights/model_folder.h"

// Shape letters: B prompts, L tokens, E width.
namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEmbeddedTokenizer = "spiece_model";  // uint8 tensor in ComfyUI's files

// Folders in which the tokenizer of weights at `folder` may lie: in it, beside it (diffusers), or below (original).
std::vector<fs::path> tokenizer_places(const fs::path& folder) {
  return {folder, folder.parent_path(), folder / "google" / "umt5-xxl"};
}

// What text.tokenizer says, or the place near the weights that holds one; "" where it is inside the weights.
std::string tokenizer_place(const TextEncoderConfig& config, const WeightFiles& files) {
  if (!config.tokenizer.empty()) return config.tokenizer;
  if (files.entries().contains(kEmbeddedTokenizer)) return "";
  for (const fs::path& place : tokenizer_places(fs::absolute(files.folder()).lexically_normal())) {
    if (fs::exists(place / "spiece.model") || fs::exists(place / "tokenizer" / "spiece.model")) return place.string();
  }
  throw_input(
      "text.tokenizer: expected spiece.model or its folder, found nothing, and none lies near '{}'; set it to the "
      "tokenizer/ folder of a Wan diffusers model or to google/umt5-xxl of the original one",
      config.weights);
}

SentencePieceTokenizer find_tokenizer(const TextEncoderConfig& config, const WeightFiles& files) {
  const std::string place = tokenizer_place(config, files);
  if (!place.empty()) return SentencePieceTokenizer::load(place);
  const at::Tensor bytes = files.read_stored(kEmbeddedTokenizer, at::kCPU).tensor;
  const std::string origin = config.weights + " (" + kEmbeddedTokenizer + ")";
  VMOBA_CHECK_INPUT(bytes.scalar_type() == at::kByte, "text.weights: expected bytes in {}, found {}", origin,
                    c10::toString(bytes.scalar_type()));
  return SentencePieceTokenizer::from_bytes(
      std::string(static_cast<const char*>(bytes.const_data_ptr()), size_t(bytes.numel())), origin);
}

std::string weights_folder(const TextEncoderConfig& config) {
  VMOBA_CHECK_INPUT(!config.weights.empty(),
                    "text.weights: expected a UMT5 encoder for text.type umt5 (diffusers' text_encoder/ folder or a "
                    "safetensors file), found nothing");
  return model_folder(config.weights, "text_encoder", "text.weights");
}

void check_tokenizer(const SentencePieceTokenizer& tokenizer, const T5Shape& shape) {
  VMOBA_CHECK_INPUT(
      tokenizer.vocabulary_size() <= shape.vocabulary,
      "text.tokenizer: expected at most the {} words of the encoder, found {}; use the tokenizer that came "
      "with the weights",
      shape.vocabulary, tokenizer.vocabulary_size());
}

class Umt5TextEncoder : public TextEncoder {
 public:
  Umt5TextEncoder(const TextEncoderConfig& config, const WeightFiles& files, at::Device output)
      : tokenizer_(find_tokenizer(config, files)),
        encoder_(files, config.weights, umt5_kind(), scalar_type(config.dtype),
                 config.device == "auto" ? output : at::Device(config.device)),
        max_tokens_(config.max_tokens),
        output_(output) {
    check_tokenizer(tokenizer_, encoder_.shape());
  }

  int64_t dim() const override { return encoder_.shape().width; }
  int64_t max_tokens() const override { return max_tokens_; }

  // Prompts are encoded at their own lengths: what Wan's pipelines compute behind a prompt is masked and then zeroed.
  TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    at::Tensor out_BLE = at::zeros({int64_t(prompts.size()), max_tokens_, dim()}, at::TensorOptions(output_));
    std::vector<int64_t> lengths;
    std::map<std::vector<int64_t>, int64_t> seen;  // ids -> row
    for (int64_t b = 0; b < int64_t(prompts.size()); ++b) {
      const std::vector<int64_t> ids = tokenizer_.encode(clean_prompt(prompts[size_t(b)]), max_tokens_);
      lengths.push_back(int64_t(ids.size()));
      const auto [first, fresh] = seen.emplace(ids, b);
      if (fresh)
        out_BLE[b].narrow(0, 0, int64_t(ids.size())).copy_(encoder_.forward(ids));
      else
        out_BLE[b].copy_(out_BLE[first->second]);
    }
    return {out_BLE, at::tensor(lengths, at::kLong)};
  }

 private:
  SentencePieceTokenizer tokenizer_;
  T5Encoder encoder_;
  int64_t max_tokens_;
  at::Device output_;
};

}  // namespace

std::unique_ptr<TextEncoder> make_umt5_text_encoder(const TextEncoderConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(config.device != "cuda" || device.is_cuda(),
                    "text.device: expected a run on a CUDA GPU for cuda, found run.device {}", device.str());
  return std::make_unique<Umt5TextEncoder>(config, WeightFiles(weights_folder(config), umt5_layouts()), device);
}

int64_t check_umt5_text_encoder(const TextEncoderConfig& config) {
  const WeightFiles files(weights_folder(config), umt5_layouts());
  const T5Shape shape = check_t5(files, config.weights, umt5_kind());
  check_tokenizer(find_tokenizer(config, files), shape);
  return shape.width;
}

TokenCounter umt5_token_counter(const TextEncoderConfig& config) {
  const auto tokenizer = std::make_shared<SentencePieceTokenizer>(
      find_tokenizer(config, WeightFiles(weights_folder(config), umt5_layouts())));
  constexpr int64_t kAny = int64_t{1} << 40;
  return [tokenizer](const std::string& caption) {
    return int64_t(tokenizer->encode(clean_prompt(caption), kAny).size());
  };
}

std::vector<std::string> umt5_files(const TextEncoderConfig& config) {
  const std::string folder = weights_folder(config);
  std::vector<std::string> files = find_weight_files(folder);
  const std::string place = tokenizer_place(config, WeightFiles(folder, umt5_layouts()));
  if (!place.empty())
    for (const std::string& file : SentencePieceTokenizer::files(place)) files.push_back(file);
  return files;
}

}  // namespace vmoba::model
