#include "model/text/bpe_tokenizer.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <queue>
#include <tuple>

#include "core/check.h"
#include "core/file.h"
#include "model/text/unicode_text.h"
#include "model/text/utf8.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxBytes = 128 << 20;
constexpr const char* kJson = "tokenizer.json";
constexpr const char* kVocab = "vocab.json";
constexpr const char* kMerges = "merges.txt";
constexpr const char* kConfig = "tokenizer_config.json";
constexpr const char* kRanks = "tokenizer.model";
constexpr const char* kRanksKind = ".tiktoken";

// White space as Unicode's property has it: PCRE2's \s also has U+180E.
constexpr const char* kSpace =
    R"(\t-\r\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// The pattern that LLaMA-3 and Qwen2.5 share but for how many digits go together.
std::string words_pattern(const std::string& digits) {
  return fmt::format(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{0}| ?[^{1}\p{{L}}\p{{N}}]+[\r\n]*)"
                     R"(|[{1}]*[\r\n]+|[{1}]+(?![^{1}])|[{1}]+)",
                     digits, kSpace);
}

// A stretch of bytes that is one token so far.
struct Symbol {
  int64_t id = 0;
  size_t previous = 0, next = 0;  // indices + 1; 0: none
  bool gone = false;
};

// The file in `folder`, "" without.
std::string find_in(const fs::path& folder) {
  if (fs::exists(folder / kJson)) return (folder / kJson).string();
  if (fs::exists(folder / kVocab) && fs::exists(folder / kMerges)) return (folder / kVocab).string();
  if (fs::exists(folder / kRanks)) return (folder / kRanks).string();
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == kRanksKind) return entry.path().string();
  return "";
}

std::string find_file(const std::string& path, const std::string& part, const std::string& key) {
  VMOBA_CHECK_INPUT(fs::exists(path),
                    "{}: expected {}, {} with {}, tiktoken's ranks or their folder at '{}', found "
                    "nothing",
                    key, kJson, kVocab, kMerges, path);
  if (!fs::is_directory(path)) return path;
  for (const fs::path& folder : {fs::path(path), fs::path(path) / part})
    if (const std::string file = find_in(folder); !file.empty()) return file;
  throw_input("{}: expected {}, {} with {}, or tiktoken's ranks ({}, *{}) in '{}' or its folder {}/, found none", key,
              kJson, kVocab, kMerges, kRanks, kRanksKind, path, part);
}

std::vector<std::string> files_of(const std::string& file) {
  const fs::path path(file);
  if (path.filename() != kVocab) return {file};
  std::vector<std::string> out = {file, (path.parent_path() / kMerges).string()};
  if (fs::exists(path.parent_path() / kConfig)) out.push_back((path.parent_path() / kConfig).string());
  return out;
}

BpeVocabulary read_vocabulary(const std::string& file, const BpeNaming& naming) {
  std::vector<std::string> texts;
  for (const std::string& one : files_of(file)) texts.push_back(read_file(one, kMaxBytes, "a tokenizer's file"));
  if (texts.size() > 1) return read_bpe_pair(texts[0], texts[1], texts.size() > 2 ? texts[2] : "", file, naming);
  return fs::path(file).extension() == ".json" ? read_bpe_json(texts[0], file, naming)
                                               : read_bpe_ranks(texts[0], file, naming);
}

}  // namespace

BpeRules llama3_rules() {
  BpeRules rules;
  rules.title = "LLaMA-3";
  rules.pattern = words_pattern(R"(\p{N}{1,3})");
  // The 256 of LLaMA-3, then those that LLaVA-LLaMA-3 has behind them.
  constexpr int kReserved = 251;
  std::vector<std::string>& specials = rules.naming.specials;
  for (int i = 0; i < kReserved; ++i) specials.push_back(fmt::format("<|reserved_special_token_{}|>", i));
  specials.insert(specials.begin(), {"<|begin_of_text|>", "<|end_of_text|>"});
  specials.insert(specials.begin() + 6, {"<|start_header_id|>", "<|end_header_id|>"});
  specials.insert(specials.begin() + 9, "<|eot_id|>");
  specials.insert(specials.end(), {"<unk>", "<image>", "<pad>"});
  rules.marks = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  return rules;
}

BpeRules qwen2_rules() {
  BpeRules rules;
  rules.title = "Qwen2.5";
  rules.pattern = words_pattern(R"(\p{N})");
  rules.compose = true;
  rules.naming.specials = {"<|endoftext|>",      "<|im_start|>",     "<|im_end|>",     "<|object_ref_start|>",
                           "<|object_ref_end|>", "<|box_start|>",    "<|box_end|>",    "<|quad_start|>",
                           "<|quad_end|>",       "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                           "<|image_pad|>",      "<|video_pad|>",    "<tool_call>",    "</tool_call>",
                           "<|fim_prefix|>",     "<|fim_middle|>",   "<|fim_suffix|>", "<|fim_pad|>",
                           "<|repo_name|>",      "<|file_sep|>"};
  rules.marks = {"<|im_start|>", "<|im_end|>"};
  return rules;
}

BpeRules clip_rules() {
  BpeRules rules;
  rules.title = "CLIP";
  rules.pattern = fmt::format(
      R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^{}\p{{L}}\p{{N}}]+)", kSpace);
  // GPT-2's, which also splits what only looks like a special token.
  rules.inner_pattern = fmt::format(
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{0}\p{{L}}\p{{N}}]+|[{0}]+(?![^{0}])|[{0}]+)", kSpace);
  rules.between = false;
  rules.compose = true;
  rules.lower_case = true;
  rules.naming = {"</w>", {"<|startoftext|>", "<|endoftext|>"}};
  rules.marks = rules.naming.specials;
  return rules;
}

