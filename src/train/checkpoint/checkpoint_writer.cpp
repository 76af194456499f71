#include "train/checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "core/failure.h"
#include "core/file.h"
#include "core/hash.h"
#include "model/adapter/lora_file.h"
#include "model/common/dtype.h"
#include "model/weights/save.h"
#include "model/weights/shared_file.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_tensors.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kAlignBytes = 64;

// Pairs of "<module>.lora_A.weight" and "<module>.lora_B.weight".
std::vector<model::Adapter> adapters_of(const std::vector<HeldTensor>& tensors, double scale) {
  std::vector<model::Adapter> out;
  for (size_t i = 0; i + 1 < tensors.size(); i += 2) {
    const std::string& name = tensors[i].name;
    const auto own = [&](size_t j) { return tensors[j].held.cpu().clone(); };
    out.push_back({name.substr(0, name.rfind(".lora_A.")), {own(i), own(i + 1), scale}});
  }
  return out;
}

// As they lie in a file; nothing is read through it.
std::vector<model::TensorToWrite> announced(const std::vector<HeldTensor>& tensors) {
  std::vector<model::TensorToWrite> out;
  for (const HeldTensor& tensor : tensors)
    out.push_back({tensor.name, tensor.held.scalar_type(), tensor.shape, nullptr});
  return out;
}

Manifest manifest_of(const TrainerState& state, const CheckpointParts& parts) {
  Manifest out{state, {}, parts.experts.front().ema != nullptr, parts.record, ""};
  for (const Expert& expert : parts.experts) out.updates.push_back(expert.updates);
  return out;
}

}  // namespace

// A file that all ranks write, with the tensors in it.
struct CheckpointWriter::Planned {
  std::string path;
  const Expert* expert;
  std::vector<HeldTensor> tensors;
  model::SafetensorsLayout layout;
  std::string folder_index;  // of a transformer's folder of several files; in the first
};

CheckpointWriter::~CheckpointWriter() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

std::map<std::string, std::string> CheckpointWriter::file_metadata() const {
  return {{"step", std::to_string(step_)}, {"run", kind_of_run(manifest_.record.run)}};
}

void CheckpointWriter::plan(const CheckpointParts& parts, std::vector<Planned>& files) const {
  const auto one_file = [&](const std::string& path, const Expert& expert, std::vector<HeldTensor> tensors) {
    const auto layout = model::safetensors_layout(path, announced(tensors), file_metadata());
    files.push_back({path, &expert, std::move(tensors), layout, ""});
  };
  const auto weights = [&](size_t i, bool average) {
    const Expert& expert = parts.experts[i];
    const std::vector<HeldTensor> tensors = average ? held_average(expert) : held_weights(expert);
    const std::string path = weights_path(working_, i, parts.lora.enabled(), average);
    if (parts.lora.enabled()) return one_file(path, expert, tensors);
    const model::TransformerPlan folder = model::plan_transformer(announced(tensors));
    std::map<std::string, std::string> metadata = file_metadata();
    metadata.insert(model::kTransformerMetadata.begin(), model::kTransformerMetadata.end());
    size_t next = 0;
    for (const model::TransformerPlan::File& file : folder.files) {
      const std::string file_path = path + "/" + file.name;
      const auto first = tensors.begin() + ptrdiff_t(next);
      next += file.tensors.size();
      files.push_back({file_path,
                       &expert,
                       {first, tensors.begin() + ptrdiff_t(next)},
                       model::safetensors_layout(file_path, file.tensors, metadata),
                       folder.index});
    }
  };
  for (size_t i = 0; i < parts.experts.size(); ++i) {
    weights(i, /*average=*/false);
    if (parts.experts[i].ema) weights(i, /*average=*/true);
    one_file(optimizer_path(working_, i), parts.experts[i], held_state(parts.experts[i]));
  }
}

void CheckpointWriter::make_files(const CheckpointParts& parts, const std::vector<Planned>& files) const {
  if (fs::exists(working_)) remove_folder(working_);
  make_folder(working_ + "/state");
  for (const Planned& file : files) {
    const fs::path folder = fs::path(file.path).parent_path();
    if (!fs::exists(folder)) {  // a transformer's
      make_folder(folder.string());
      write_file_atomically((folder / "config.json").string(), file.expert->dit->config_json());
      if (!file.folder_index.empty())
        write_file_atomically((folder / model::kTransformerIndex).string(), file.folder_index);
    }
    model::create_shared_file(file.path, file.layout);
  }
  for (const ToolFile& file : tool_files_) make_folder(fs::path(file.path).parent_path().string());
}

