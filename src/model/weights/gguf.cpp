#include "model/weights/gguf.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "core/check.h"
#include "core/config.h"
#include "core/mapped_file.h"
#include "model/common/packed.h"

namespace vmoba::model {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr const char* kAlignmentKey = "general.alignment";
constexpr std::string_view kShapeKey = "comfy.gguf.orig_shape.";
constexpr size_t kMaxDimensions = 8, kMaxNameBytes = 512;
constexpr int64_t kDefaultAlignment = 32, kMaxAlignment = 1 << 20;

// ggml_type: how a tensor's values lie in the file.
struct GgmlType {
  uint32_t number;
  const char* name;
  at::ScalarType dtype;
  std::optional<Packing> packing = {};
};
const std::array<GgmlType, 12> kTypes = {{
    {0, "F32", at::kFloat},
    {1, "F16", at::kHalf},
    {8, "Q8_0", at::kBFloat16, Packing::kQ8_0},
    {12, "Q4_K", at::kBFloat16, Packing::kQ4_K},
    {13, "Q5_K", at::kBFloat16, Packing::kQ5_K},
    {14, "Q6_K", at::kBFloat16, Packing::kQ6_K},
    {24, "I8", at::kChar},
    {25, "I16", at::kShort},
    {26, "I32", at::kInt},
    {27, "I64", at::kLong},
    {28, "F64", at::kDouble},
    {30, "BF16", at::kBFloat16},
}};

std::string known_types() {
  std::vector<std::string> names;
  for (const GgmlType& type : kTypes) names.push_back(type.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// gguf_type: kinds of values beside the tensors.
enum class Kind : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

int64_t width_of(Kind kind) {
  constexpr int64_t kWidths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kWidths[size_t(kind)];
}

// Numbers and texts one after the other; never beyond the end.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& origin) : bytes_(bytes), origin_(origin) {}

  int64_t place() const { return int64_t(at_); }
  int64_t left() const { return int64_t(bytes_.size() - at_); }

  std::string_view take(uint64_t count, const char* what) {
    VMOBA_CHECK_INPUT(count <= bytes_.size() - at_,
                      "expected {} bytes of {} at byte {} of '{}', found the end of its header after {}; the file is "
                      "damaged, or its download did not finish",
                      count, what, at_, origin_, bytes_.size() - at_);
    const std::string_view out = bytes_.substr(at_, size_t(count));
    at_ += size_t(count);
    return out;
  }
  template <typename Number>
  Number number(const char* what) {
    Number out;
    std::memcpy(&out, take(sizeof out, what).data(), sizeof out);
    return out;
  }
  std::string text(const char* what) {
    const auto length = number<uint64_t>(what);
    VMOBA_CHECK_INPUT(length <= kMaxNameBytes, "expected {} of at most {} bytes at byte {} of '{}', found {}", what,
                      kMaxNameBytes, at_, origin_, length);
    const std::string out(take(length, what));
    VMOBA_CHECK_INPUT(out.find('\0') == std::string::npos, "expected {} without a zero byte at byte {} of '{}'", what,
                      at_, origin_);
    return out;
  }
  Kind kind() {
    const auto value = number<uint32_t>("the type of a value");
    VMOBA_CHECK_INPUT(value <= uint32_t(Kind::kF64), "expected a type of values up to {} at byte {} of '{}', found {}",
                      uint32_t(Kind::kF64), at_, origin_, value);
    return Kind(value);
  }
  const std::string& origin() const { return origin_; }

 private:
  std::string_view bytes_;
  const std::string& origin_;
  size_t at_ = 0;
};

// What the values beside the tensors say about these.
struct Notes {
  int64_t alignment = kDefaultAlignment;
  std::map<std::string, std::vector<int64_t>> shapes;
};

void skip_array(Reader& reader, Kind kind, uint64_t count) {
  if (kind != Kind::kString) {
    VMOBA_CHECK_INPUT(kind != Kind::kArray, "expected no array of arrays at byte {} of '{}', found one", reader.place(),
                      reader.origin());
    VMOBA_CHECK_INPUT(count <= uint64_t(reader.left()), "expected {} values at byte {} of '{}', found {} bytes", count,
                      reader.place(), reader.origin(), reader.left());
    reader.take(count * uint64_t(width_of(kind)), "an array");
    return;
  }
  for (uint64_t i = 0; i < count; ++i) reader.take(reader.number<uint64_t>("a text's length"), "a text");
}

void read_value(Reader& reader, const std::string& key, Notes& notes) {
  const Kind kind = reader.kind();
  if (kind == Kind::kString) {
    reader.take(reader.number<uint64_t>("a text's length"), "a text");
  } else if (kind == Kind::kArray) {
    const Kind of = reader.kind();
    const auto count = reader.number<uint64_t>("the length of an array");
    if (!key.starts_with(kShapeKey) || of != Kind::kI32 || count > kMaxDimensions) return skip_array(reader, of, count);
    std::vector<int64_t>& shape = notes.shapes[key.substr(kShapeKey.size())];
    shape.clear();
    for (uint64_t i = 0; i < count; ++i) shape.push_back(reader.number<int32_t>("a size"));
  } else if (key == kAlignmentKey && kind == Kind::kU32) {
    notes.alignment = reader.number<uint32_t>("the alignment");
    VMOBA_CHECK_INPUT(notes.alignment > 0 && notes.alignment <= kMaxAlignment && notes.alignment % 8 == 0,
                      "expected {} of '{}' to be a multiple of 8, found {}", kAlignmentKey, reader.origin(),
                      notes.alignment);
  } else {
    reader.take(uint64_t(width_of(kind)), "a value");
  }
}

// Their product; -1 where it is no size of a tensor.
int64_t product_of(const std::vector<int64_t>& sizes) {
  int64_t out = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(out, size, &out)) return -1;
  return out;
}

std::vector<int64_t> read_shape(Reader& reader, const std::string& name) {
  const auto dimensions = reader.number<uint32_t>("the number of dimensions");
  VMOBA_CHECK_INPUT(dimensions <= kMaxDimensions, "expected at most {} dimensions of '{}' in '{}', found {}",
                    kMaxDimensions, name, reader.origin(), dimensions);
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < dimensions; ++i) shape.push_back(reader.number<int64_t>("a size"));
  std::reverse(shape.begin(), shape.end());  // the fastest comes first in the file
  VMOBA_CHECK_INPUT(product_of(shape) >= 0, "expected sizes of a tensor for '{}' in '{}', found {}", name,
                    reader.origin(), fmt::join(shape, "x"));
  return shape;
}

