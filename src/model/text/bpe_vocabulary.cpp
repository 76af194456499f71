#include "model/text/bpe_vocabulary.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <optional>

#include "core/check.h"
#include "core/json.h"
#include "model/text/utf8.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxId = 1 << 22;
constexpr size_t kMaxTokenBytes = 1024;  // cutting a token of ranks in two costs its square

using Ids = std::unordered_map<std::string, int64_t>;

// For messages: a token of a damaged file may be as long as the file.
std::string cut(std::string_view token) {
  constexpr size_t kMost = 100;
  return token.size() > kMost ? std::string(token.substr(0, kMost)) + "..." : std::string(token);
}

// The path of a file beside that of the vocabulary.
std::string beside(const std::string& origin, const char* name) {
  return (std::filesystem::path(origin).parent_path() / name).string();
}

int64_t checked_id(int64_t id, const std::string& token, const std::string& origin) {
  VMOBA_CHECK_INPUT(id >= 0 && id < kMaxId, "'{}': expected ids from 0 to {}, found {} of '{}'", origin, kMaxId - 1, id,
                    cut(token));
  return id;
}

// GPT-2's table: printable characters of Latin-1 stand for themselves, the other bytes follow from U+0100 on.
std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> table = {};
  char32_t next = 0x100;
  for (size_t byte = 0; byte < table.size(); ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    table[byte] = printable ? char32_t(byte) : next++;
  }
  return table;
}

std::string spelled(size_t byte) {
  static const std::array<char32_t, 256> table = byte_characters();
  return encode_utf8(std::u32string(1, table[byte]));
}

// The bytes that a token's characters stand for; nothing where one stands for none.
std::optional<std::string> bytes_of(const std::string& token) {
  static const std::unordered_map<char32_t, char> table = [] {
    std::unordered_map<char32_t, char> out;
    const std::array<char32_t, 256> characters = byte_characters();
    for (size_t byte = 0; byte < characters.size(); ++byte) out[characters[byte]] = char(byte);
    return out;
  }();
  std::string out;
  for (const char32_t c : decode_utf8(token)) {
    const auto found = table.find(c);
    if (found == table.end()) return std::nullopt;
    out += found->second;
  }
  return out;
}

Ids read_vocab(const json& vocab, const std::string& origin) {
  VMOBA_CHECK_INPUT(vocab.is_object() && !vocab.empty(), "'{}': expected a vocabulary of tokens and ids, found none",
                    origin);
  Ids ids;
  for (const auto& [token, id] : vocab.items()) {
    VMOBA_CHECK_INPUT(id.is_number_integer(), "'{}': expected an id of '{}', found {}", origin, cut(token),
                      json_text(id));
    ids[token] = checked_id(id.get<int64_t>(), token, origin);
  }
  return ids;
}

int64_t id_of(const Ids& ids, const std::string& token, const std::string& why, const std::string& origin) {
  const auto found = ids.find(token);
  VMOBA_CHECK_INPUT(found != ids.end(), "'{}': expected '{}' in the vocabulary ({}), found none", origin, cut(token),
                    why);
  return found->second;
}

void set_bytes(BpeVocabulary& out, const Ids& ids, const std::string& end_of_word, const std::string& origin) {
  for (size_t byte = 0; byte < out.byte_ids.size(); ++byte) {
    out.byte_ids[byte] = id_of(ids, spelled(byte), "each byte is a token", origin);
    out.last_ids[byte] = id_of(ids, spelled(byte) + end_of_word, "each byte is a token", origin);
  }
  for (const auto& [token, id] : ids) out.size = std::max(out.size, id + 1);
}

void add_merge(BpeVocabulary& out, const Ids& ids, const std::string& left, const std::string& right, int64_t rank,
               const std::string& origin) {
  const std::string why = "a merge names it";
  const int64_t first = id_of(ids, left, why, origin), second = id_of(ids, right, why, origin);
  out.merges[BpeVocabulary::pair(first, second)] = {rank, id_of(ids, left + right, why, origin)};
}

// "left right"
void add_merge_line(BpeVocabulary& out, const Ids& ids, std::string_view line, int64_t rank,
                    const std::string& origin) {
  const size_t blank = line.find(' ');
  VMOBA_CHECK_INPUT(blank != std::string_view::npos && line.find(' ', blank + 1) == std::string_view::npos,
                    "'{}': expected two tokens in merge {}, found '{}'", origin, rank, cut(line));
  add_merge(out, ids, std::string(line.substr(0, blank)), std::string(line.substr(blank + 1)), rank, origin);
}

