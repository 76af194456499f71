#include "model/convert.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "core/check.h"
#include "core/log.h"
#include "model/adapter/convert_lora.h"
#include "model/adapter/lora_file.h"
#include "model/weights/pretrained.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

at::ScalarType output_dtype(const std::string& name, at::ScalarType stored) {
  if (name == "keep") return c10::elementSize(stored) == 1 ? at::kBFloat16 : stored;
  return name == "fp32" ? at::kFloat : name == "fp16" ? at::kHalf : at::kBFloat16;
}

// What is read must not be what is written, under whatever name.
void check_out(const ConvertOptions& options, const std::string& in) {
  const bool folder = !options.out.ends_with(".safetensors");
  std::error_code error;
  // A path that does not exist yet may become the input's: "new/../in", "in/new/..".
  const auto place = [&](const fs::path& path) {
    const fs::path whole = fs::weakly_canonical(path, error);
    return whole.has_filename() ? whole : whole.parent_path();
  };
  const auto check = [&](const fs::path& written, const std::string& input) {
    VMOBA_CHECK_INPUT(!fs::equivalent(options.out, written, error) && place(options.out) != place(written),
                      "expected an output other than the input '{}', found '{}'; name another file or folder", input,
                      options.out);
  };
  for (const std::string& lora : options.loras) check(lora_source(lora).path, lora);
  for (const std::string& file : find_weight_files(in)) {
    const fs::path beside = fs::path(file).parent_path();
    check(!folder ? fs::path(file) : beside.empty() ? "." : beside, file);
  }
}

struct Source {
  const Architecture& architecture;
  WeightFiles files;
  ModelConfig config;  // its sizes
};

Source open_source(const ConvertOptions& options) {
  const std::vector<std::string> names = stored_names(options.in);
  const std::string name = recognised_architecture(names);
  VMOBA_CHECK_INPUT(!name.empty(), "expected the weights of a known transformer ({}) at '{}', found {} other tensors{}",
                    fmt::join(architectures().names(), ", "), options.in, names.size(),
                    names.empty() ? "" : fmt::format(", among them '{}'", names.front()));
  const Architecture& architecture = architectures().find(name);
  Source out{architecture, WeightFiles(options.in, architecture.layouts), {}};
  nlohmann::json beside = config_beside(out.files.folder(), architecture);
  std::set<std::string> given;
  out.config.architecture = name;
  if (options.head_dim > 0) {
    out.config.head_dim = options.head_dim;
    beside.erase("attention_head_dim");
    given.insert("head_dim");
  }
  architecture.read_sizes(out.files, beside, given, out.config);
  return out;
}

at::Tensor changed(const WeightFiles& files, const Deltas& deltas, const std::string& name, at::ScalarType dtype) {
  const auto found = deltas.find(name);
  if (found == deltas.end()) return files.read(name, dtype, at::kCPU);
  at::Tensor weight = files.read(name, at::kFloat, at::kCPU);
  apply_deltas(found->second, weight);
  return weight.to(dtype);
}

// Matrices that hold nothing: where a download leaves a part of a file out, it holds zeros. A model that was never
// trained may have a few.
class EmptyMatrices {
 public:
  void look(const std::string& name, const at::Tensor& weight) {
    constexpr int64_t kSmall = 256;
    if (weight.dim() < 2 || weight.numel() < kSmall) return;
    const bool empty = weight.count_nonzero().item<int64_t>() == 0;
    const std::lock_guard lock(mutex_);
    count_ += 1;
    if (empty) names_.push_back(name);
  }
  void warn(const std::string& path) const {
    if (names_.empty()) return;
    log_warning(
        "'{}': {} of {} matrices hold zeros alone, among them {}; where the file was downloaded, its download "
        "may not have finished: compare its checksum",
        path, names_.size(), count_, names_.front());
  }

 private:
  std::mutex mutex_;
  int64_t count_ = 0;
  std::vector<std::string> names_;
};

