// What lies at a path, told by its first bytes: for messages of readers that expected something else.
#pragma once
#include <string>

namespace vmoba {

// "a Git LFS pointer in place of the file; run `git lfs pull` where it was cloned": what it is and what to do about it.
// "" where nothing is recognised: another kind of binary, or a safetensors file. Waits for nobody: pipes and devices
// are named, not opened.
std::string what_is_this(const std::string& path);

// The command that turns a pickle of tensors into safetensors where torch is installed.
std::string pickle_cure(const std::string& path);

}  // namespace vmoba