void visit_lines(std::string_view text, const std::function<void(std::string_view)>& visit) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) visit(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// An entry of `added_tokens` or of `added_tokens_decoder`.
void add_special(BpeVocabulary& out, const json& token, int64_t id, const std::string& origin) {
  const std::string content = token.at("content").get<std::string>();
  VMOBA_CHECK_INPUT(!content.empty(), "'{}': expected the content of added token {}, found nothing", origin, id);
  for (const char* key : {"lstrip", "rstrip", "single_word"})
    VMOBA_CHECK_INPUT(!token.value(key, false), "'{}': expected {} false of added token '{}', found true", origin, key,
                      cut(content));
  const bool normalized = token.value("normalized", !token.value("special", false));
  (normalized ? out.normalized_specials : out.specials).add(content, checked_id(id, content, origin));
  out.size = std::max(out.size, id + 1);
}

void add_named_specials(BpeVocabulary& out, const Ids& ids, const std::vector<std::string>& specials) {
  for (const std::string& content : specials) {
    const auto found = ids.find(content);
    out.specials.add(content, found == ids.end() ? out.size++ : found->second);
  }
}

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Nothing where the text is no base64.
std::optional<std::string> from_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string out;
  uint32_t bits = 0, count = 0;
  for (const char c : text.substr(0, text.size() - padding)) {
    const int digit = base64_digit(c);
    if (digit < 0) return std::nullopt;
    bits = bits << 6 | uint32_t(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += char(uint8_t(bits >> count));
  }
  return out;
}

Ids read_ranks(std::string_view text, const std::string& origin) {
  Ids ids;
  visit_lines(text, [&](std::string_view line) {
    const size_t blank = line.find(' ');
    const std::optional<std::string> token = from_base64(line.substr(0, blank));
    int64_t rank = -1;
    const char* const end = line.data() + line.size();
    const bool ranked =
        blank != std::string_view::npos && std::from_chars(line.data() + blank + 1, end, rank).ptr == end && rank >= 0;
    VMOBA_CHECK_INPUT(token && ranked && token->size() <= kMaxTokenBytes,
                      "'{}': expected tiktoken's ranks (a token in base64 and its rank in each line), found '{}'",
                      origin, std::string(line.substr(0, 60)));
    ids[*token] = checked_id(rank, std::string(line.substr(0, blank)), origin);
  });
  VMOBA_CHECK_INPUT(!ids.empty(), "'{}': expected tiktoken's ranks, found nothing", origin);
  return ids;
}

}  // namespace

BpeVocabulary read_bpe_json(std::string_view text, const std::string& origin, const BpeNaming& naming) {
  const json file = parse_json(text, origin);
  return use_json(origin, [&] {
    const json& model = file.at("model");
    const std::string type = model.value("type", "BPE");
    VMOBA_CHECK_INPUT(type == "BPE", "'{}': expected a BPE model, found {}", origin, cut(type));
    const Ids ids = read_vocab(model.at("vocab"), origin);
    BpeVocabulary out;
    set_bytes(out, ids, naming.end_of_word, origin);
    int64_t rank = 0;
    for (const json& merge : model.at("merges")) {
      if (merge.is_string())
        add_merge_line(out, ids, merge.get_ref<const std::string&>(), rank, origin);
      else
        add_merge(out, ids, merge.at(0).get<std::string>(), merge.at(1).get<std::string>(), rank, origin);
      ++rank;
    }
    if (model.value("ignore_merges", false))
      for (const auto& [token, id] : ids)
        if (auto bytes = bytes_of(token)) out.whole_pieces[*bytes] = id;
    if (file.contains("added_tokens"))
      for (const json& token : file.at("added_tokens")) add_special(out, token, token.at("id").get<int64_t>(), origin);
    return out;
  });
}

BpeVocabulary read_bpe_pair(std::string_view vocab, std::string_view merges, std::string_view config,
                            const std::string& origin, const BpeNaming& naming) {
  const Ids ids = read_vocab(parse_json(vocab, origin), origin);
  BpeVocabulary out;
  set_bytes(out, ids, naming.end_of_word, origin);
  int64_t rank = 0;
  const std::string merges_origin = beside(origin, "merges.txt");
  visit_lines(merges, [&](std::string_view line) {
    if (!line.starts_with("#version")) add_merge_line(out, ids, line, rank++, merges_origin);
  });
  const std::string config_origin = beside(origin, "tokenizer_config.json");
  const json stated = config.empty() ? json::object() : parse_json(config, config_origin);
  return use_json(config_origin, [&] {
    if (!stated.is_object() || !stated.contains("added_tokens_decoder")) {
      add_named_specials(out, ids, naming.specials);
      return out;
    }
    for (const auto& [key, token] : stated.at("added_tokens_decoder").items()) {
      int64_t id = -1;
      const auto read = std::from_chars(key.data(), key.data() + key.size(), id);
      VMOBA_CHECK_INPUT(read.ptr == key.data() + key.size() && id >= 0,
                        "'{}': expected ids in added_tokens_decoder, found '{}'", config_origin, cut(key));
      add_special(out, token, id, config_origin);
    }
    return out;
  });
}

BpeVocabulary read_bpe_ranks(std::string_view text, const std::string& origin, const BpeNaming& naming) {
  BpeVocabulary out;
  out.whole_pieces = read_ranks(text, origin);
  for (const auto& [token, id] : out.whole_pieces) out.size = std::max(out.size, id + 1);
  for (size_t byte = 0; byte < out.byte_ids.size(); ++byte) {
    const auto found = out.whole_pieces.find(std::string(1, char(byte)));
    VMOBA_CHECK_INPUT(found != out.whole_pieces.end(), "'{}': expected a rank of each byte, found none of {:#x}",
                      origin, byte);
    out.byte_ids[byte] = out.last_ids[byte] = found->second;
  }
  // tiktoken joins the neighbours whose joint token has the least rank.
  for (const auto& [token, id] : out.whole_pieces) {
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = out.whole_pieces.find(token.substr(0, cut)), right = out.whole_pieces.find(token.substr(cut));
      if (left != out.whole_pieces.end() && right != out.whole_pieces.end())
        out.merges[BpeVocabulary::pair(left->second, right->second)] = {id, id};
    }
  }
  add_named_specials(out, {}, naming.specials);
  return out;
}

}  // namespace vmoba::model