std::vector<TensorToWrite> converted_tensors(const ConvertOptions& options, const Source& source, const Deltas& deltas,
                                             EmptyMatrices& empty) {
  check_tensors(source.config, source.files, options.in,
                "get the whole model: some of its files, or the end of one, are missing, or config.json is another's");
  const Layout& layout = layout_named(source.architecture, options.layout);
  const WeightFiles& files = source.files;
  std::vector<TensorToWrite> tensors;
  std::set<std::string> done;
  for (const auto& [name, entry] : files.entries()) {
    const StoredPlace place = layout.place_of(name).value();
    if (!done.insert(place.name).second) continue;
    // All that the written tensor holds; `name` is one of them.
    const std::vector<std::string> held = layout.to_diffusers(place.name);
    std::vector<int64_t> shape = files.info(name).shape;
    at::ScalarType dtype = output_dtype(options.dtype, files.info(name).dtype);
    if (place.is_part()) {
      shape[0] = 0;
      for (const std::string& parameter : held) {
        shape[0] += files.info(parameter).shape[0];
        dtype = c10::promoteTypes(dtype, output_dtype(options.dtype, files.info(parameter).dtype));
      }
    }
    const auto read = [&files, &deltas, &empty, held, rows = place.rows, dtype, stored = entry.stored_name,
                       in = options.in] {
      std::vector<at::Tensor> parameters;
      for (const std::string& parameter : held) parameters.push_back(changed(files, deltas, parameter, dtype));
      const at::Tensor out = joined_rows(parameters, rows);
      VMOBA_CHECK_INPUT(at::isfinite(out).all().item<bool>(),
                        "expected finite values in '{}' of '{}', found others; get the file again, or, where they are "
                        "beyond the range of {}, take --dtype fp32",
                        stored, in, at::toString(dtype));
      empty.look(stored, out);
      return out;
    };
    tensors.push_back({place.name, dtype, shape, read});
  }
  return tensors;
}

std::string convert_transformer(const ConvertOptions& options) {
  VMOBA_CHECK_INPUT(options.layout != "kohya",
                    "--layout: expected diffusers, original or comfyui for the transformer "
                    "'{}', found kohya, which is for LoRA files",
                    options.in);
  const bool file = options.out.ends_with(".safetensors");
  VMOBA_CHECK_INPUT(file || options.layout != "comfyui",
                    "expected the name of a .safetensors file for ComfyUI, found '{}'", options.out);
  const Source source = open_source(options);
  const Deltas deltas =
      read_deltas(options.loras, options.lora_strength, source.architecture, source.files, options.in);
  EmptyMatrices empty;
  const std::vector<TensorToWrite> tensors = converted_tensors(options, source, deltas, empty);
  if (file) {
    save_tensors(options.out, tensors, {{"format", "pt"}});
  } else {
    const auto config_json =
        options.layout == "original" ? source.architecture.original_config_json : source.architecture.config_json;
    save_transformer(options.out, config_json(source.config), tensors, options.shard_bytes);
  }
  empty.warn(options.in);
  const fs::path second = fs::path(options.in) / "transformer_2";
  return fmt::format(
      "{}: {} tensors, {} layout from {}{}{}", options.out, tensors.size(), options.layout, source.files.layout().title,
      deltas.empty() ? "" : fmt::format(", {} weights changed by LoRA", deltas.size()),
      fs::is_directory(second) ? "; convert the expert of low noise, " + second.string() + ", as well" : "");
}

}  // namespace

std::string convert_weights(const ConvertOptions& options) {
  const at::NoGradGuard no_grad;
  const LoraSource lora = fs::exists(options.in) ? LoraSource(options.in) : lora_source(options.in);
  check_out(options, lora.path);
  VMOBA_CHECK_INPUT(std::isfinite(options.lora_strength), "--lora-strength: expected a number, found {}",
                    options.lora_strength);
  VMOBA_CHECK_INPUT(options.lora_strength == 1 || !options.loras.empty() || is_lora(lora.path),
                    "--lora-strength: expected a LoRA (--lora, or a LoRA file to convert) beside it, found none");
  if (!is_lora(lora.path)) return convert_transformer(options);
  VMOBA_CHECK_INPUT(options.loras.empty(), "expected a transformer to merge --lora into, found the LoRA file '{}'",
                    options.in);
  return convert_lora(lora, options.out, options.layout, options.lora_strength,
                      output_dtype(options.dtype == "keep" ? "fp32" : options.dtype, at::kFloat), options.architecture);
}

}  // namespace vmoba::model
