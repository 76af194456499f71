#include "model/weights/name_table.h"

#include <algorithm>
#include <cctype>
#include <string_view>

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

// The pairs that have the module of `name` on the side `from`; `rest` is what stands behind it there.
struct Found {
  std::vector<const NamePair*> pairs;
  std::string rest;
};

Found found_in(const std::vector<NamePair>& pairs, const std::string& name, Side from) {
  Found out;
  for (const NamePair& pair : pairs) {
    const std::string beginning = pair.*from;
    if (name != beginning && !name.starts_with(beginning + ".")) continue;
    if (out.pairs.empty()) out.rest = name.substr(beginning.size());
    if (out.pairs.empty() || out.pairs.front()->*from == beginning) out.pairs.push_back(&pair);
  }
  return out;
}

// The same in the whole table; `before` is the block's prefix and number on the other side.
struct Located {
  Found found;
  const std::vector<NamePair>* table = nullptr;
  std::string before;
};

Located located(const NameTable& table, const std::string& name, Side from) {
  const bool stored = from == &NamePair::stored;
  for (const NameTable::Block& block : table.blocks) {
    const std::string prefix = stored ? block.stored : block.diffusers;
    const size_t length = block_length(name, prefix, '.');
    if (length == 0) continue;
    const std::string number = name.substr(prefix.size(), length - prefix.size());
    return {found_in(block.parts, name.substr(length), from), &block.parts,
            (stored ? block.diffusers : block.stored) + number};
  }
  return {found_in(table.outer, name, from), &table.outer, ""};
}

std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

Held unflattened(const std::string& name, const std::vector<NamePair>& pairs) {
  Held out;
  for (const NamePair& pair : pairs) {
    if (name == flat(pair.diffusers)) return {{pair.diffusers}};
    if (name != flat(pair.stored)) continue;
    out.names.push_back(pair.diffusers);
    out.rows = pair.rows;
  }
  return out;
}

}  // namespace

std::vector<std::string> NameTable::to_diffusers(const std::string& stored) const {
  const Located at = located(*this, stored, &NamePair::stored);
  std::vector<std::string> out;
  for (const NamePair* pair : at.found.pairs) out.push_back(at.before + pair->diffusers + at.found.rest);
  return out;
}

std::optional<StoredPlace> NameTable::place_of(const std::string& name) const {
  const Located at = located(*this, name, &NamePair::diffusers);
  if (at.found.pairs.empty()) return std::nullopt;
  const NamePair& own = *at.found.pairs.front();
  StoredPlace place{at.before + own.stored + at.found.rest, own.rows, 0, 0};
  for (const NamePair& pair : *at.table) {
    if (std::string_view(pair.stored) != own.stored) continue;
    if (&pair == &own) place.part = place.parts;
    ++place.parts;
  }
  return place;
}

std::optional<std::string> NameTable::from_diffusers(const std::string& name) const {
  const std::optional<StoredPlace> place = place_of(name);
  return place ? std::optional(place->name) : std::nullopt;
}

Held NameTable::from_flattened(const std::string& flattened) const {
  const std::string name = flattened.starts_with('_') ? flattened.substr(1) : flattened;
  for (const Block& block : blocks) {
    for (const char* spelling : {block.stored, block.diffusers}) {
      const std::string prefix = flat(spelling);
      const size_t length = block_length(name, prefix, '_');
      if (length == 0) continue;
      Held held = unflattened(name.substr(length), block.parts);
      for (std::string& part : held.names)
        part = block.diffusers + name.substr(prefix.size(), length - 1 - prefix.size()) + "." + part;
      if (!held.names.empty()) return held;
    }
  }
  return unflattened(name, outer);
}

bool Layout::holds(const std::vector<std::string>& stored_names) const {
  const auto begins_one = [&](const std::string& mark) {
    return std::any_of(stored_names.begin(), stored_names.end(), [&](const std::string& stored) {
      return (prefixes.empty() || prefix_of(stored)) && without_prefix(stored).starts_with(mark);
    });
  };
  return std::any_of(marks.begin(), marks.end(), begins_one) && std::all_of(besides.begin(), besides.end(), begins_one);
}

std::optional<std::string> Layout::prefix_of(const std::string& stored) const {
  std::optional<std::string> longest;
  for (const std::string& prefix : prefixes)
    if (stored.starts_with(prefix) && (!longest || prefix.size() > longest->size())) longest = prefix;
  return longest;
}

std::string Layout::without_prefix(const std::string& stored) const {
  return stored.substr(prefix_of(stored).value_or("").size());
}

std::vector<std::string> Layout::to_diffusers(const std::string& stored) const {
  const std::string name = without_prefix(stored);
  return names.empty() ? std::vector<std::string>{name} : names.to_diffusers(name);
}

std::optional<StoredPlace> Layout::place_of(const std::string& name) const {
  std::optional<StoredPlace> place = names.empty() ? StoredPlace{name} : names.place_of(name);
  if (place && !prefixes.empty()) place->name = prefixes.front() + place->name;
  return place;
}

std::optional<std::string> Layout::from_diffusers(const std::string& name) const {
  const std::optional<StoredPlace> place = place_of(name);
  return place ? std::optional(place->name) : std::nullopt;
}

const Layout* find_layout(const std::vector<Layout>& layouts, const std::vector<std::string>& stored_names) {
  const auto found =
      std::find_if(layouts.begin(), layouts.end(), [&](const Layout& layout) { return layout.holds(stored_names); });
  return found == layouts.end() ? nullptr : &*found;
}

}  // namespace vmoba::model