TensorInfo read_tensor(Reader& reader, const std::string& name) {
  TensorInfo out{at::kFloat, read_shape(reader, name)};
  const auto number = reader.number<uint32_t>("a tensor's type");
  const auto type = std::find_if(kTypes.begin(), kTypes.end(), [&](const GgmlType& t) { return t.number == number; });
  VMOBA_CHECK_INPUT(type != kTypes.end(),
                    "expected '{}' of '{}' in one of the types {}, found ggml type {}; get the model's file in Q8_0, "
                    "Q4_K, Q5_K or Q6_K",
                    name, reader.origin(), known_types(), number);
  out.dtype = type->dtype;
  out.packing = type->packing;
  out.begin = reader.number<int64_t>("a tensor's offset");
  int64_t bytes = 0;
  if (out.packing) {
    const int64_t values = out.shape.empty() ? 0 : out.shape.back();
    const PackedBlock block = packed_block(*out.packing);
    VMOBA_CHECK_INPUT(values > 0 && values % block.values == 0,
                      "expected rows of a multiple of {} values in '{}' ({}) of '{}', found {}", block.values, name,
                      type->name, reader.origin(), values);
    bytes = product_of(out.shape) / values * (values / block.values) * block.bytes;
  } else {
    bytes = product_of(out.shape);
    if (__builtin_mul_overflow(bytes, int64_t(c10::elementSize(out.dtype)), &bytes)) bytes = -1;
  }
  VMOBA_CHECK_INPUT(out.begin >= 0 && bytes >= 0 && !__builtin_add_overflow(out.begin, bytes, &out.end),
                    "expected the place of '{}' in '{}', found offset {}", name, reader.origin(), out.begin);
  return out;
}

// The shape that the values had before they were made to fit GGUF.
void restore_shape(const Notes& notes, const std::string& name, const std::string& origin, TensorInfo& info) {
  const auto found = notes.shapes.find(name);
  if (found == notes.shapes.end()) return;
  VMOBA_CHECK_INPUT(product_of(found->second) == product_of(info.shape),
                    "expected {}{} of '{}' to have as many values as '{}' ({}), found {}", kShapeKey, name, origin,
                    name, fmt::join(info.shape, "x"), fmt::join(found->second, "x"));
  info.shape = found->second;
}

}  // namespace