// What this rank writes of the files, and where in the copy it lies.
std::vector<CheckpointWriter::Source> CheckpointWriter::sources_of(const std::vector<Planned>& files) {
  std::vector<Source> out;
  int64_t begin = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t t = 0; t < files[i].tensors.size(); ++t) {
      const HeldTensor& tensor = files[i].tensors[t];
      const ValueRun held = held_run(*files[i].expert, tensor), own = written_run(*files[i].expert, tensor);
      if (own.count == 0) continue;
      const int64_t value_bytes = int64_t(tensor.held.element_size());
      out.push_back({tensor.held.view(-1).narrow(0, own.begin - held.begin, own.count), i, t,
                     files[i].layout.tensors.at(tensor.name).begin + own.begin * value_bytes, own.begin, begin});
      begin += (own.count * value_bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    }
  }
  return out;
}

void CheckpointWriter::reserve_copy(const std::vector<Source>& sources) {
  if (sources.empty()) return;
  const Source& last = sources.back();
  copy_.reserve(last.begin + int64_t(last.values.nbytes()), last.values.is_cuda());
}

void CheckpointWriter::copy_values(const std::vector<Planned>& files) {
  const at::NoGradGuard no_grad;
  const std::vector<Source> sources = sources_of(files);
  reserve_copy(sources);
  files_.clear();
  for (const Planned& file : files) {
    files_.push_back({file.path, file.layout.header, file.layout.file_bytes, {}, {}, {}});
    for (const HeldTensor& tensor : file.tensors) files_.back().tensors.push_back(tensor.name);
  }
  for (const Source& source : sources) {
    const auto bytes = int64_t(source.values.nbytes()), value_bytes = int64_t(source.values.element_size());
    for (int64_t done = 0; done < bytes;) {
      const at::Tensor values = copy_.run(source.begin + done, bytes - done).view(source.values.scalar_type());
      values.copy_(source.values.narrow(0, done / value_bytes, values.numel()), /*non_blocking=*/true);
      files_[source.file].slices.push_back(
          {source.offset + done, values, source.tensor, source.first + done / value_bytes});
      done += int64_t(values.nbytes());
    }
  }
  if (sources.empty() || !sources.front().values.is_cuda()) return;
  const at::Device device = sources.front().values.device();
  c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
}

void CheckpointWriter::copy_adapters(const CheckpointParts& parts) {
  tool_files_.clear();
  if (!parts.lora.enabled() || control_.rank() != 0) return;
  VMOBA_CHECK(parts.architecture != nullptr, "expected the architecture of the adapters, found none");
  for (size_t i = 0; i < parts.experts.size(); ++i) {
    const Expert& expert = parts.experts[i];
    for (const bool average : {false, true}) {
      if (average && !expert.ema) continue;
      const auto adapters = adapters_of(average ? held_average(expert) : held_weights(expert), parts.lora.scale());
      const std::string folder = working_ + (average ? "/lora_ema/" : "/lora/");
      const std::string level = expert_name(i, parts.experts.size());
      for (const std::string& format : parts.lora.formats)
        tool_files_.push_back({folder + format + (level.empty() ? "" : "_" + level) + ".safetensors", format,
                               parts.lora.save_dtype, adapters, parts.architecture,
                               model::shapes_of(expert.dit->parameters()), parts.lora_metadata});
    }
  }
}

void CheckpointWriter::reserve(const CheckpointParts& parts) {
  std::vector<Planned> files;
  plan(parts, files);
  reserve_copy(sources_of(files));
}

int64_t CheckpointWriter::file_bytes(const CheckpointParts& parts) const {
  std::vector<Planned> files;
  plan(parts, files);
  int64_t bytes = 0;
  for (const Planned& file : files) bytes += file.layout.file_bytes;
  return bytes;
}

void CheckpointWriter::begin(const TrainerState& state, const CheckpointParts& parts) {
  VMOBA_CHECK(!thread_.joinable(), "expected no checkpoint under way, found that of step {}", step_);
  step_ = state.step;
  working_ = unfinished_path(run_dir_, step_);
  manifest_ = manifest_of(state, parts);
  config_yaml_ = parts.config_yaml;
  std::vector<Planned> files;
  throw_together(failure_of([&] {
    plan(parts, files);
    copy_adapters(parts);
    if (control_.rank() == 0) make_files(parts, files);
    copy_values(files);
  }));
  stop_ = false;
  failure_.clear();
  progress_ = Progress::kWriting;
  thread_ = std::thread([this] {
    failure_ = failure_of([this] { write(); });
    progress_ = failure_.empty() ? Progress::kWritten : Progress::kFailed;
  });
}

