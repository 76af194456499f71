#include "model/text/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/check.h"
#include "core/file.h"
#include "core/file_kind.h"
#include "core/json.h"
#include "model/text/special_tokens.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kModelName = "spiece.model";
constexpr const char* kConfigName = "tokenizer_config.json";
constexpr int64_t kMaxModelBytes = 64 << 20;
constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kUmt5Sentinels = 300;     // google/umt5-xxl: <extra_id_0> to <extra_id_299>
constexpr int64_t kDefaultSentinels = 100;  // of a tokenizer_config.json that does not say
constexpr int64_t kMaxSentinels = 10000;

std::string sentinel(int64_t number) {
  return fmt::format("<extra_id_{}>", number);
}

// Behind the pieces, counted down: <extra_id_0> has the last id.
void add_sentinels(SpecialTokens& specials, int64_t pieces, int64_t count) {
  for (int64_t i = 0; i < count; ++i) specials.add(sentinel(i), pieces + count - 1 - i);
}

fs::path find_model(const fs::path& path) {
  VMOBA_CHECK_INPUT(fs::exists(path), "text.tokenizer: expected {} or its folder at '{}', found nothing", kModelName,
                    path.string());
  if (!fs::is_directory(path)) {
    VMOBA_CHECK_INPUT(
        path.extension() != ".json",
        "text.tokenizer: expected a SentencePiece model ({}), found '{}'; the fast tokenizer's JSON is not "
        "read here: give the {} that lies beside it",
        kModelName, path.string(), kModelName);
    return path;
  }
  for (const fs::path& folder : {path, path / "tokenizer"})
    if (fs::exists(folder / kModelName)) return folder / kModelName;
  const bool has_json = fs::exists(path / "tokenizer.json") || fs::exists(path / "tokenizer" / "tokenizer.json");
  throw_input(
      "text.tokenizer: expected {} in '{}' or its tokenizer/ folder, found {}; copy {} from the tokenizer/ folder "
      "of a Wan diffusers model or from google/umt5-xxl there",
      kModelName, path.string(), has_json ? "tokenizer.json only, which is not read here" : "none", kModelName);
}

