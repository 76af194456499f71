// Names that other training tools give to what has another name here.
#pragma once
#include <string>
#include <vector>

namespace vmoba {

struct ForeignKey {
  std::string name;               // the last word of the key there
  std::vector<std::string> keys;  // of the configuration here; may be none
  std::string words;              // how the message says it
};

// Of musubi-tuner, diffusion-pipe, FastVideo, kohya's scripts and diffusers' trainers.
const std::vector<ForeignKey>& foreign_keys();

// "lora.rank" for "network_dim", whatever the groups around it and whether with '-' or '_'; "" where the name is not
// known.
std::string home_of_foreign_key(const std::string& key);

}  // namespace vmoba