bool is_gguf(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return false;  // opening a FIFO would wait for a writer
  char beginning[kMagic.size()] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(beginning, sizeof beginning) && std::string_view(beginning, sizeof beginning) == kMagic;
}

GgufHeader parse_gguf_header(std::string_view bytes, int64_t file_bytes, const std::string& origin) {
  Reader reader(bytes, origin);
  VMOBA_CHECK_INPUT(reader.take(kMagic.size(), "the mark GGUF") == kMagic,
                    "expected a GGUF file at '{}', found another", origin);
  const auto version = reader.number<uint32_t>("the version");
  VMOBA_CHECK_INPUT(version == 2 || version == 3, "expected version 2 or 3 of GGUF in '{}', found {}", origin, version);
  const auto tensors = reader.number<uint64_t>("the number of tensors");
  const auto values = reader.number<uint64_t>("the number of values");
  Notes notes;
  for (uint64_t i = 0; i < values; ++i) {
    const std::string key = reader.text("a key");
    read_value(reader, key, notes);
  }
  GgufHeader out;
  for (uint64_t i = 0; i < tensors; ++i) {
    const std::string name = reader.text("a tensor's name");
    TensorInfo info = read_tensor(reader, name);
    VMOBA_CHECK_INPUT(info.begin % notes.alignment == 0, "expected '{}' of '{}' at a multiple of {} bytes, found {}",
                      name, origin, notes.alignment, info.begin);
    restore_shape(notes, name, origin, info);
    VMOBA_CHECK_INPUT(!info.packing || info.shape.size() == 2,
                      "expected the packed '{}' of '{}' to be a matrix, found {}", name, origin,
                      fmt::join(info.shape, "x"));
    VMOBA_CHECK_INPUT(out.tensors.emplace(name, std::move(info)).second,
                      "expected distinct names in '{}', found '{}' twice", origin, name);
  }
  out.data_begin = (reader.place() + notes.alignment - 1) / notes.alignment * notes.alignment;
  for (const auto& [name, info] : out.tensors)
    VMOBA_CHECK_INPUT(out.data_begin <= file_bytes && info.end <= file_bytes - out.data_begin,
                      "expected '{}' to end at byte {} of '{}', found a file of {} bytes; its download did not finish",
                      name, out.data_begin + info.end, origin, file_bytes);
  return out;
}

struct GgufFile::Mapping {
  explicit Mapping(const std::string& path)
      : file(path, /*least_bytes=*/int64_t(kMagic.size()), "a GGUF file"),
        header(parse_gguf_header({reinterpret_cast<const char*>(file.data()), size_t(file.bytes())}, file.bytes(),
                                 path)) {}

  MappedFile file;
  GgufHeader header;
};

GgufFile::GgufFile(const std::string& path) : mapping_(std::make_shared<Mapping>(path)) {}

GgufFile::~GgufFile() = default;

const std::map<std::string, TensorInfo>& GgufFile::tensors() const {
  return mapping_->header.tensors;
}

at::Tensor GgufFile::tensor(const std::string& name) const {
  const auto found = tensors().find(name);
  if (found == tensors().end()) {
    std::vector<std::string> names;
    for (const auto& entry : tensors()) names.push_back(entry.first);
    throw_input("expected a tensor '{}' in '{}', found {} other tensors; the nearest name is '{}'", name,
                mapping_->file.path(), names.size(), nearest_name(name, names));
  }
  const TensorInfo& info = found->second;
  std::vector<int64_t> shape = info.shape;
  if (info.packing) shape.back() = packed_row_bytes(*info.packing, shape.back());
  const auto options = at::TensorOptions().dtype(info.packing ? at::kByte : info.dtype);
  if (info.begin == info.end) return at::empty(shape, options);
  // Never written through: from_blob takes no const.
  auto* bytes = const_cast<uint8_t*>(mapping_->file.data()) + mapping_->header.data_begin + info.begin;
  return at::from_blob(
      bytes, shape, [mapping = mapping_](void*) {}, options);
}

void GgufFile::release(const std::string& name, int64_t begin, int64_t end) const {
  const int64_t first = mapping_->header.data_begin + tensors().at(name).begin;
  mapping_->file.release(first + begin, first + end);
}

}  // namespace vmoba::model
