// torch.ops.vmoba.attention against the library's own call: the same bits from C++ and from Python (ops.py), gradients
// included. The examples run where they are used: in Python.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string_view>

#include "attention/attention.h"
#include "attention/vmoba/config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::attention;
namespace fs = std::filesystem;

namespace {

struct Call {
  std::string name, options;
  std::function<void(AttentionConfig&)> configure;  // the same as `options`, by hand
  int64_t layer;
  Grid grid;
  int64_t text_tokens;
  std::vector<int64_t> text_lengths = {};
  at::ScalarType type = at::kFloat;
};

const std::vector<Call>& calls() {
  static const auto vmoba = [](AttentionConfig& c) -> VmobaConfig& { return c.part<VmobaConfig>(); };
  static const std::vector<Call> table = {
      {"defaults", "", [](AttentionConfig&) {}, 0, {6, 4, 5}, 0},
      {"json",
       R"({"temporal_chunk": 2, "tau": 0.4, "pool": "query_head"})",
       [](AttentionConfig& c) {
         vmoba(c).temporal_chunk = 2;
         vmoba(c).tau = 0.4;
         vmoba(c).pool = Pool::kQueryHead;
       },
       0,
       {5, 3, 4},
       0,
       {},
       at::kDouble},
      {"yaml_second_layer",
       "{layer: 1, spatial_chunk: [2, 3], select: topk, spatial_topk: 2, pool: query_head}",
       [](AttentionConfig& c) {
         vmoba(c).spatial_chunk = {2, 3};
         vmoba(c).select = SelectMode::kTopk;
         vmoba(c).spatial_topk = 2;
         vmoba(c).pool = Pool::kQueryHead;
       },
       1,
       {3, 6, 7},
       0,
       {},
       at::kBFloat16},
      {"text",
       "temporal_chunk: 1\ntau: 0.3\n",
       [](AttentionConfig& c) {
         vmoba(c).temporal_chunk = 1;
         vmoba(c).tau = 0.3;
       },
       0,
       {4, 3, 3},
       5},
      {"ragged_text",
       "{temporal_chunk: 1, tau: 0.3}",
       [](AttentionConfig& c) {
         vmoba(c).temporal_chunk = 1;
         vmoba(c).tau = 0.3;
       },
       0,
       {4, 3, 3},
       5,
       {0, 4},
       at::kDouble},
      {"cubes",
       "{preset: cubes}",
       [](AttentionConfig& c) {
         vmoba(c).partitions = {"spatiotemporal"};
         vmoba(c).spatiotemporal_chunk = {4, 4, 4};
         vmoba(c).select = SelectMode::kTopk;
         vmoba(c).pool = Pool::kQueryHead;
         vmoba(c).density = 0.2;
         vmoba(c).query_tile = QueryTile::kBlock;
       },
       0,
       {8, 8, 9},
       0},
      {"remainder",
       "{temporal_chunk: 1, tau: 0.2, remainder: one_softmax}",
       [](AttentionConfig& c) {
         vmoba(c).temporal_chunk = 1;
         vmoba(c).tau = 0.2;
         vmoba(c).remainder = Remainder::kOneSoftmax;
       },
       0,
       {5, 3, 3},
       2,
       {},
       at::kDouble},
      {"full", "{backend: full}", [](AttentionConfig& c) { c.backend = "full"; }, 3, {3, 3, 3}, 2, {2, 1}},
      {"dense_layer", "{dense_layers: 2, layer: 1}", [](AttentionConfig& c) { c.dense_layers = 2; }, 1, {4, 3, 3}, 0},
  };
  return table;
}

std::vector<at::Tensor> inputs_of(const Call& call) {
  at::manual_seed(7);
  std::vector<at::Tensor> out;  // q, k, v and the weights of the loss
  for (int i = 0; i < 4; ++i)
    out.push_back(at::randn({2, call.grid.tokens() + call.text_tokens, 3, 8}, at::kDouble).to(call.type));
  return out;
}

using Attend = std::function<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>;

// The output and the gradients of q, k and v.
std::vector<at::Tensor> results(const std::vector<at::Tensor>& in, const Attend& attend) {
  std::vector<at::Tensor> x;
  for (size_t i = 0; i < 3; ++i) x.push_back(in[i].clone().requires_grad_());
  const at::Tensor out = attend(x[0], x[1], x[2]);
  std::vector<at::Tensor> all = {out.detach()};
  for (const at::Tensor& gradient : torch::autograd::grad({out}, x, {in[3]})) all.push_back(gradient);
  return all;
}

std::vector<at::Tensor> of_library(const Call& call) {
  AttentionConfig config;
  call.configure(config);
  const LayerAttention layer = layer_attention(config, call.layer, false);
  return results(inputs_of(call), [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return self_attention(q, k, v, call.grid, call.text_tokens, layer, nullptr, call.text_lengths);
  });
}

// Loads the library as any C++ program would.
at::Tensor by_dispatcher(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const std::vector<int64_t>& grid, const std::vector<int64_t>& lengths,
                         std::string_view options) {
  static void* const library = dlopen(VMOBA_OPS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef,
                               c10::SymIntArrayRef, std::string_view);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("vmoba::attention", "").typed<Signature>();
  return op.call(q, k, v, c10::fromIntArrayRefSlow(grid), c10::fromIntArrayRefSlow(lengths), options);
}

at::Tensor by_dispatcher(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return by_dispatcher(q, k, v, {call.grid.t, call.grid.h, call.grid.w}, call.text_lengths, call.options);
}

std::string python(const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {test::python()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const auto result =
      test::run_process(command, {"OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1", "VMOBA_OPS=" VMOBA_OPS_LIBRARY,
                                  "PYTHONPATH=" + test::source_dir() + "/examples"});
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result.output;
}

}  // namespace

TEST_CASE("the operation gives the bits of the library's call, gradients included") {
  for (const Call& call : calls()) {
    INFO(call.name);
    const std::vector<at::Tensor> in = inputs_of(call), expected = of_library(call);
    const std::vector<at::Tensor> found = results(
        in,
        [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) { return by_dispatcher(call, q, k, v); });
    for (size_t i = 0; i < expected.size(); ++i) {
      INFO("result " << i);
      CHECK(at::equal(found[i], expected[i]));
    }
    const c10::InferenceMode inference;
    CHECK(at::equal(by_dispatcher(call, in[0], in[1], in[2]), expected[0]));
  }
}

TEST_CASE("options that cannot be are errors that name the key") {
  const Call& call = calls().front();
  const std::vector<at::Tensor> in = inputs_of(call);
  const auto message = [&](const std::string& options, std::vector<int64_t> grid = {6, 4, 5},
                           const std::vector<int64_t>& lengths = {}) {
    try {
      by_dispatcher(in[0], in[1], in[2], grid, lengths, options);
    } catch (const std::exception& error) {  // thrown inside the loaded library
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(test::contains(message("{tua: 0.3}"), "tua"));
  CHECK(test::contains(message("{tua: 0.3}"), "tau"));
  CHECK(test::contains(message("{tau: -1}"), "tau"));
  CHECK(test::contains(message("{dense_steps: 3}"), "dense_steps"));
  CHECK(test::contains(message("{dense_steps: 3}"), "backend: full"));
  CHECK(test::contains(message("{layer: -1}"), "layer"));
  CHECK(test::contains(message("{implementation: native}"), "reference"));
  CHECK(test::contains(message("0.3"), "options"));
  CHECK(test::contains(message("", {6, 4}), "[frames, height, width]"));
  CHECK(test::contains(message("", {6, 4, 6}), "144 tokens"));
  CHECK(test::contains(message("", {6, 4, 5}, {1, 0}), "text lengths"));
}

TEST_CASE("Python gives the same bits, and torch's own checks hold") {
  const test::TemporaryFolder folder;
  at::set_num_threads(1);  // as Python below: torch's own full attention adds in an order that depends on threads
  for (const Call& call : calls()) {
    std::vector<c10::IValue> tensors;
    for (const std::vector<at::Tensor>& some : {inputs_of(call), of_library(call)})
      tensors.insert(tensors.end(), some.begin(), some.end());
    const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(tensors)));
    std::ofstream(folder.path() + "/" + call.name + ".pt", std::ios::binary)
        .write(bytes.data(), std::streamsize(bytes.size()));
    std::ofstream(folder.path() + "/" + call.name + ".options") << call.options;
    std::ofstream sizes(folder.path() + "/" + call.name + ".sizes");
    sizes << call.grid.t << ' ' << call.grid.h << ' ' << call.grid.w;
    for (const int64_t length : call.text_lengths) sizes << ' ' << length;
  }
  const std::string said = python({test::source_dir() + "/tests/ops/ops.py", folder.path()});

  for (const char* check : {"gradcheck", "opcheck", "compile", "dynamic shapes", "export"})
    CHECK(test::contains(said, std::string(check) + " holds"));
}

TEST_CASE("the examples: diffusers' Wan, ComfyUI's override, the comparison") {
  const std::string said = python({test::source_dir() + "/tests/ops/examples.py"});
  for (const char* check : {"diffusers with all blocks", "diffusers sparse", "comfyui", "compiled"})
    CHECK(test::contains(said, std::string(check) + " holds"));
  const std::string compared = python({test::source_dir() + "/examples/compare.py", "--small"});
  CHECK(test::contains(compared, "all blocks, spatiotemporal: full attention"));
}
