// A safetensors file that several processes write together: one makes it with its header and full length, then each
// writes its runs of bytes. The caller sees to it that the file appears under its final name only when all are done.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/weights/safetensors.h"

namespace vmoba::model {

// Reserves the disk space of the whole file. Throws Error(kRuntime), as on a full disk.
void create_shared_file(const std::string& path, const SafetensorsLayout& layout);

struct ByteRun {
  int64_t offset = 0;  // in the file
  const void* bytes = nullptr;
  int64_t count = 0;
};

// Writes the runs and syncs the file to disk (for none: what others of this host wrote), then reads the runs back and
// compares. Leaves off with an error where `stop` turns true. Throws Error(kRuntime).
void write_byte_runs(const std::string& path, const std::vector<ByteRun>& runs, const std::function<bool()>& stop);

}  // namespace vmoba::model
