// Shape letters: L tokens with the template, X tokens that are kept, E width.
#include "model/text/prompt_language.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <optional>

#include "core/check.h"
#include "model/common/dtype.h"
#include "model/weights/model_folder.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeightsKey = "text.weights";
constexpr const char* kSecondKey = "text.weights_2";
constexpr const char* kTokenizerKey = "text.tokenizer";
constexpr const char* kTokenizerFolder = "tokenizer";

std::vector<int64_t> template_ids(const BpeTokenizer& tokenizer, const PromptTemplate& prompt,
                                  const std::string& text) {
  std::vector<int64_t> ids = tokenizer.encode(prompt.before + text);
  if (!prompt.begin.empty()) ids.insert(ids.begin(), tokenizer.special(prompt.begin));
  return ids;
}

BpeTokenizer load_tokenizer(const TextEncoderConfig& config, const PromptTemplate& prompt) {
  const std::string weights = config.tokenizer.empty() ? language_weights(config, prompt) : "";
  // Another family's vocabulary, which load refuses, would spell the template's special tokens out.
  return BpeTokenizer::load(tokenizer_near(config.tokenizer, weights, kTokenizerFolder, kTokenizerKey),
                            kTokenizerFolder, prompt.rules, kTokenizerKey);
}

}  // namespace

std::string language_weights(const TextEncoderConfig& config, const PromptTemplate& prompt) {
  VMOBA_CHECK_INPUT(!config.weights.empty(),
                    "{}: expected {} for text.type {} (diffusers' model or its text_encoder/ folder, or a safetensors "
                    "file), found nothing",
                    kWeightsKey, prompt.kind.title, config.type);
  return model_folder(config.weights, "text_encoder", kWeightsKey);
}

std::string tokenizer_near(const std::string& path, const std::string& weights, const std::string& part,
                           const std::string& key) {
  if (!path.empty()) return path;
  const fs::path place = fs::absolute(weights).lexically_normal();
  const fs::path folder = fs::is_directory(place) ? place : place.parent_path();
  for (const fs::path& near : {folder, folder / part, folder.parent_path() / part})
    if (BpeTokenizer::is_in(near.string())) return near.string();
  throw_input(
      "{}: expected a tokenizer's folder or file, found nothing, and none lies near '{}'; set it to the {}/ folder of "
      "the diffusers model",
      key, weights, part);
}

std::string second_weights(const TextEncoderConfig& config, const std::string& part, const std::string& title) {
  if (!config.weights_2.empty()) return model_folder(config.weights_2, part, kSecondKey);
  if (!config.weights.empty()) {
    const fs::path place = fs::absolute(config.weights).lexically_normal();
    for (const fs::path& near : {place / part, place.parent_path() / part})
      if (fs::is_directory(near)) return near.string();
  }
  throw_input("{}: expected {} for text.type {}, found nothing, and no {}/ lies near text.weights '{}'; set it",
              kSecondKey, title, config.type, part, config.weights);
}

at::Device encoder_device(const TextEncoderConfig& config, at::Device run) {
  VMOBA_CHECK_INPUT(config.device != "cuda" || run.is_cuda(),
                    "text.device: expected a run on a CUDA GPU for cuda, found run.device {}", run.str());
  return config.device == "auto" ? run : at::Device(config.device);
}

void check_parts(const std::vector<std::function<void()>>& checks) {
  std::string refusals;
  for (const auto& check : checks) {
    try {
      check();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInput) throw;
      if (refusals.find(error.what()) != std::string::npos) continue;
      if (!refusals.empty()) refusals += '\n';
      refusals += error.what();
    }
  }
  if (!refusals.empty()) throw_input("{}", refusals);
}

std::vector<std::string> weight_and_config_files(const std::string& weights) {
  std::vector<std::string> out = find_weight_files(weights);
  const fs::path config = fs::path(out.front()).parent_path() / "config.json";
  if (fs::is_directory(weights) && fs::exists(config)) out.push_back(config.string());
  return out;
}

void check_vocabulary(const BpeTokenizer& tokenizer, int64_t words, const std::string& key) {
  VMOBA_CHECK_INPUT(tokenizer.vocabulary_size() <= words,
                    "{}: expected at most the {} words of the encoder, found {}; use the tokenizer that came with the "
                    "weights",
                    key, words, tokenizer.vocabulary_size());
}