// Special tokens that tokenizer_config.json lists with their ids (`added_tokens_decoder`); else how many sentinels.
void read_config(const fs::path& file, int64_t pieces, SpecialTokens& specials) {
  const json config = read_json(file.string(), kMaxConfigBytes, "a tokenizer configuration");
  VMOBA_CHECK_INPUT(config.is_object(), "expected a JSON object in '{}', found something else", file.string());
  const auto listed = config.find("added_tokens_decoder");
  if (listed != config.end() && listed->is_object() && !listed->empty()) {
    for (const auto& [key, token] : listed->items()) {
      int64_t id = -1;
      const auto read = std::from_chars(key.data(), key.data() + key.size(), id);
      VMOBA_CHECK_INPUT(read.ec == std::errc() && read.ptr == key.data() + key.size() && id >= 0 && token.is_object() &&
                            token.contains("content") && token["content"].is_string() &&
                            !token["content"].get_ref<const std::string&>().empty() && id < pieces + kMaxSentinels,
                        "expected ids and contents in added_tokens_decoder of '{}', found '{}': {}", file.string(), key,
                        json_text(token));
      specials.add(token["content"].get<std::string>(), id);
    }
    return;
  }
  const int64_t count = config.contains("extra_ids") && config["extra_ids"].is_number_integer()
                            ? config["extra_ids"].get<int64_t>()
                            : kDefaultSentinels;
  VMOBA_CHECK_INPUT(count >= 0 && count <= kMaxSentinels, "expected extra_ids from 0 to {} in '{}', found {}",
                    kMaxSentinels, file.string(), count);
  add_sentinels(specials, pieces, count);
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

std::vector<std::string_view> split_at_space(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t at = 0; at < text.size();) {
    while (at < text.size() && is_space(text[at])) ++at;
    size_t end = at;
    while (end < text.size() && !is_space(text[end])) ++end;
    if (end > at) words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

}  // namespace

struct SentencePieceTokenizer::State {
  State(const std::string& model, const std::string& origin) {
    const std::string problem = loaded(model);
    const std::string kind = problem.empty() ? "" : what_is_this(origin);
    VMOBA_CHECK_INPUT(problem.empty(), "text.tokenizer: expected a SentencePiece model at '{}', found: {}", origin,
                      kind.empty() ? problem : kind);
    end = processor.eos_id();
    unknown = processor.unk_id();
    VMOBA_CHECK_INPUT(end >= 0 && unknown >= 0,
                      "text.tokenizer: expected a T5 model with </s> and <unk> at '{}', found none", origin);
    for (int id = 0; id < processor.GetPieceSize(); ++id)
      if (processor.IsControl(id) || processor.IsUnknown(id)) specials.add(processor.IdToPiece(id), id);
  }

  // What is wrong, or "". The library throws exceptions of its own for pieces that a damaged model holds.
  std::string loaded(const std::string& model) {
    try {
      const sentencepiece::util::Status status = processor.LoadFromSerializedProto(model);
      return status.ok() ? "" : status.ToString();
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return fmt::format("a damaged one ({})", error.what());
    }
  }

  // Ids of a stretch without special tokens. A run of byte pieces spells unknown characters.
  void encode_plain(std::string_view text, std::vector<int64_t>& out) const {
    for (const std::string_view word : split_at_space(text)) {
      std::vector<int> ids;
      const sentencepiece::util::Status status = processor.Encode(word, &ids);
      VMOBA_CHECK(status.ok(), "expected SentencePiece to encode '{}', found: {}", word, status.ToString());
      bool in_unknown = false;
      for (const int id : ids) {
        const bool is_unknown = processor.IsByte(id) || id == unknown;
        if (!is_unknown || !in_unknown) out.push_back(is_unknown ? unknown : id);
        in_unknown = is_unknown;
      }
    }
  }

  sentencepiece::SentencePieceProcessor processor;
  SpecialTokens specials;
  int64_t end = 0, unknown = 0;
};

SentencePieceTokenizer::SentencePieceTokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceTokenizer&&) noexcept = default;
SentencePieceTokenizer& SentencePieceTokenizer::operator=(SentencePieceTokenizer&&) noexcept = default;
SentencePieceTokenizer::~SentencePieceTokenizer() = default;

SentencePieceTokenizer SentencePieceTokenizer::load(const std::string& path) {
  const fs::path model = find_model(path);
  auto state =
      std::make_unique<State>(read_file(model.string(), kMaxModelBytes, "a SentencePiece model"), model.string());
  const fs::path config = model.parent_path() / kConfigName;
  const int64_t pieces = state->processor.GetPieceSize();
  if (fs::exists(config))
    read_config(config, pieces, state->specials);
  else
    add_sentinels(state->specials, pieces, kUmt5Sentinels);
  return SentencePieceTokenizer(std::move(state));
}

std::vector<std::string> SentencePieceTokenizer::files(const std::string& path) {
  const fs::path model = find_model(path);
  const fs::path config = model.parent_path() / kConfigName;
  if (!fs::exists(config)) return {model.string()};
  return {model.string(), config.string()};
}

SentencePieceTokenizer SentencePieceTokenizer::from_bytes(const std::string& model, const std::string& origin) {
  auto state = std::make_unique<State>(model, origin);
  add_sentinels(state->specials, state->processor.GetPieceSize(), kUmt5Sentinels);
  return SentencePieceTokenizer(std::move(state));
}

std::vector<int64_t> SentencePieceTokenizer::encode(const std::string& text, int64_t max_tokens) const {
  VMOBA_CHECK(max_tokens >= 1, "expected at least 1 token, found {}", max_tokens);
  std::vector<int64_t> ids;
  state_->specials.split(
      text, [&](std::string_view stretch) { state_->encode_plain(stretch, ids); },
      [&](int64_t id) { ids.push_back(id); });
  if (int64_t(ids.size()) >= max_tokens) ids.resize(size_t(max_tokens - 1));
  ids.push_back(state_->end);
  return ids;
}

int64_t SentencePieceTokenizer::vocabulary_size() const {
  return std::max<int64_t>(state_->processor.GetPieceSize(), state_->specials.end());
}

}  // namespace vmoba::model
