#include "model/weights/encoder_weights.h"

#include <fmt/ranges.h>

#include "core/check.h"

namespace vmoba::model {

EncoderWeights::EncoderWeights(const WeightFiles& files, const std::string& path, const std::string& key,
                               const std::string& prefix)
    : files_(files), path_(path), key_(key), prefix_(prefix) {}

std::vector<int64_t> EncoderWeights::shape(const std::string& name) const {
  VMOBA_CHECK_INPUT(has(name), "{}: expected a tensor '{}' at '{}', found none", key_, prefix_ + name, path_);
  return files_.info(prefix_ + name).shape;
}

std::vector<int64_t> EncoderWeights::matrix(const std::string& name) const {
  const std::vector<int64_t> found = shape(name);
  VMOBA_CHECK_INPUT(found.size() == 2 && found[0] > 0 && found[1] > 0,
                    "{}: expected a matrix '{}' at '{}', found shape [{}]", key_, prefix_ + name, path_,
                    fmt::join(found, ", "));
  return found;
}

void EncoderWeights::expect(const std::string& name, const std::vector<int64_t>& wanted) const {
  const std::vector<int64_t> found = shape(name);
  const at::ScalarType type = files_.info(prefix_ + name).dtype;
  VMOBA_CHECK_INPUT(found == wanted && at::isFloatingType(type), "{}: expected '{}' of shape {} at '{}', found {} {}",
                    key_, prefix_ + name, fmt::join(wanted, "x"), path_, c10::toString(type), fmt::join(found, "x"));
}

at::Tensor EncoderWeights::read(const std::string& name, const std::vector<int64_t>& wanted, at::ScalarType dtype,
                                at::Device device) const {
  expect(name, wanted);
  return files_.read(prefix_ + name, dtype, device);
}

std::string EncoderWeights::other_tensors() const {
  const auto& entries = files_.entries();
  return fmt::format("{} other tensors such as '{}'", entries.size(), entries.empty() ? "" : entries.begin()->first);
}

}  // namespace vmoba::model
