// TensorBoard event files without TensorFlow or protobuf: TFRecords (length, masked CRC-32C, bytes, masked CRC-32C) of
// hand-encoded tensorflow.Event messages (tensorflow/core/util/event.proto, framework/summary.proto,
// lib/io/record_writer).
//
// One object is one file, `<folder>/events.out.tfevents.<unix seconds>.<host>.vmoba`, which it owns. Every call writes
// its record with one system call, so that a kill leaves whole records behind. Not for several threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/report/appended_file.h"

namespace vmoba::train {

// CRC-32C (Castagnoli), as in RFC 3720, and its form inside TFRecords.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

class TensorboardWriter {
 public:
  // Makes the folder and a new file in it whose name sorts behind the files that are there. `steps_done`: TensorBoard
  // hides what earlier files say about later steps (an interrupted run wrote them, and they will come again).
  // Throws Error(kRuntime) where the folder cannot be written.
  TensorboardWriter(const std::string& folder, int64_t steps_done);

  // All values of one step, (tag, value) each; NaN and infinity are allowed. Events that the disk does not take wait in
  // memory (appended_file.h).
  void scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  // `picture`: the bytes of a PNG or GIF file of height x width pixels, RGB.
  void image(int64_t step, const std::string& tag, int64_t height, int64_t width, std::string_view picture);
  // Markdown, of which bytes that are no UTF-8 must have been taken out.
  void text(int64_t step, const std::string& tag, std::string_view markdown);

  const std::string& path() const { return file_->path(); }

 private:
  void event(int64_t step, std::string_view payload);
  void record(std::string_view bytes);

  std::optional<AppendedFile> file_;
};

}  // namespace vmoba::train
