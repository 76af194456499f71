// Words and checks shared by the parts of the configuration that read, write and validate. Not for use outside
// src/core.
#pragma once
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba {

std::string join(const std::vector<std::string>& words, const char* separator = ", ");

// What a constraint allows, for messages and documentation: "> 0", "0 .. 1", "2 values, each >= 1"; "" where anything.
std::string allowed_text(const Constraint& constraint);

// Insertions, deletions and substitutions of characters between two words (Levenshtein).
size_t edit_distance(const std::string& word, const std::string& other);

// The beginning of what a user wrote, for messages; control characters as \xNN.
std::string shown(const std::string& text);

// Throw Error(kInput) where a value breaks its constraint; `where` begins the message.
void check_number(double value, const Constraint& constraint, const std::string& where);
void check_word(const std::string& value, const Constraint& constraint, const std::string& where);
void check_size(int64_t size, const Constraint& constraint, const std::string& where);

}  // namespace vmoba
