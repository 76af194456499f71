// Content hashes of files, remembered with size and time of change, so that a file is read once and not at every start.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace vmoba::train {

class FileHashes {
 public:
  // Remembers in `dir`/files-r<rank>.txt; reads what every rank left there.
  FileHashes(const std::string& dir, int64_t rank);

  // The hash of the file's bytes as 16 digits: the remembered one where size and time of change are the same. Throws
  // Error(kInput) where the file cannot be read.
  std::string of_file(const std::string& path);
  // Of the files that `files` lists, together, under the names that the configuration gives them (empty ones do not
  // count). Where one of them is gone, what was remembered under all counts: encoders are not needed once everything is
  // encoded.
  std::string of_weights(const std::vector<std::string>& names, const std::function<std::vector<std::string>()>& files);

  // Writes what is new. Nothing is written by readers.
  void save() const;

 private:
  struct Entry {
    int64_t size_bytes = 0, changed_ns = 0;
    std::string hash;
  };
  std::string path_;
  std::map<std::string, Entry> entries_;
};

}  // namespace vmoba::train
