// state/checksums.json: what every file of a checkpoint held when it was written, tensor by tensor; and the comparison
// with what it holds now. state/trainer.json covers it (manifest.h).
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vmoba::train {

struct FileChecksum {
  int64_t bytes = 0;
  std::string hash;                            // of all bytes; of a file with `tensors`, of its header
  std::map<std::string, std::string> tensors;  // values_checksum (core/hash.h) of each; none: no file of tensors
};
// By path below the checkpoint's folder.
using Checksums = std::map<std::string, FileChecksum>;

std::string checksums_path(const std::string& folder);
std::string checksums_to_json(const Checksums& checksums);

// What is wrong with the checkpoint, a sentence for each damaged, missing or foreign file or tensor; empty: nothing.
// Of `parts` callers each finds what lies in its share `part`, so that ranks share the reading. `finite`: as well names
// tensors with values that are not finite. Checkpoints of earlier versions have no checksums: of them only the manifest
// and the steps in files are compared.
std::vector<std::string> checkpoint_problems(const std::string& folder, int64_t part = 0, int64_t parts = 1,
                                             bool finite = false, const std::string& below = "");

// For people: what --verify found in a checkpoint's folder, or in each of a run's. `sound`: whether nothing is wrong.
// Throws Error(kInput) where there is no checkpoint.
struct Verification {
  std::string text;
  bool sound = true;
};
Verification verify_folder(const std::string& folder);

}  // namespace vmoba::train
