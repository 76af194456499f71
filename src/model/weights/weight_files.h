// The safetensors or GGUF files of one model, in whichever of its layouts they are: found, mapped, and read under
// diffusers' names. Reading copies one tensor at a time and then gives its mapped pages back, so that loading needs
// little more memory than the result.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/work_progress.h"
#include "model/weights/name_table.h"
#include "model/weights/tensor_file.h"

namespace vmoba::model {

// The files of `path`: a safetensors or GGUF file, an index of shards, or a folder that holds either (also one level
// down, in transformer/). Throws Error(kInput) saying what was looked for.
std::vector<std::string> find_weight_files(const std::string& path);

// The names of all tensors in the files of `path`.
std::vector<std::string> stored_names(const std::string& path);

// Whether these names are of adapters: "...lora_A.weight", "...lora_down.weight" and their kin.
bool are_lora_names(const std::vector<std::string>& names);

class WeightFiles {
 public:
  struct Entry {
    size_t file = 0;
    std::string stored_name;
    std::string scale_name;    // stored name of the scale of an fp8 weight; "" without
    std::vector<RowRun> rows;  // of the stored tensor, which are the parameter; empty: all
    TensorInfo info = {};      // of the parameter: type and shape
  };

  // Maps the files and reads their headers. Where none of the layouts holds their names, they are taken as in the first
  // one, or, without any, as they are. LoRA files are refused: they hold no whole model.
  WeightFiles(const std::string& path, const std::vector<Layout>& layouts);

  const Layout& layout() const { return layout_; }
  // Folder of the files, where a config.json may lie.
  const std::string& folder() const { return folder_; }
  // By diffusers' name; a tensor that the layout does not know keeps its stored name.
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const TensorInfo& info(const std::string& name) const { return entries_.at(name).info; }

  // A new tensor: values times scale, in `dtype` on `device`.
  at::Tensor read(const std::string& name, at::ScalarType dtype, at::Device device) const;

  struct Stored {
    at::Tensor tensor, scale;             // scale undefined: 1
    std::optional<Packing> packing = {};  // of the rows of `tensor`
  };
  // A new tensor in the type of the file, and the scale in fp32, as scaled_weight (model/common/linear.h) takes it; the
  // bytes of a packed matrix, as unpacked (model/common/packed.h) takes them.
  Stored read_stored(const std::string& name, at::Device device) const;

 private:
  void add_file(size_t number, const std::string& path);
  void find_scales();
  void find_rows();
  const TensorInfo& stored_info(const Entry& entry) const {
    return files_[entry.file]->tensors().at(entry.stored_name);
  }
  at::Tensor scale_of(const Entry& entry) const;
  WorkProgress& progress() const;  // of the tensors read

  std::string folder_;
  Layout layout_;
  std::vector<std::unique_ptr<TensorFile>> files_;
  std::map<std::string, Entry> entries_;
  mutable std::unique_ptr<WorkProgress> progress_;
};

}  // namespace vmoba::model
