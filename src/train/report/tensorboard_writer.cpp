#include "train/report/tensorboard_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "core/check.h"

namespace vmoba::train {
namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.";

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0u);
    table[i] = value;
  }
  return table;
}();

template <typename T>
void put_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(char(uint8_t(value >> (8 * i))));
}

// ---- protobuf's wire format -----------------------------------------------------------------------------------------

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(char(uint8_t(value) | 0x80));
  out.push_back(char(value));
}
void put_key(std::string& out, uint32_t field, WireType type) {
  put_varint(out, uint64_t(field) << 3 | type);
}
void put_integer(std::string& out, uint32_t field, int64_t value) {
  put_key(out, field, kVarint);
  put_varint(out, uint64_t(value));
}
void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out.append(bytes);
}
void put_double(std::string& out, uint32_t field, double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  put_key(out, field, kFixed64);
  put_little_endian(out, bits);
}
void put_float(std::string& out, uint32_t field, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  put_key(out, field, kFixed32);
  put_little_endian(out, bits);
}

// ---- the file's name ------------------------------------------------------------------------------------------------

std::string host_name() {
  char buffer[256] = {};
  if (::gethostname(buffer, sizeof buffer - 1) != 0) return "localhost";
  std::string name = buffer;
  for (char& ch : name)
    if (!std::isalnum(static_cast<unsigned char>(ch)) && ch != '-' && ch != '_') ch = '_';
  return name.empty() ? "localhost" : name;
}

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// TensorBoard reads a folder's files in the order of their names: a resumed run must sort behind the earlier ones,
// also within one second and after a clock was set back.
int64_t next_stamp(const std::string& folder) {
  int64_t stamp = int64_t(unix_seconds());
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    const std::string digits = name.substr(kPrefix.size(), name.find('.', kPrefix.size()) - kPrefix.size());
    const bool number = !digits.empty() && digits.size() <= 12 &&
                        std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); });
    if (number) stamp = std::max<int64_t>(stamp, std::stoll(digits) + 1);
  }
  return stamp;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (unsigned char byte : bytes) crc = kCrcTable[(crc ^ byte) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

TensorboardWriter::TensorboardWriter(const std::string& folder, int64_t steps_done) {
  try {
    std::filesystem::create_directories(folder);
    file_.emplace(fmt::format("{}/{}{}.{}.vmoba", folder, kPrefix, next_stamp(folder), host_name()), O_EXCL, 0);
  } catch (const std::filesystem::filesystem_error& e) {
    throw_runtime("expected to write TensorBoard events into '{}', found: {}; choose another run.dir", folder,
                  e.code().message());
  }
  std::string version;
  put_bytes(version, 3, "brain.Event:2");
  event(0, version);
  if (steps_done > 0) {
    std::string start, session;
    put_integer(start, 1, 1);  // SessionLog.status = START
    put_bytes(session, 7, start);
    event(steps_done + 1, session);
  }
}

void TensorboardWriter::scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  std::string summary, payload;
  for (const auto& [tag, number] : values) {
    std::string value;
    put_bytes(value, 1, tag);
    put_float(value, 2, float(number));
    put_bytes(summary, 1, value);
  }
  put_bytes(payload, 5, summary);
  event(step, payload);
}

void TensorboardWriter::image(int64_t step, const std::string& tag, int64_t height, int64_t width,
                              std::string_view picture) {
  std::string image, value, summary, payload;
  put_integer(image, 1, height);
  put_integer(image, 2, width);
  put_integer(image, 3, 3);  // colorspace RGB
  put_bytes(image, 4, picture);
  put_bytes(value, 1, tag);
  put_bytes(value, 4, image);
  put_bytes(summary, 1, value);
  put_bytes(payload, 5, summary);
  event(step, payload);
}

// A tensor of one string, which the text plugin is named for (tensorboard/plugins/text/summary_v2).
void TensorboardWriter::text(int64_t step, const std::string& tag, std::string_view markdown) {
  constexpr int64_t kString = 7, kTensorData = 2;  // DataType.DT_STRING, DataClass.DATA_CLASS_TENSOR
  std::string plugin, metadata, tensor, value, summary, payload;
  put_bytes(plugin, 1, "text");
  put_bytes(metadata, 1, plugin);
  put_integer(metadata, 4, kTensorData);
  put_integer(tensor, 1, kString);
  put_bytes(tensor, 2, "");  // the shape of a scalar
  put_bytes(tensor, 8, markdown);
  put_bytes(value, 1, tag);
  put_bytes(value, 8, tensor);
  put_bytes(value, 9, metadata);
  put_bytes(summary, 1, value);
  put_bytes(payload, 5, summary);
  event(step, payload);
}

void TensorboardWriter::event(int64_t step, std::string_view payload) {
  std::string bytes;
  put_double(bytes, 1, unix_seconds());
  put_integer(bytes, 2, step);
  bytes.append(payload);
  record(bytes);
}

void TensorboardWriter::record(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + 16);
  put_little_endian(out, uint64_t(bytes.size()));
  put_little_endian(out, masked_crc32c(out));
  out.append(bytes);
  put_little_endian(out, masked_crc32c(bytes));
  file_->append(out);
}

}  // namespace vmoba::train
