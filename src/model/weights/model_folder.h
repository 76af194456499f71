// Where a part of a pretrained pipeline lies.
#pragma once
#include <string>

namespace vmoba::model {

// `path` as the user gave it: a file or folder of weights, or a diffusers model whose sub-folder `part`
// ("text_encoder", "image_encoder") holds them; then that folder. Pickles (.pth, .pt, .bin, .ckpt) are refused with the
// way to convert them. `key` names the configuration key in messages. Throws Error(kInput).
std::string model_folder(const std::string& path, const std::string& part, const std::string& key);

}  // namespace vmoba::model
