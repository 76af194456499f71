#include "model/weights/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/check.h"
#include "core/config.h"
#include "core/file.h"
#include "core/file_descriptor.h"
#include "core/file_kind.h"
#include "core/mapped_file.h"
#include "core/work_progress.h"
#include "model/weights/safetensors_header.h"

namespace vmoba::model {
namespace {

// A file under construction beside its final path; removed unless commit() succeeded.
class PendingFile {
 public:
  explicit PendingFile(const std::string& path)
      : path_(path), temporary_(path + ".tmp"), file_(temporary_, O_WRONLY | O_CREAT | O_TRUNC) {
    if (file_.get() < 0) fail(errno);
  }
  ~PendingFile() {
    if (!committed_ && file_.get() >= 0) ::unlink(temporary_.c_str());
  }
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void write(const void* bytes, size_t count) {
    const char* at = static_cast<const char*>(bytes);
    while (count > 0) {
      const ssize_t wrote = ::write(file_.get(), at, std::min(count, kChunkBytes));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) fail(errno);
      at += wrote;
      count -= size_t(wrote);
    }
  }

  void commit() {
    if (::fsync(file_.get()) != 0) fail(errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(errno);
    committed_ = true;
    const std::string parent = std::filesystem::path(path_).parent_path().string();
    sync_path(parent.empty() ? "." : parent);
  }

 private:
  static constexpr size_t kChunkBytes = size_t{1} << 30;  // Linux writes at most 2 GiB per call

  [[noreturn]] void fail(int error) const {
    throw_runtime("expected to write '{}', found: {}; free disk space or choose another folder", path_,
                  std::strerror(error));
  }

  std::string path_, temporary_;
  FileDescriptor file_;
  bool committed_ = false;
};

// bool objects other than 0 and 1 are undefined behaviour in C++; a damaged file may hold them.
void check_bools(const uint8_t* bytes, const TensorInfo& info, const std::string& name, const std::string& path) {
  const uint8_t* end = bytes + (info.end - info.begin);
  const uint8_t* bad = std::find_if(bytes, end, [](uint8_t value) { return value > 1; });
  VMOBA_CHECK_INPUT(bad == end, "expected 0 or 1 in the BOOL tensor '{}' of '{}', found {} at data byte {}", name, path,
                    int(*bad), info.begin + (bad - bytes));
}

}  // namespace

struct SafetensorsFile::Mapping {
  explicit Mapping(const std::string& path) : file(path, /*least_bytes=*/8, "a safetensors file") {
    const std::string_view view(reinterpret_cast<const char*>(file.data()), size_t(file.bytes()));
    try {
      header = parse_safetensors_header(view, file.bytes(), path);
    } catch (const Error&) {
      const std::string kind = what_is_this(path);
      VMOBA_CHECK_INPUT(kind.empty(), "expected a safetensors file at '{}', found {}", path, kind);
      throw;
    }
  }

  MappedFile file;
  SafetensorsHeader header;
};

SafetensorsFile::SafetensorsFile(const std::string& path) : mapping_(std::make_shared<Mapping>(path)) {}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::map<std::string, TensorInfo>& SafetensorsFile::tensors() const {
  return mapping_->header.tensors;
}
const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return mapping_->header.metadata;
}
bool SafetensorsFile::contains(const std::string& name) const {
  return tensors().contains(name);
}

const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = tensors().find(name);
  if (found != tensors().end()) return found->second;
  std::vector<std::string> names;
  for (const auto& entry : tensors()) names.push_back(entry.first);
  const std::string near = nearest_name(name, names);
  throw_input("expected a tensor '{}' in '{}', found {} other tensors{}", name, mapping_->file.path(), names.size(),
              near.empty() ? "" : "; the nearest name is '" + near + "'");
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  // Never written through: from_blob takes no const.
  auto* bytes = const_cast<uint8_t*>(mapping_->file.data()) + mapping_->header.data_begin + info.begin;
  if (info.dtype == at::kBool) check_bools(bytes, info, name, mapping_->file.path());
  const auto options = at::TensorOptions().dtype(info.dtype);
  if (info.begin == info.end) return at::empty(info.shape, options);
  if (reinterpret_cast<uintptr_t>(bytes) % c10::elementSize(info.dtype) != 0) {
    at::Tensor copy = at::empty(info.shape, options);
    std::memcpy(copy.data_ptr(), bytes, size_t(info.end - info.begin));
    return copy;
  }
  return at::from_blob(
      bytes, info.shape, [mapping = mapping_](void*) {}, options);
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  at::Tensor out = at::empty(info.shape, at::TensorOptions().dtype(info.dtype));
  if (info.begin == info.end) return out;
  mapping_->file.read(mapping_->header.data_begin + info.begin, info.end - info.begin, out.data_ptr());
  if (info.dtype == at::kBool)
    check_bools(static_cast<const uint8_t*>(out.const_data_ptr()), info, name, mapping_->file.path());
  return out;
}