PromptLanguage::PromptLanguage(const TextEncoderConfig& config, const PromptTemplate& prompt, at::Device device)
    : prompt_(prompt),
      tokenizer_(load_tokenizer(config, prompt)),
      encoder_(WeightFiles(language_weights(config, prompt), llama_layouts()), config.weights, prompt.kind,
               scalar_type(config.dtype), device),
      dropped_(int64_t(template_ids(tokenizer_, prompt, "").size())) {
  check_vocabulary(tokenizer_, encoder_.shape().vocabulary, kTokenizerKey);
}

LlamaShape PromptLanguage::check(const TextEncoderConfig& config, const PromptTemplate& prompt) {
  LlamaShape shape;
  std::optional<BpeTokenizer> tokenizer;
  check_parts({[&] {
                 shape = check_llama(WeightFiles(language_weights(config, prompt), llama_layouts()), config.weights,
                                     prompt.kind);
               },
               [&] { tokenizer = load_tokenizer(config, prompt); }});
  check_vocabulary(*tokenizer, shape.vocabulary, kTokenizerKey);
  return shape;
}

std::vector<std::string> PromptLanguage::files(const TextEncoderConfig& config, const PromptTemplate& prompt) {
  const std::string weights = language_weights(config, prompt);
  std::vector<std::string> out = weight_and_config_files(weights);
  const std::string place = tokenizer_near(config.tokenizer, weights, kTokenizerFolder, kTokenizerKey);
  for (const std::string& file : BpeTokenizer::files(place, kTokenizerFolder, kTokenizerKey)) out.push_back(file);
  return out;
}

std::vector<int64_t> PromptLanguage::ids(const std::string& caption, int64_t max_tokens) const {
  const std::string& text = caption.empty() ? prompt_.nothing : caption;
  std::vector<int64_t> ids = template_ids(tokenizer_, prompt_, text + prompt_.behind);
  if (int64_t(ids.size()) > dropped_ + max_tokens) ids.resize(size_t(dropped_ + max_tokens));
  return ids;
}

at::Tensor PromptLanguage::encode(const std::vector<int64_t>& ids) const {
  return encoder_.forward(ids).slice(0, dropped_);
}

TokenCounter prompt_token_counter(const TextEncoderConfig& config, const PromptTemplate& prompt) {
  const auto tokenizer = std::make_shared<BpeTokenizer>(load_tokenizer(config, prompt));
  const auto dropped = int64_t(template_ids(*tokenizer, prompt, "").size());
  return [tokenizer, prompt, dropped](const std::string& caption) {
    const std::string& text = caption.empty() ? prompt.nothing : caption;
    return int64_t(template_ids(*tokenizer, prompt, text + prompt.behind).size()) - dropped;
  };
}

at::Tensor PromptLanguage::states(const std::vector<int64_t>& ids, const at::Tensor& picture_IE, int64_t place) const {
  return encoder_.forward(ids, picture_IE, place);
}

TextEmbedding encode_prompts(const PromptLanguage& language, const std::vector<std::string>& prompts,
                             int64_t max_tokens, at::Device device) {
  TextEmbedding out;
  out.tokens_BLE = at::zeros({int64_t(prompts.size()), max_tokens, language.width()}, at::TensorOptions(device));
  std::vector<int64_t> lengths;
  std::map<std::vector<int64_t>, int64_t> seen;  // ids -> row
  for (int64_t b = 0; b < int64_t(prompts.size()); ++b) {
    const std::vector<int64_t> ids = language.ids(prompts[size_t(b)], max_tokens);
    lengths.push_back(int64_t(ids.size()) - language.dropped());
    const auto [first, fresh] = seen.emplace(ids, b);
    if (fresh)
      out.tokens_BLE[b].narrow(0, 0, lengths.back()).copy_(language.encode(ids));
    else
      out.tokens_BLE[b].copy_(out.tokens_BLE[first->second]);
  }
  out.length_B = at::tensor(lengths, at::kLong);
  return out;
}

}  // namespace vmoba::model
