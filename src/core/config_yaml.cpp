#include "core/config_yaml.h"

#include <poll.h>
#include <sys/stat.h>
#include <yaml-cpp/eventhandler.h>

#include <cerrno>
#include <cstring>

#include <set>
#include <sstream>
#include <vector>

#include "core/check.h"
#include "core/config_text.h"
#include "core/file_descriptor.h"
#include "core/file_kind.h"

namespace vmoba {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr int kPipePatienceMs = 5000;

// Reads a document as events, before any node is made, and refuses what no configuration needs: anchors and aliases
// (a small file could name itself or grow without bound), merge keys, tags, deep nesting, duplicate keys, a second
// document.
class StructureCheck : public YAML::EventHandler {
 public:
  explicit StructureCheck(const std::string& origin) : origin_(origin) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    VMOBA_CHECK_INPUT(documents_++ == 0, "{}: expected one document, found a second ('---')", at(mark));
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { scalar(mark, "", anchor, ""); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    scalar(mark, tag, anchor, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    enter(mark, tag, anchor, false);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    enter(mark, tag, anchor, true);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Collection {
    bool is_map;
    bool expects_key;
    std::set<std::string> keys;
  };

  std::string at(const YAML::Mark& mark) const { return fmt::format("{}:{}", origin_, mark.line + 1); }

  void refuse_anchor(const YAML::Mark& mark) const {
    throw_input("{}: expected plain values, found an anchor or alias ('&' or '*'); put a text in quotes", at(mark));
  }
  void check_plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    VMOBA_CHECK_INPUT(tag.empty() || tag == "?" || tag == "!",
                      "{}: expected plain values, found the tag '{}'; put a text in quotes", at(mark), shown(tag));
  }

  void scalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) {
    check_plain(mark, tag, anchor);
    // It would cut every message that quotes the text, and every path.
    VMOBA_CHECK_INPUT(value.find('\0') == std::string::npos, "{}: expected text, found a zero byte behind '{}'",
                      at(mark), shown(value.c_str()));
    if (open_.empty() || !open_.back().is_map) return;
    Collection& map = open_.back();
    if (map.expects_key) {
      VMOBA_CHECK_INPUT(value != "<<", "{}: expected plain keys, found the merge key '<<'", at(mark));
      VMOBA_CHECK_INPUT(map.keys.insert(value).second, "{}: expected each key once, found '{}' again", at(mark),
                        shown(value));
    }
    map.expects_key = !map.expects_key;
  }

  void enter(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, bool is_map) {
    check_plain(mark, tag, anchor);
    VMOBA_CHECK_INPUT(open_.size() < kMaxDepth, "{}: expected at most {} nested levels, found more", at(mark),
                      kMaxDepth);
    if (!open_.empty() && open_.back().is_map) {
      VMOBA_CHECK_INPUT(!open_.back().expects_key, "{}: expected a plain word as key, found a list or group", at(mark));
      open_.back().expects_key = true;
    }
    open_.push_back({is_map, is_map, {}});
  }

  const std::string& origin_;
  std::vector<Collection> open_;
  int documents_ = 0;
};

}  // namespace

YAML::Node parse_yaml(const std::string& text, const std::string& origin) {
  VMOBA_CHECK_INPUT(text.size() <= kMaxConfigBytes, "{}: expected at most {} bytes, found more", origin,
                    kMaxConfigBytes);
  YAML::Node root;
  try {
    std::istringstream stream(text);
    YAML::Parser events(stream);
    StructureCheck check(origin);
    while (events.HandleNextDocument(check)) {
    }
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    throw_input("{}:{}: expected valid YAML, found: {}; a text with ': ', '#' or brackets needs quotes", origin,
                e.mark.line + 1, shown(e.msg));
  }
  if (!root.IsDefined() || root.IsNull()) return YAML::Node(YAML::NodeType::Map);
  VMOBA_CHECK_INPUT(root.IsMap(), "{}: expected 'key: value' lines, found something else", origin);
  return root;
}

std::string read_config_text(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // without it, opening a FIFO waits for a writer
  VMOBA_CHECK_INPUT(file.get() >= 0, "expected a configuration file at '{}', found: {}; check --config", path,
                    std::strerror(errno));
  struct stat info {};
  VMOBA_CHECK_INPUT(::fstat(file.get(), &info) == 0 && !S_ISDIR(info.st_mode),
                    "expected a configuration file at '{}', found {}; check --config", path, what_is_this(path));
  std::string text(kMaxConfigBytes + 1, '\0');
  size_t done = 0;
  while (done < text.size()) {
    pollfd ready{file.get(), POLLIN, 0};
    VMOBA_CHECK_INPUT(::poll(&ready, 1, kPipePatienceMs) != 0,
                      "expected a configuration at '{}', found a pipe (FIFO) that says nothing; check --config", path);
    const ssize_t got = ::read(file.get(), text.data() + done, text.size() - done);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    VMOBA_CHECK_INPUT(got >= 0, "expected a configuration file at '{}', found: {}; check --config", path,
                      std::strerror(errno));
    if (got == 0) break;
    done += size_t(got);
  }
  text.resize(done);
  return text;
}

}  // namespace vmoba