void SafetensorsFile::release(const std::string& name, int64_t begin, int64_t end) const {
  const int64_t first = mapping_->header.data_begin + tensors().at(name).begin;
  mapping_->file.release(first + begin, first + end);
}

int64_t TensorToWrite::bytes() const {
  int64_t count = int64_t(c10::elementSize(dtype));
  for (const int64_t size : shape) count *= size;
  return count;
}

std::vector<TensorToWrite> tensors_to_write(const std::vector<NamedTensor>& tensors) {
  std::vector<TensorToWrite> out;
  for (const NamedTensor& named : tensors) {
    VMOBA_CHECK(named.tensor.defined() && named.tensor.layout() == at::kStrided,
                "expected a dense tensor for '{}', found none", named.name);
    out.push_back({named.name, named.tensor.scalar_type(), named.tensor.sizes().vec(),
                   [tensor = named.tensor] { return tensor; }});
  }
  return out;
}

uint64_t bytes_checksum(const void* bytes, size_t count) {
  constexpr size_t kLanes = 4, kWord = sizeof(uint64_t);
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;
  const auto mix = [](uint64_t hash, uint64_t word) {
    const uint64_t mixed = (hash ^ word) * kMultiplier;
    return mixed ^ (mixed >> 29);
  };
  const auto* at = static_cast<const uint8_t*>(bytes);
  uint64_t lanes[kLanes] = {1, 2, 3, 4};
  size_t done = 0;
  for (; done + kLanes * kWord <= count; done += kLanes * kWord) {
    uint64_t words[kLanes];
    std::memcpy(words, at + done, sizeof words);
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], words[i]);
  }
  uint64_t hash = count;
  for (const uint64_t lane : lanes) hash = mix(hash, lane);
  for (; done < count; ++done) hash = mix(hash, at[done]);
  return hash;
}

namespace {

// The reference implementation's order: widest dtype first, which keeps every tensor aligned; then by name.
std::vector<const TensorToWrite*> file_order(const std::vector<TensorToWrite>& tensors, const std::string& path) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& source : tensors) {
    VMOBA_CHECK(source.name != "__metadata__", "expected another tensor name than '__metadata__' in '{}'", path);
    order.push_back(&source);
  }
  std::sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    const int rank_a = safetensors_dtype_rank(a->dtype), rank_b = safetensors_dtype_rank(b->dtype);
    return rank_a != rank_b ? rank_a > rank_b : a->name < b->name;
  });
  std::vector<std::string> names;
  for (const TensorToWrite& source : tensors) names.push_back(source.name);
  std::sort(names.begin(), names.end());
  const auto repeated = std::adjacent_find(names.begin(), names.end());
  VMOBA_CHECK(repeated == names.end(), "expected distinct tensor names in '{}', found '{}' twice", path, *repeated);
  return order;
}

SafetensorsLayout layout_of(const std::vector<const TensorToWrite*>& order,
                            const std::map<std::string, std::string>& metadata) {
  std::vector<std::pair<std::string, TensorInfo>> infos;
  for (const TensorToWrite* source : order) infos.emplace_back(source->name, TensorInfo{source->dtype, source->shape});
  SafetensorsLayout out;
  out.header = make_safetensors_header(infos, metadata);
  out.file_bytes = int64_t(out.header.size());
  for (auto& [name, info] : infos) {
    info.begin += int64_t(out.header.size());
    info.end += int64_t(out.header.size());
    out.file_bytes = info.end;
    out.tensors.emplace(name, std::move(info));
  }
  return out;
}

}  // namespace

SafetensorsLayout safetensors_layout(const std::string& path, const std::vector<TensorToWrite>& tensors,
                                     const std::map<std::string, std::string>& metadata) {
  return layout_of(file_order(tensors, path), metadata);
}

std::map<std::string, uint64_t> write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                                                  const std::map<std::string, std::string>& metadata) {
  const std::vector<const TensorToWrite*> order = file_order(tensors, path);
  const std::string header = layout_of(order, metadata).header;
  PendingFile file(path);
  file.write(header.data(), header.size());
  std::map<std::string, uint64_t> checksums;
  int64_t total = 0;
  for (const TensorToWrite* source : order) total += source->bytes();
  WorkProgress progress(fmt::format("writing '{}'", path), total);
  for (const TensorToWrite* source : order) {
    const at::Tensor bytes = source->read().detach().cpu().resolve_conj().resolve_neg().contiguous();
    VMOBA_CHECK(bytes.scalar_type() == source->dtype && bytes.sizes() == at::IntArrayRef(source->shape),
                "expected '{}' of '{}' in the announced type and shape, found another", source->name, path);
    file.write(bytes.const_data_ptr(), bytes.nbytes());
    progress.add(int64_t(bytes.nbytes()));
    checksums[source->name] = bytes_checksum(bytes.const_data_ptr(), bytes.nbytes());
  }
  file.commit();
  return checksums;
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_safetensors(path, tensors_to_write(tensors), metadata);
}

}  // namespace vmoba::model