// On a thread of its own.
void CheckpointWriter::write() {
  for (File& file : files_) {
    std::vector<model::ByteRun> runs;
    file.checksums.assign(file.tensors.size(), 0);
    for (const Slice& slice : file.slices) {
      const at::Tensor& values = slice.values;
      runs.push_back({slice.offset, values.const_data_ptr(), int64_t(values.nbytes())});
      file.checksums[slice.tensor] +=
          values_checksum(values.const_data_ptr(), values.numel(), int64_t(values.element_size()), slice.first);
    }
    model::write_byte_runs(file.path, runs, [this] { return stop_.load(); });
  }
  for (const ToolFile& file : tool_files_) {
    std::map<std::string, std::string> metadata = file_metadata();
    metadata.insert(file.metadata.begin(), file.metadata.end());
    model::write_lora(file.path, file.adapters, *file.architecture, model::lora_format(file.format),
                      model::scalar_type(file.dtype), metadata, file.shape_of);
  }
}

Checksums CheckpointWriter::sum_checksums() {
  std::string own;
  for (const File& file : files_)
    own.append(reinterpret_cast<const char*>(file.checksums.data()), file.checksums.size() * sizeof(uint64_t));
  const std::vector<std::string> all = dist::all_gather_text(control_, own);
  Checksums out;
  size_t at = 0;
  for (const File& file : files_) {
    FileChecksum& checksum = out[fs::relative(file.path, working_).generic_string()];
    checksum.bytes = file.bytes;
    checksum.hash = hash_text(content_hash(file.header));
    for (const std::string& tensor : file.tensors) {
      uint64_t sum = 0;
      for (const std::string& of_rank : all) {
        uint64_t part = 0;
        std::memcpy(&part, of_rank.data() + at, sizeof part);
        sum += part;
      }
      checksum.tensors[tensor] = hash_text(sum);
      at += sizeof sum;
    }
  }
  return out;
}

CheckpointWriter::Saved CheckpointWriter::finish() {
  VMOBA_CHECK(thread_.joinable(), "expected a checkpoint under way, found none");
  thread_.join();
  progress_ = Progress::kNone;
  throw_together(failure_);
  const Checksums checksums = sum_checksums();
  throw_together(failure_of([&] {
    if (control_.rank() != 0) return;
    complete(checksums);
    rotate_checkpoints(run_dir_, rotation_);
  }));
  return {step_, checkpoint_path(run_dir_, step_)};
}

// The manifest comes last, then the folder's name.
void CheckpointWriter::complete(Checksums checksums) {
  write_file_atomically(working_ + "/state/config.yaml", config_yaml_);
  for (const auto& entry : fs::recursive_directory_iterator(working_)) {
    const std::string name = fs::relative(entry.path(), working_).generic_string();
    if (entry.is_regular_file() && !checksums.contains(name))
      checksums[name] = {int64_t(entry.file_size()), hash_text(file_hash(entry.path().string())), {}};
  }
  const std::string text = checksums_to_json(checksums);
  manifest_.checksums = hash_text(content_hash(text));
  write_file_atomically(checksums_path(working_), text);
  write_file_atomically(manifest_path(working_), manifest_to_json(manifest_));
  for (const auto& entry : fs::directory_iterator(working_)) sync_path(entry.path().string());
  sync_path(working_);
  commit_checkpoint(run_dir_, step_);
}

// Throws on all ranks where one of them failed; the unfinished folder is removed first.
void CheckpointWriter::throw_together(const std::string& own_failure) {
  const std::vector<std::string> failures = dist::all_gather_text(control_, own_failure);
  std::string text;
  for (size_t rank = 0; rank < failures.size(); ++rank) {
    if (failures[rank].empty()) continue;
    text += fmt::format("{}{}{}", text.empty() ? "" : "; ", failures.size() > 1 ? fmt::format("rank {}: ", rank) : "",
                        failures[rank]);
  }
  if (text.empty()) return;
  if (control_.rank() == 0) remove_folder(working_);
  dist::barrier(control_);  // a rank that ends the job must not cut this short
  throw SaveError(
      fmt::format("could not save '{}' ({}); older checkpoints are untouched", checkpoint_path(run_dir_, step_), text));
}

}  // namespace vmoba::train
