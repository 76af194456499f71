// Every reader of files that somebody else wrote, each with a small sound input, as the programs call it.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace vmoba::test {

struct Reader {
  std::string name;
  std::function<void(const std::string& folder)> make;  // puts a sound input into an empty folder
  std::vector<std::string> files;                       // of the folder, those to be damaged
  std::function<void(const std::string& folder)> read;  // throws Error(kInput) for what it refuses
};

const std::vector<Reader>& readers();

// Those of models (model_readers.cpp), which are among them.
std::vector<Reader> model_readers();

// What reading `folder` comes to: "" where the reader takes or refuses it as it should, else what is wrong: an
// exception other than Error(kInput), or a message without words, without the name of a file or key, or of many pages.
std::string broken_contract(const Reader& reader, const std::string& folder);

// The message of the refusal; "" where it is taken.
std::string refusal(const Reader& reader, const std::string& folder);

void write_text(const std::string& path, const std::string& text);

}  // namespace vmoba::test
