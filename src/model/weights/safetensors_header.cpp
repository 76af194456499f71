#include "model/weights/safetensors_header.h"

#include <c10/core/ScalarType.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr size_t kMaxDimensions = 64;

struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};

// In the reference implementation's order, which sorts the tensors of a file.
constexpr std::array<DtypeName, 19> kDtypes = {{
    {"BOOL", at::kBool},
    {"U8", at::kByte},
    {"I8", at::kChar},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"F8_E5M2FNUZ", at::kFloat8_e5m2fnuz},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E4M3FNUZ", at::kFloat8_e4m3fnuz},
    {"F8_E8M0", at::kFloat8_e8m0fnu},
    {"I16", at::kShort},
    {"U16", at::kUInt16},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I32", at::kInt},
    {"U32", at::kUInt32},
    {"F32", at::kFloat},
    {"C64", at::kComplexFloat},
    {"F64", at::kDouble},
    {"I64", at::kLong},
    {"U64", at::kUInt64},
}};

std::string known_dtypes() {
  std::string out;
  for (const DtypeName& entry : kDtypes) out += (out.empty() ? "" : ", ") + std::string(entry.name);
  return out;
}

// Receives JSON events and accepts exactly: {"__metadata__": {string: string}, name: {"dtype": string,
// "shape": [integers], "data_offsets": [begin, end]}, ...}. Depth is bounded by construction.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(SafetensorsHeader& header, const std::string& origin) : header_(header), origin_(origin) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { return unexpected(fmt::format("the number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + text.substr(0, 40));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return unexpected(fmt::format("the number {}", value));
    if (value > uint64_t(INT64_MAX)) return unexpected(fmt::format("the number {}", value));
    std::vector<int64_t>& list = place_ == Place::kShape ? info_.shape : offsets_;
    VMOBA_CHECK_INPUT(list.size() < kMaxDimensions, "expected at most {} numbers in '{}' of '{}' in '{}', found more",
                      kMaxDimensions, field_, name_, origin_);
    list.push_back(int64_t(value));
    return true;
  }

  bool string(string_t& value) override {
    check_text(value);
    if (place_ == Place::kMetadata && has_key_) {
      VMOBA_CHECK_INPUT(header_.metadata.emplace(field_, value).second,
                        "expected distinct metadata keys in '{}', found '{}' twice", origin_, field_);
      has_key_ = false;
      return true;
    }
    if (place_ != Place::kTensor || field_ != "dtype") return unexpected("the string '" + value.substr(0, 40) + "'");
    const auto found =
        std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& d) { return d.name == value; });
    VMOBA_CHECK_INPUT(found != kDtypes.end(), "expected a dtype among {} for '{}' in '{}', found '{}'", known_dtypes(),
                      name_, origin_, value.substr(0, 40));
    info_.dtype = found->dtype;
    field_.clear();
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot || !has_key_) return unexpected("an object");
    has_key_ = false;
    place_ = name_ == "__metadata__" ? Place::kMetadata : Place::kTensor;
    info_ = TensorInfo{};
    offsets_.clear();
    seen_ = 0;
    return true;
  }

  bool key(string_t& value) override {
    check_text(value);
    if (place_ == Place::kRoot) {
      const bool repeated = value == "__metadata__" ? has_metadata_ : header_.tensors.contains(value);
      VMOBA_CHECK_INPUT(!repeated, "expected distinct names in '{}', found '{}' twice", origin_, value);
      has_metadata_ |= value == "__metadata__";
      name_ = value;
      has_key_ = true;
      return true;
    }
    if (place_ == Place::kTensor) return tensor_key(value);
    field_ = value;
    has_key_ = true;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      VMOBA_CHECK_INPUT(seen_ == 7 && offsets_.size() == 2,
                        "expected dtype, shape and two data_offsets for '{}' in '{}', found less", name_, origin_);
      info_.begin = offsets_[0];
      info_.end = offsets_[1];
      header_.tensors.emplace(name_, std::move(info_));
    }
    place_ = place_ == Place::kRoot ? Place::kEnd : Place::kRoot;
    has_key_ = false;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || (field_ != "shape" && field_ != "data_offsets")) return unexpected("a list");
    place_ = field_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    field_.clear();
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    throw_input("expected a JSON header in '{}', found an error at byte {}: {}; the file is damaged or no safetensors",
                origin_, kLengthBytes + int64_t(position), error.what());
  }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets, kEnd };

  // A zero byte would cut every message that quotes the text.
  void check_text(const std::string& value) const {
    const size_t zero = value.find('\0');
    VMOBA_CHECK_INPUT(
        zero == std::string::npos,
        "expected names and texts without a zero byte in '{}', found one behind '{}'; the file is damaged", origin_,
        value.substr(zero - std::min<size_t>(zero, 40), std::min<size_t>(zero, 40)));
  }

  bool tensor_key(const std::string& value) {
    constexpr std::array<const char*, 3> kKeys = {"dtype", "shape", "data_offsets"};
    const auto found = std::find(kKeys.begin(), kKeys.end(), value);
    VMOBA_CHECK_INPUT(found != kKeys.end(),
                      "expected dtype, shape or data_offsets for '{}' in '{}', found the key '{}'", name_, origin_,
                      value.substr(0, 40));
    const int bit = 1 << (found - kKeys.begin());
    VMOBA_CHECK_INPUT((seen_ & bit) == 0, "expected one '{}' for '{}' in '{}', found two", value, name_, origin_);
    seen_ |= bit;
    field_ = value;
    return true;
  }

  [[noreturn]] bool unexpected(const std::string& found) const {
    throw_input(
        "expected the safetensors header of '{}' to map names to dtype, shape and data_offsets, found {} at "
        "'{}{}{}'",
        origin_, found, name_, field_.empty() ? "" : ".", field_);
  }

  SafetensorsHeader& header_;
  const std::string& origin_;
  Place place_ = Place::kStart;
  bool has_key_ = false, has_metadata_ = false;
  int seen_ = 0;  // bits of the keys of the current tensor
  std::string name_, field_;
  TensorInfo info_{};
  std::vector<int64_t> offsets_;
};

