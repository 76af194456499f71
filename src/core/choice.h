// Choices of a configuration: an enum and its words, each written once.
//
// Beside the enum stands a function `choices_of` that argument-dependent look-up finds:
//
//   enum class Pool { kBlock, kOverall };
//   const Choices<Pool>& choices_of(Pool);  // {{Pool::kBlock, "block"}, {Pool::kOverall, "overall"}}
//
// ConfigVisitor::field then takes a Pool, and choice_word() and choice_value() translate.
#pragma once
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"

namespace vmoba {

template <typename Enum>
class Choices {
 public:
  // `what` names the choice in messages ("attention.pool"); the order is that of documentation.
  Choices(std::string what, std::initializer_list<std::pair<Enum, const char*>> entries)
      : what_(std::move(what)), entries_(entries.begin(), entries.end()) {}

  std::vector<std::string> words() const {
    std::vector<std::string> out;
    for (const auto& [value, word] : entries_) out.emplace_back(word);
    return out;
  }

  // The number where no word stands for `value`: only a cast makes such a value.
  std::string word(Enum value) const {
    for (const auto& [known, word] : entries_)
      if (known == value) return word;
    return std::to_string(static_cast<long long>(value));
  }

  // Throws Error(kInput) with the known words.
  Enum value(const std::string& word) const {
    std::string known;
    for (const auto& [value, known_word] : entries_) {
      if (word == known_word) return value;
      known += (known.empty() ? "" : ", ") + std::string(known_word);
    }
    throw_input("expected {} to be one of {}, found '{}'", what_, known, word);
  }

 private:
  std::string what_;
  std::vector<std::pair<Enum, const char*>> entries_;
};

template <typename Enum>
std::string choice_word(Enum value) {
  return choices_of(value).word(value);
}

template <typename Enum>
Enum choice_value(const std::string& word) {
  return choices_of(Enum{}).value(word);
}

template <typename Enum>
std::vector<std::string> choice_words() {
  return choices_of(Enum{}).words();
}

}  // namespace vmoba
