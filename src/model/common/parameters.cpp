#include "model/common/parameters.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/parallel.h"
#include "core/random.h"
#include "model/kernels/uniform_draw.h"

namespace vmoba::model {
namespace {

// Values are drawn in chunks with a stream index each, so that threads can share a tensor.
using draws::kChunkValues;

double draw(RandomStream& random, const Init& init) {
  if (init.kind == Init::Kind::kNormal) return init.scale * random.normal();
  return init.scale * (2 * random.uniform() - 1);
}

// The values of draw() in each chunk's stream, drawn on a GPU.
void draw_uniform_there(const ParameterSpec& spec, uint64_t seed, const std::string& stream, const at::Tensor& out) {
  const c10::cuda::CUDAGuard guard(out.device());
  const auto key = stream_key(seed, stream);
  const draws::Uniform call{{key[0], key[1]}, spec.init.scale, out.numel(), out.mutable_data_ptr<float>()};
  const cudaError_t error = draws::draw_uniform(call, c10::cuda::getCurrentCUDAStream(out.device().index()).stream());
  VMOBA_CHECK(error == cudaSuccess, "{}: expected the GPU to draw its values, found: {}", spec.name,
              cudaGetErrorString(error));
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
  const std::string stream = "init/" + spec.name;
  const auto there = at::TensorOptions(device).dtype(at::kFloat);
  if (spec.init.kind == Init::Kind::kConstant) return at::full(spec.shape, spec.init.scale, there).requires_grad_(true);
  if (device.is_cuda() && spec.init.kind == Init::Kind::kUniform) {
    const at::Tensor drawn = at::empty(spec.shape, there);
    draw_uniform_there(spec, seed, stream, drawn);
    return drawn.requires_grad_(true);
  }
  at::Tensor tensor = at::empty(spec.shape, at::kFloat);
  float* values = tensor.data_ptr<float>();
  const int64_t count = tensor.numel();
  for_each_part((count + kChunkValues - 1) / kChunkValues, at::get_num_threads(), [&](int64_t chunk) {
    RandomStream random(seed, stream, uint64_t(chunk));
    const int64_t end = std::min(count, (chunk + 1) * kChunkValues);
    for (int64_t i = chunk * kChunkValues; i < end; ++i) values[i] = float(draw(random, spec.init));
  });
  return tensor.to(device).requires_grad_(true);
}

}  // namespace vmoba::model
