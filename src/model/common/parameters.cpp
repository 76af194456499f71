#include "model/common/parameters.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "core/random.h"

namespace vmoba::model {
namespace {

// Values are drawn in chunks with a stream index each, so that threads can share a tensor.
constexpr int64_t kChunkValues = 1 << 16;

double draw(RandomStream& random, const Init& init) {
  switch (init.kind) {
    case Init::Kind::kConstant:
      return init.scale;
    case Init::Kind::kNormal:
      return init.scale * random.normal();
    case Init::Kind::kUniform:
      return init.scale * (2 * random.uniform() - 1);
  }
  return 0;
}

}  // namespace

Init constant(double value) {
  return {Init::Kind::kConstant, value};
}
Init normal(double deviation) {
  return {Init::Kind::kNormal, deviation};
}
Init uniform(double bound) {
  return {Init::Kind::kUniform, bound};
}
Init xavier_uniform(int64_t fan_in, int64_t fan_out) {
  return uniform(std::sqrt(6.0 / double(fan_in + fan_out)));
}

int64_t ParameterSpec::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

at::Tensor draw_parameter(const ParameterSpec& spec, uint64_t seed, at::Device device) {
  at::Tensor tensor = at::empty(spec.shape, at::kFloat);
  float* values = tensor.data_ptr<float>();
  const int64_t count = tensor.numel();
  const std::string stream = "init/" + spec.name;
  for_each_part((count + kChunkValues - 1) / kChunkValues, at::get_num_threads(), [&](int64_t chunk) {
    RandomStream random(seed, stream, uint64_t(chunk));
    const int64_t end = std::min(count, (chunk + 1) * kChunkValues);
    for (int64_t i = chunk * kChunkValues; i < end; ++i) values[i] = float(draw(random, spec.init));
  });
  return tensor.to(device).requires_grad_(true);
}

}  // namespace vmoba::model
