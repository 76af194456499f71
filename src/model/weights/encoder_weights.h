// The tensors of a pretrained encoder by name, with the checks that every encoder makes of them. Borrows the files.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/weights/weight_files.h"

namespace vmoba::model {

class EncoderWeights {
 public:
  // `path` is what the user gave under `key` ("text.weights"); both stand in messages. Names are looked for with
  // `prefix` before them.
  EncoderWeights(const WeightFiles& files, const std::string& path, const std::string& key,
                 const std::string& prefix = "");

  bool has(const std::string& name) const { return files_.entries().contains(prefix_ + name); }
  // All throw Error(kInput) naming key, tensor, expected and found.
  std::vector<int64_t> shape(const std::string& name) const;
  // Of two dimensions, none of them 0.
  std::vector<int64_t> matrix(const std::string& name) const;
  // A floating-point type and this shape.
  void expect(const std::string& name, const std::vector<int64_t>& wanted) const;
  at::Tensor read(const std::string& name, const std::vector<int64_t>& wanted, at::ScalarType dtype,
                  at::Device device) const;

  // "36 other tensors such as 'x.weight'", for a message that says what was expected.
  std::string other_tensors() const;
  const WeightFiles& files() const { return files_; }
  const std::string& path() const { return path_; }
  const std::string& key() const { return key_; }

 private:
  const WeightFiles& files_;
  std::string path_, key_, prefix_;
};

}  // namespace vmoba::model
