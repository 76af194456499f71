#include "apps/bench/golden_check.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>

#include "core/check.h"
#include "model/weights/safetensors.h"

namespace vmoba::bench {
namespace {

using attention::LayerAttention;
using attention::Partition;
using attention::Pool;
using attention::SelectMode;
using Metadata = std::map<std::string, std::string>;

constexpr double kExactLimit = 1e-5;
constexpr double kHalfUlpBf16 = 1.0 / 512;

const std::string& value(const Metadata& metadata, const std::string& file, const std::string& key) {
  const auto found = metadata.find(key);
  VMOBA_CHECK_INPUT(found != metadata.end(), "expected metadata '{}' in {}, found none", key, file);
  return found->second;
}

template <typename Number>
Number parse_number(const std::string& text, const std::string& file, const std::string& key) {
  Number number{};
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  VMOBA_CHECK_INPUT(result.ec == std::errc() && result.ptr == text.data() + text.size(),
                    "expected a number as metadata '{}' of {}, found '{}'", key, file, text);
  return number;
}

std::vector<int64_t> parse_list(const std::string& text, char separator, const std::string& file,
                                const std::string& key) {
  std::vector<int64_t> numbers;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    numbers.push_back(parse_number<int64_t>(text.substr(begin, end - begin), file, key));
    begin = end + 1;
  }
  return numbers;
}

template <typename Enum>
Enum parse_word(const std::map<std::string, Enum>& words, const Metadata& metadata, const std::string& file,
                const std::string& key) {
  const std::string& text = value(metadata, file, key);
  const auto found = words.find(text);
  VMOBA_CHECK_INPUT(found != words.end(), "expected a known {} in {}, found '{}'", key, file, text);
  return found->second;
}

const std::map<std::string, Partition> kPartitions = {{"temporal", Partition::kTemporal},
                                                      {"spatial", Partition::kSpatial},
                                                      {"spatiotemporal", Partition::kSpatiotemporal}};
const std::map<std::string, SelectMode> kSelectModes = {{"threshold", SelectMode::kThreshold},
                                                        {"topk", SelectMode::kTopk}};
const std::map<std::string, Pool> kPools = {{"query_head", Pool::kQueryHead},
                                            {"block", Pool::kBlock},
                                            {"head_global", Pool::kHeadGlobal},
                                            {"overall", Pool::kOverall}};

LayerAttention parse_layer(const Metadata& metadata, const std::string& file) {
  LayerAttention layer;
  layer.sparse = true;
  layer.partition = parse_word(kPartitions, metadata, file, "partition");
  layer.select = parse_word(kSelectModes, metadata, file, "select_mode");
  layer.pool = parse_word(kPools, metadata, file, "pool");
  if (layer.select == SelectMode::kThreshold) {
    layer.tau = parse_number<double>(value(metadata, file, "tau"), file, "tau");
  } else {
    layer.topk = parse_number<int64_t>(value(metadata, file, "topk"), file, "topk");
  }
  const std::vector<int64_t> chunk = parse_list(value(metadata, file, "chunk"), ',', file, "chunk");
  const size_t numbers = layer.partition == Partition::kTemporal ? 1 : layer.partition == Partition::kSpatial ? 2 : 3;
  VMOBA_CHECK_INPUT(chunk.size() == numbers, "expected {} numbers as metadata 'chunk' of {}, found {}", numbers, file,
                    chunk.size());
  if (numbers == 1) layer.chunk = {chunk[0], 0, 0};
  if (numbers == 2) layer.chunk = {0, chunk[0], chunk[1]};
  if (numbers == 3) layer.chunk = {chunk[0], chunk[1], chunk[2]};
  return layer;
}

at::Tensor read_tensor(const model::SafetensorsFile& file, const std::string& path, const std::string& name,
                       const std::vector<int64_t>& shape) {
  const at::Tensor tensor = file.tensor(name);
  VMOBA_CHECK_INPUT(tensor.sizes() == at::IntArrayRef(shape), "expected '{}' of {} with shape {}, found {}", name, path,
                    c10::str(at::IntArrayRef(shape)), c10::str(tensor.sizes()));
  return tensor.clone();
}

// Plain masked attention in bf16 with its gradients: the measure of what the format itself costs.
std::map<std::string, at::Tensor> plain_bf16(const GoldenCase& golden, const attention::PartitionTables& tables,
                                             at::Device device) {
  const at::Tensor position_S = at::empty_like(tables.token_of_S, at::kLong);
  position_S.index_copy_(0, tables.token_of_S.to(at::kLong), at::arange(tables.tokens, position_S.options()));
  const at::Tensor block_S = tables.block_of_S.to(at::kLong).index_select(0, position_S);
  const int64_t tokens = golden.q_BZND.size(1);
  at::Tensor allowed_BNZZ = at::ones({golden.q_BZND.size(0), golden.q_BZND.size(2), tokens, tokens},
                                     golden.mask_BNCS.options().device(device));
  allowed_BNZZ.slice(2, 0, tables.tokens)
      .slice(3, 0, tables.tokens)
      .copy_(golden.mask_BNCS.to(device).index_select(3, position_S).index_select(2, block_S).transpose(2, 3));

  const auto leaf = [&](const at::Tensor& x) { return x.to(device, at::kBFloat16, false, true).requires_grad_(); };
  const at::Tensor q = leaf(golden.q_BZND), k = leaf(golden.k_BZND), v = leaf(golden.v_BZND);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor scores = at::matmul(q.transpose(1, 2), k.permute({0, 2, 3, 1})) * scale;
  const at::Tensor p =
      scores.masked_fill(allowed_BNZZ.logical_not(), -std::numeric_limits<double>::infinity()).softmax(-1);
  const at::Tensor out = at::matmul(p, v.transpose(1, 2)).transpose(1, 2);
  const auto grads = torch::autograd::grad({out}, {q, k, v}, {golden.dout_BZND.to(device)});
  return {{"out", out.detach()}, {"dq", grads[0]}, {"dk", grads[1]}, {"dv", grads[2]}};
}

}  // namespace