BpeTokenizer::BpeTokenizer(BpeVocabulary vocabulary, const BpeRules& rules)
    : vocabulary_(std::move(vocabulary)), rules_(rules), pattern_(rules.pattern) {
  if (!rules.inner_pattern.empty()) inner_pattern_.emplace(rules.inner_pattern);
}

BpeTokenizer BpeTokenizer::load(const std::string& path, const std::string& part, const BpeRules& rules,
                                const std::string& key) {
  const std::string file = find_file(path, part, key);
  BpeTokenizer tokenizer(read_vocabulary(file, rules.naming), rules);
  for (const std::string& mark : rules.marks)
    VMOBA_CHECK_INPUT(tokenizer.find_special(mark),
                      "{}: expected the vocabulary of {} with a token '{}' at '{}', found another one; use the "
                      "tokenizer that came with the weights",
                      key, rules.title, mark, file);
  return tokenizer;
}

bool BpeTokenizer::is_in(const std::string& folder) {
  return !find_in(folder).empty();
}

std::vector<std::string> BpeTokenizer::files(const std::string& path, const std::string& part, const std::string& key) {
  return files_of(find_file(path, part, key));
}

std::optional<int64_t> BpeTokenizer::find_special(const std::string& content) const {
  const std::optional<int64_t> raw = vocabulary_.specials.id(content);
  return raw ? raw : vocabulary_.normalized_specials.id(content);
}

int64_t BpeTokenizer::special(const std::string& content) const {
  const std::optional<int64_t> id = find_special(content);
  VMOBA_CHECK_INPUT(id,
                    "expected the vocabulary of {} with a token '{}', found another one; use the tokenizer that "
                    "came with the weights",
                    rules_.title, content);
  return *id;
}

std::vector<int64_t> BpeTokenizer::encode(const std::string& text) const {
  std::vector<int64_t> ids;
  vocabulary_.specials.split(
      encode_utf8(decode_utf8(text)), [&](std::string_view stretch) { encode_stretch(stretch, ids); },
      [&](int64_t id) { ids.push_back(id); });
  return ids;
}

void BpeTokenizer::encode_stretch(std::string_view text, std::vector<int64_t>& out) const {
  std::string normal(text);
  if (rules_.compose) normal = compose(normal);
  if (rules_.lower_case) normal = lower_case(single_blanks(normal));
  vocabulary_.normalized_specials.split(
      normal, [&](std::string_view stretch) { encode_pieces(stretch, out); }, [&](int64_t id) { out.push_back(id); });
}

void BpeTokenizer::encode_pieces(std::string_view text, std::vector<int64_t>& out) const {
  const char* done = text.data();
  const auto skip_to = [&](const char* end) {
    if (rules_.between && end > done) encode_piece({done, size_t(end - done)}, out);
  };
  for (const std::string_view piece : pattern_.matches(text)) {
    skip_to(piece.data());
    encode_piece(piece, out);
    done = piece.data() + piece.size();
  }
  skip_to(text.data() + text.size());
}

void BpeTokenizer::encode_piece(std::string_view piece, std::vector<int64_t>& out) const {
  if (!inner_pattern_) return merge_bytes(piece, out);
  for (const std::string_view part : inner_pattern_->matches(piece)) merge_bytes(part, out);
}

void BpeTokenizer::merge_bytes(std::string_view piece, std::vector<int64_t>& out) const {
  if (!vocabulary_.whole_pieces.empty()) {
    const auto whole = vocabulary_.whole_pieces.find(std::string(piece));
    if (whole != vocabulary_.whole_pieces.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  std::vector<Symbol> symbols(piece.size());
  for (size_t i = 0; i < piece.size(); ++i) {
    const auto byte = static_cast<uint8_t>(piece[i]);
    const bool last = i + 1 == piece.size();
    symbols[i] = {last ? vocabulary_.last_ids[byte] : vocabulary_.byte_ids[byte], i, last ? 0 : i + 2};
  }
  // Candidates by rank, then from left to right; those that a merge beside them has made void are passed over.
  using Candidate = std::tuple<int64_t, size_t, int64_t>;  // rank, left symbol, id of the result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto merge_at = [&](size_t left) -> const BpeVocabulary::Merge* {
    if (symbols[left].gone || symbols[left].next == 0) return nullptr;
    const auto found =
        vocabulary_.merges.find(BpeVocabulary::pair(symbols[left].id, symbols[symbols[left].next - 1].id));
    return found == vocabulary_.merges.end() ? nullptr : &found->second;
  };
  const auto consider = [&](size_t left) {
    if (const BpeVocabulary::Merge* merge = merge_at(left)) candidates.emplace(merge->rank, left, merge->id);
  };
  for (size_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, left, id] = candidates.top();
    candidates.pop();
    const BpeVocabulary::Merge* merge = merge_at(left);
    if (merge == nullptr || merge->id != id) continue;
    Symbol& kept = symbols[left];
    Symbol& joined = symbols[kept.next - 1];
    joined.gone = true;
    kept.id = id;
    kept.next = joined.next;
    if (kept.next > 0) symbols[kept.next - 1].previous = left + 1;
    if (kept.previous > 0) consider(kept.previous - 1);
    consider(left);
  }
  for (const Symbol& symbol : symbols)
    if (!symbol.gone) out.push_back(symbol.id);
}

}  // namespace vmoba::model
