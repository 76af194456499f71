// The names that tensors carry in the layouts of weight files, and an exact map between them and the names that
// parameters carry here (diffusers' or, for encoders, transformers'). This is the engine; the tables belong to the
// models (model/architecture.h) and encoders. Values, no state.
#pragma once
#include <optional>
#include <string>
#include <vector>

namespace vmoba::model {

// Names of modules, or the beginnings of names up to a dot.
struct NamePair {
  const char* diffusers;
  const char* stored;
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
  // such module.
  std::optional<std::string> to_diffusers(const std::string& stored) const;
  std::optional<std::string> from_diffusers(const std::string& name) const;
  // A module's name in either spelling with '_' for '.', as kohya's files have it ("blocks_0_self_attn_q",
  // "_blocks_0_attn1_to_q"), to diffusers' name.
  std::optional<std::string> from_flattened(const std::string& flattened) const;
};

struct Layout {
  std::string name;                   // as `vmoba-convert --layout` has it
  std::string title;                  // in messages
  std::vector<std::string> prefixes;  // one of them stands before every name; empty: none does
  std::vector<std::string> marks;     // beginnings of names, behind the prefix; a file that has one is of this layout
  NameTable names;                    // empty: diffusers' own

  bool holds(const std::vector<std::string>& stored_names) const;
  // Names without a prefix of this layout stay as they are.
  std::string without_prefix(const std::string& stored) const;
  std::optional<std::string> to_diffusers(const std::string& stored) const;
  // With the first of the prefixes.
  std::optional<std::string> from_diffusers(const std::string& name) const;
};

// The first layout that holds the names; null where none does.
const Layout* find_layout(const std::vector<Layout>& layouts, const std::vector<std::string>& stored_names);

}  // namespace vmoba::model
