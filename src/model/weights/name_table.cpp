#include "model/weights/name_table.h"

#include <algorithm>
#include <cctype>

namespace vmoba::model {
namespace {

using Side = const char* NamePair::*;

// Length of "<prefix><number><separator>" at the start of a name; 0 without.
size_t block_length(const std::string& name, const std::string& prefix, char separator) {
  if (!name.starts_with(prefix)) return 0;
  size_t end = prefix.size();
  while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
  return end > prefix.size() && end < name.size() && name[end] == separator ? end + 1 : 0;
}

std::optional<std::string> replaced(const std::string& name, const std::vector<NamePair>& pairs, Side from, Side to) {
  for (const NamePair& pair : pairs) {
    const std::string beginning = pair.*from;
    if (name == beginning || name.starts_with(beginning + ".")) return pair.*to + name.substr(beginning.size());
  }
  return std::nullopt;
}

std::optional<std::string> renamed(const NameTable& table, const std::string& name, Side from, Side to) {
  for (const NameTable::Block& block : table.blocks) {
    const bool stored = from == &NamePair::stored;
    const std::string prefix = stored ? block.stored : block.diffusers;
    const size_t length = block_length(name, prefix, '.');
    if (length == 0) continue;
    const std::optional<std::string> part = replaced(name.substr(length), block.parts, from, to);
    if (!part) return std::nullopt;
    return (stored ? block.diffusers : block.stored) + name.substr(prefix.size(), length - prefix.size()) + *part;
  }
  return replaced(name, table.outer, from, to);
}

std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

std::optional<std::string> unflattened(const std::string& name, const std::vector<NamePair>& pairs) {
  for (const NamePair& pair : pairs)
    if (name == flat(pair.stored) || name == flat(pair.diffusers)) return pair.diffusers;
  return std::nullopt;
}

}  // namespace

std::optional<std::string> NameTable::to_diffusers(const std::string& stored) const {
  return renamed(*this, stored, &NamePair::stored, &NamePair::diffusers);
}

std::optional<std::string> NameTable::from_diffusers(const std::string& name) const {
  return renamed(*this, name, &NamePair::diffusers, &NamePair::stored);
}

std::optional<std::string> NameTable::from_flattened(const std::string& flattened) const {
  const std::string name = flattened.starts_with('_') ? flattened.substr(1) : flattened;
  for (const Block& block : blocks) {
    for (const char* spelling : {block.stored, block.diffusers}) {
      const std::string prefix = flat(spelling);
      const size_t length = block_length(name, prefix, '_');
      if (length == 0) continue;
      if (const auto part = unflattened(name.substr(length), block.parts))
        return block.diffusers + name.substr(prefix.size(), length - 1 - prefix.size()) + "." + *part;
    }
  }
  return unflattened(name, outer);
}

bool Layout::holds(const std::vector<std::string>& stored_names) const {
  return std::any_of(stored_names.begin(), stored_names.end(), [&](const std::string& stored) {
    const std::string name = without_prefix(stored);
    return (prefixes.empty() || name != stored) &&
           std::any_of(marks.begin(), marks.end(), [&](const std::string& mark) { return name.starts_with(mark); });
  });
}

std::string Layout::without_prefix(const std::string& stored) const {
  for (const std::string& prefix : prefixes)
    if (stored.starts_with(prefix)) return stored.substr(prefix.size());
  return stored;
}

std::optional<std::string> Layout::to_diffusers(const std::string& stored) const {
  const std::string name = without_prefix(stored);
  return names.empty() ? name : names.to_diffusers(name);
}

std::optional<std::string> Layout::from_diffusers(const std::string& name) const {
  const std::optional<std::string> renamed = names.empty() ? name : names.from_diffusers(name);
  if (!renamed) return std::nullopt;
  return (prefixes.empty() ? "" : prefixes.front()) + *renamed;
}

const Layout* find_layout(const std::vector<Layout>& layouts, const std::vector<std::string>& stored_names) {
  const auto found =
      std::find_if(layouts.begin(), layouts.end(), [&](const Layout& layout) { return layout.holds(stored_names); });
  return found == layouts.end() ? nullptr : &*found;
}

}  // namespace vmoba::model
