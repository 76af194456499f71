// The weight file of a pretrained codec: a diffusers folder (vae/ or the pipeline's folder above it), or one
// safetensors file in diffusers' names or in others that a function translates. Owns the mapping of the file.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/common/parameters.h"
#include "model/weights/safetensors.h"

namespace vmoba::model {

// Gives the tensor of this name, which has this shape. Layers ask for theirs once, when they are made.
using TensorSource = std::function<at::Tensor(const std::string& name, const std::vector<int64_t>& shape)>;

// Keeps names and shapes of the tensors that it is asked for in `specs`, and gives tensors without memory.
TensorSource recorder(std::vector<ParameterSpec>& specs);

// Names and shapes of all tensors that an encoder and a decoder of this configuration ask for.
template <typename Encoder, typename Decoder, typename Config>
std::vector<ParameterSpec> specs_of(const Config& config) {
  std::vector<ParameterSpec> specs;
  const TensorSource record = recorder(specs);
  Encoder(config, record);
  Decoder(config, record);
  return specs;
}

// What a kind of codec says about its files.
struct CodecFileKind {
  std::string type;                                   // codec.type
  std::string where_from;                             // where to get them, in messages
  std::string (*diffusers_name)(const std::string&);  // of a stored name
};

class CodecWeights {
 public:
  // Maps the file and reads headers. Throws Error(kInput) where there is none, saying where to get one.
  CodecWeights(const std::string& path, const CodecFileKind& kind);

  const std::string& path() const { return path_; }  // of the file
  // config.json beside diffusers' own file; "" without.
  std::string config_file() const;
  // What the file says beside its tensors.
  const std::map<std::string, std::string>& metadata() const { return file_.metadata(); }
  // By diffusers' name; empty where there is no such tensor.
  std::vector<int64_t> shape(const std::string& name) const;
  // Throws Error(kInput) naming missing, unknown and misshapen tensors where the file does not hold exactly these;
  // `what` says what they make. A map may be stored as a convolution of 1x1x1 positions.
  void check(const std::vector<ParameterSpec>& specs, const std::string& what) const;
  // Copies each tensor that it is asked for; borrows this object.
  TensorSource load(at::ScalarType dtype, at::Device device) const;

 private:
  std::string path_;
  SafetensorsFile file_;
  std::map<std::string, std::string> stored_;  // diffusers' name -> name in the file
};

}  // namespace vmoba::model