// Bytes of a tensor. Empty tensors count their zero sizes as one for the overflow test, so that strides are safe too.
int64_t tensor_bytes(const TensorInfo& info, const std::string& name, const std::string& origin) {
  int64_t bound = int64_t(c10::elementSize(info.dtype));
  bool empty = false;
  for (const int64_t size : info.shape) {
    empty |= size == 0;
    VMOBA_CHECK_INPUT(!__builtin_mul_overflow(bound, std::max<int64_t>(size, 1), &bound),
                      "expected a size below 2^63 bytes for '{}' in '{}', found a larger shape", name, origin);
  }
  return empty ? 0 : bound;
}

// The tensors must tile the data section: in range, no overlap, no hole.
void check_layout(const SafetensorsHeader& header, int64_t data_bytes, const std::string& origin) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  order.reserve(header.tensors.size());
  for (const auto& [name, info] : header.tensors) order.emplace_back(&name, &info);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  int64_t next = 0;
  for (const auto& [name, info] : order) {
    VMOBA_CHECK_INPUT(info->begin == next && info->end >= info->begin,
                      "expected '{}' in '{}' to begin at data byte {}, found bytes {} to {}", *name, origin, next,
                      info->begin, info->end);
    const int64_t bytes = tensor_bytes(*info, *name, origin);
    VMOBA_CHECK_INPUT(info->end - info->begin == bytes, "expected {} bytes for '{}' in '{}', found {} at data byte {}",
                      bytes, *name, origin, info->end - info->begin, info->begin);
    next = info->end;
  }
  VMOBA_CHECK_INPUT(next == data_bytes,
                    "expected {} bytes of tensors in '{}', found {}; the file is truncated or has bytes of no tensor",
                    next, origin, data_bytes);
}

}  // namespace

int safetensors_dtype_rank(at::ScalarType dtype) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& d) { return d.dtype == dtype; });
  VMOBA_CHECK(found != kDtypes.end(), "expected a dtype that safetensors can hold ({}), found {}", known_dtypes(),
              c10::toString(dtype));
  return int(found - kDtypes.begin());
}

SafetensorsHeader parse_safetensors_header(std::string_view prefix, int64_t file_bytes, const std::string& origin) {
  VMOBA_CHECK_INPUT(int64_t(prefix.size()) >= kLengthBytes && file_bytes >= kLengthBytes,
                    "expected a safetensors file of at least {} bytes at '{}', found {}", kLengthBytes, origin,
                    file_bytes);
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) length = (length << 8) | uint8_t(prefix[i]);
  const uint64_t available = uint64_t(std::min(int64_t(prefix.size()), file_bytes)) - kLengthBytes;
  VMOBA_CHECK_INPUT(length <= uint64_t(kMaxHeaderBytes) && length <= available,
                    "expected a header of at most {} bytes in '{}', found a length field (byte 0) of {}; the file is "
                    "truncated or no safetensors",
                    std::min(uint64_t(kMaxHeaderBytes), available), origin, length);
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + int64_t(length);
  const std::string_view json = prefix.substr(kLengthBytes, length);
  VMOBA_CHECK_INPUT(json.starts_with('{'), "expected '{{' at byte {} of '{}', found another byte; no safetensors file",
                    kLengthBytes, origin);
  HeaderHandler handler(header, origin);
  nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  check_layout(header, file_bytes - header.data_begin, origin);
  return header;
}

std::string make_safetensors_header(std::vector<std::pair<std::string, TensorInfo>>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::string json = "{";
  try {
    if (!metadata.empty()) json += "\"__metadata__\":" + nlohmann::json(metadata).dump();
    int64_t next = 0;
    for (auto& [name, info] : tensors) {
      info.begin = next;
      next = info.end = info.begin + tensor_bytes(info, name, "the file to write");
      json +=
          fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", json.size() > 1 ? "," : "",
                      nlohmann::json(name).dump(), kDtypes[safetensors_dtype_rank(info.dtype)].name,
                      fmt::join(info.shape, ","), info.begin, info.end);
    }
  } catch (const nlohmann::json::exception& error) {
    throw_runtime("expected tensor names and metadata in UTF-8, found: {}", error.what());
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  VMOBA_CHECK(int64_t(json.size()) <= kMaxHeaderBytes, "expected a header of at most {} bytes, found {}",
              kMaxHeaderBytes, json.size());
  std::string out(kLengthBytes, '\0');
  for (int i = 0; i < kLengthBytes; ++i) out[i] = char(uint64_t(json.size()) >> (8 * i));
  return out + json;
}

}  // namespace vmoba::model