std::vector<std::string> golden_files(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  VMOBA_CHECK_INPUT(!error, "expected a folder of golden vectors, found '{}' ({})", folder, error.message());
  VMOBA_CHECK_INPUT(!files.empty(), "expected .safetensors files in '{}', found none", folder);
  std::sort(files.begin(), files.end());
  return files;
}

GoldenCase load_golden(const std::string& path) {
  const model::SafetensorsFile file(path);
  const Metadata& metadata = file.metadata();
  const auto number = [&](const char* key) { return parse_number<int64_t>(value(metadata, path, key), path, key); };

  GoldenCase golden;
  golden.name = std::filesystem::path(path).stem().string();
  const std::vector<int64_t> grid = parse_list(value(metadata, path, "grid"), 'x', path, "grid");
  VMOBA_CHECK_INPUT(grid.size() == 3, "expected TxHxW as metadata 'grid' of {}, found {} numbers", path, grid.size());
  golden.grid = {grid[0], grid[1], grid[2]};
  golden.text_tokens = number("text_tokens");
  golden.layer = parse_layer(metadata, path);
  const int64_t blocks = attention::block_count(golden.grid, golden.layer);
  VMOBA_CHECK_INPUT(blocks == number("blocks"), "expected {} blocks as metadata 'blocks' of {}, found {}", blocks, path,
                    number("blocks"));

  const int64_t batch = number("batch"), heads = number("heads"), tokens = golden.grid.tokens() + golden.text_tokens;
  const std::vector<int64_t> shape = {batch, tokens, heads, number("head_dim")};
  golden.q_BZND = read_tensor(file, path, "q", shape);
  golden.k_BZND = read_tensor(file, path, "k", shape);
  golden.v_BZND = read_tensor(file, path, "v", shape);
  golden.dout_BZND = read_tensor(file, path, "dout", shape);
  for (const char* name : {"out", "dq", "dk", "dv"}) golden.expected[name] = read_tensor(file, path, name, shape);
  golden.expected["lse"] = read_tensor(file, path, "lse", {batch, heads, tokens});
  golden.mask_BNCS =
      read_tensor(file, path, "mask", {batch, blocks, heads, golden.grid.tokens()}).transpose(1, 2).to(at::kBool);
  return golden;
}

bool GoldenResult::passed() const {
  // Written so that NaN fails.
  const auto within = [&](const auto& entry) { return entry.second <= limit.at(entry.first); };
  return mask_differences == 0 && std::all_of(error.begin(), error.end(), within);
}

double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor a = found.detach().to(at::kCPU, at::kDouble), b = expected.to(at::kCPU, at::kDouble);
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

GoldenResult check_golden(const GoldenCase& golden, const std::string& implementation, at::ScalarType dtype,
                          at::Device device) {
  const auto input = [&](const at::Tensor& x) { return x.to(device, dtype); };
  const at::Tensor q = input(golden.q_BZND), k = input(golden.k_BZND), v = input(golden.v_BZND);
  const attention::SparseBackend& backend = attention::sparse_backend(implementation, q);
  const auto problem = attention::make_sparse_problem(q, golden.grid, golden.text_tokens, golden.layer);
  const attention::SparseForward forward = backend.forward(problem, q, k, v);
  const attention::SparseGradients d = backend.backward(problem, q, k, v, forward, input(golden.dout_BZND));
  const at::Tensor mask = backend.mask_BNCS(problem, forward.selection).cpu();

  GoldenResult result;
  result.name = golden.name;
  result.mask_differences = (mask != golden.mask_BNCS).sum().item<int64_t>();
  const std::map<std::string, at::Tensor> found = {
      {"out", forward.out_BZND}, {"lse", forward.lse_BNZ}, {"dq", d.dq_BZND}, {"dk", d.dk_BZND}, {"dv", d.dv_BZND}};
  for (const auto& [name, tensor] : found) {
    result.error[name] = relative_error(tensor, golden.expected.at(name));
    result.limit[name] = kExactLimit;
  }
  if (dtype == at::kBFloat16)
    for (const auto& [name, tensor] : plain_bf16(golden, *problem.tables, device))
      result.limit[name] = 2 * relative_error(tensor, golden.expected.at(name)) + kHalfUlpBf16;
  return result;
}

}  // namespace vmoba::bench
