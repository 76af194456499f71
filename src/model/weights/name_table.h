// The names that tensors carry in the layouts of weight files, and an exact map between them and the names that
// parameters carry here (diffusers' or, for encoders, transformers'). This is the engine; the tables belong to the
// models (model/architecture.h) and encoders. Values, no state.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "model/weights/stored_rows.h"

namespace vmoba::model {

// Names of modules, or the beginnings of names up to a dot. Several pairs with one stored name are parts of it, in the
// order of their rows.
struct NamePair {
  const char* diffusers;
  const char* stored;
  Rows rows = Rows::kAll;
};

struct NameTable {
  // Names "<prefix><number>.<part>".
  struct Block {
    const char* diffusers;  // the prefix: "blocks."
    const char* stored;
    std::vector<NamePair> parts;
  };

  std::vector<NamePair> outer;
  std::vector<Block> blocks;

  bool empty() const { return outer.empty() && blocks.empty(); }
  // Names of tensors or of modules, with or without ".weight" and the like behind them. Nothing where the table has no
  // such module; several names where the stored one holds several.
  std::vector<std::string> to_diffusers(const std::string& stored) const;
  std::optional<StoredPlace> place_of(const std::string& name) const;
  std::optional<std::string> from_diffusers(const std::string& name) const;
  // A module's name in either spelling with '_' for '.', as kohya's files have it ("blocks_0_self_attn_q",
  // "_blocks_0_attn1_to_q"), to what it holds; no names where the table has no such module.
  Held from_flattened(const std::string& flattened) const;
};

struct Layout {
  std::string name;   // as `vmoba-convert --layout` has it
  std::string title;  // in messages
  // One of them stands before every name; empty: none does. The first is the one that is written; "" allows names
  // without.
  std::vector<std::string> prefixes;
  // Beginnings of names, behind the prefix: a file that has one of the marks, and all of `besides`, is of this layout.
  std::vector<std::string> marks;
  NameTable names;  // empty: diffusers' own
  std::vector<std::string> besides = {};

  bool holds(const std::vector<std::string>& stored_names) const;
  // Names without a prefix of this layout stay as they are.
  std::string without_prefix(const std::string& stored) const;
  std::vector<std::string> to_diffusers(const std::string& stored) const;
  // With the first of the prefixes.
  std::optional<StoredPlace> place_of(const std::string& name) const;
  std::optional<std::string> from_diffusers(const std::string& name) const;

 private:
  // The longest that `stored` begins with.
  std::optional<std::string> prefix_of(const std::string& stored) const;
};

// The first layout that holds the names; null where none does.
const Layout* find_layout(const std::vector<Layout>& layouts, const std::vector<std::string>& stored_names);

}  // namespace vmoba::model
