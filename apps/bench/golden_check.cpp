#include "apps/bench/golden_check.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>

#include "attention/dispatch.h"
#include "attention/vmoba/vmoba.h"
#include "core/check.h"
#include "model/weights/safetensors.h"

namespace vmoba::bench {
namespace {

using attention::LayerAttention;
using attention::Partition;
using attention::SelectMode;
using attention::VmobaRule;
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
Enum parse_word(const Metadata& metadata, const std::string& file, const std::string& key) {
  const std::string& text = value(metadata, file, key);
  const std::vector<std::string> words = choice_words<Enum>();
  VMOBA_CHECK_INPUT(std::find(words.begin(), words.end(), text) != words.end(), "expected a known {} in {}, found '{}'",
                    key, file, text);
  return choice_value<Enum>(text);
}

// A chunk inside blocks; false where the file has none.
bool parse_cut(const Metadata& metadata, const std::string& file, const std::string& key, std::array<int64_t, 3>& out) {
  const auto found = metadata.find(key);
  if (found == metadata.end() || found->second.empty()) return false;
  const std::vector<int64_t> extents = parse_list(found->second, ',', file, key);
  VMOBA_CHECK_INPUT(extents.size() == 3, "expected 3 numbers as metadata '{}' of {}, found {}", key, file,
                    extents.size());
  std::copy(extents.begin(), extents.end(), out.begin());
  return true;
}

LayerAttention parse_layer(const Metadata& metadata, const std::string& file) {
  LayerAttention layer;
  layer.method = &attention::vmoba_method();
  layer.partition = parse_word<Partition>(metadata, file, "partition");
  VmobaRule rule;
  rule.select = parse_word<SelectMode>(metadata, file, "select_mode");
  rule.pool = parse_word<attention::Pool>(metadata, file, "pool");
  if (rule.select == SelectMode::kThreshold) {
    rule.tau = parse_number<double>(value(metadata, file, "tau"), file, "tau");
  } else {
    rule.topk = parse_number<int64_t>(value(metadata, file, "topk"), file, "topk");
  }
  const auto tile = metadata.find("query_tile");
  if (tile != metadata.end()) rule.query_tile = parse_number<int64_t>(tile->second, file, "query_tile");
  if (parse_cut(metadata, file, "gate_block", rule.gate_block)) rule.score = attention::Score::kShare;
  if (parse_cut(metadata, file, "remainder_block", rule.remainder_block)) {
    rule.remainder = attention::Remainder::kOneSoftmax;
    rule.learns_beta = true;
  }
  layer.rule = rule;
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

// Which (query, key) pairs attend each other, original token order: bool [B, N, Z, Z]; text sees and is seen by all.
at::Tensor allowed_pairs(const at::Tensor& mask_BNCS, const attention::PartitionTables& tables, int64_t tokens) {
  const at::Tensor position_S = at::empty_like(tables.token_of_S, at::kLong);
  position_S.index_copy_(0, tables.token_of_S.to(at::kLong), at::arange(tables.tokens, position_S.options()));
  const at::Tensor block_S = tables.block_of_S.to(at::kLong).index_select(0, position_S);
  at::Tensor allowed_BNZZ = at::ones({mask_BNCS.size(0), mask_BNCS.size(1), tokens, tokens}, mask_BNCS.options());
  allowed_BNZZ.slice(2, 0, tables.tokens)
      .slice(3, 0, tables.tokens)
      .copy_(mask_BNCS.index_select(3, position_S).index_select(2, block_S).transpose(2, 3));
  return allowed_BNZZ;
}

// Where coordinate `x` of `length` lies: which chunk of it, how far from its start, and how long that is.
struct Place {
  int64_t chunk, offset, length;
};
Place place_of(int64_t x, int64_t length, int64_t chunk) {
  const int64_t chunks = chunk == 0 ? 1 : (length + chunk - 1) / chunk;
  const int64_t longer = length % chunks, size = length / chunks;  // the first `longer` chunks have one more
  if (x < longer * (size + 1)) return {x / (size + 1), x % (size + 1), size + 1};
  const int64_t rest = x - longer * (size + 1);
  return {longer + rest / size, rest % size, size};
}

// The keys that stand for what a query does not attend, from the definition: each is the mean of some tokens' keys.
struct MeanKeys {
  at::Tensor share_MZ;      // fp64: what each token adds to each mean
  at::Tensor tokens_M;      // fp64
  at::Tensor allowed_BNZM;  // bool: the query does not attend the mean's block
  at::Tensor beta_N;        // fp32; undefined: 0
  bool rounded = false;     // keys and values to bf16, as tensor cores take them
};

MeanKeys mean_keys(const attention::Grid& grid, const LayerAttention& layer, const at::Tensor& allowed_BNZZ,
                   const at::Tensor& beta_N) {
  const auto& cut = attention::vmoba_rule(layer).remainder_block;
  std::map<std::array<int64_t, 6>, std::vector<int64_t>> tokens_of;
  for (int64_t token = 0; token < grid.tokens(); ++token) {
    const int64_t at[3] = {token / (grid.h * grid.w), token / grid.w % grid.h, token % grid.w};
    const int64_t lengths[3] = {grid.t, grid.h, grid.w};
    std::array<int64_t, 6> key{};
    for (size_t i = 0; i < 3; ++i) {
      const Place block = place_of(at[i], lengths[i], layer.chunk[i]);
      key[i] = block.chunk;
      key[3 + i] = place_of(block.offset, block.length, cut[i]).chunk;
    }
    tokens_of[key].push_back(token);
  }
  const int64_t tokens = allowed_BNZZ.size(3), count = int64_t(tokens_of.size());
  MeanKeys means{at::zeros({count, tokens}, at::kDouble), at::empty({count}, at::kDouble),
                 at::zeros({allowed_BNZZ.size(0), allowed_BNZZ.size(1), tokens, count}, at::kBool), beta_N};
  int64_t m = 0;
  for (const auto& [key, members] : tokens_of) {
    means.share_MZ[m].index_fill_(0, at::tensor(members), 1.0 / double(members.size()));
    means.tokens_M[m] = double(members.size());
    // A token of the block tells who attends it. Text rows attend every token.
    means.allowed_BNZM.select(3, m++).copy_(allowed_BNZZ.select(3, members[0]).logical_not());
  }
  return means;
}

std::optional<MeanKeys> remainder_of(const attention::Grid& grid, const LayerAttention& layer,
                                     const at::Tensor& allowed_BNZZ, const at::Tensor& beta_N) {
  if (attention::vmoba_rule(layer).remainder == attention::Remainder::kNone) return {};
  return mean_keys(grid, layer, allowed_BNZZ, beta_N);
}

struct Inputs {
  at::Tensor q_BZND, k_BZND, v_BZND, dout_BZND;
  at::Tensor read_BZ11 = {};  // rows of the result that are not zeros; undefined: all
};

// Plain masked attention with its gradients, in `dtype` on `device`; `means` may be null.
std::map<std::string, at::Tensor> plain_attention(const Inputs& in, const at::Tensor& allowed_BNZZ,
                                                  const MeanKeys* means, at::ScalarType dtype, at::Device device) {
  const auto leaf = [&](const at::Tensor& x) { return x.detach().to(device, dtype, false, true).requires_grad_(); };
  const at::Tensor q = leaf(in.q_BZND), k = leaf(in.k_BZND), v = leaf(in.v_BZND);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  at::Tensor k_BNKD = k.transpose(1, 2), v_BNKD = v.transpose(1, 2), allowed_BNZK = allowed_BNZZ, bias, beta;
  if (means != nullptr) {
    const at::Tensor share_MZ = means->share_MZ.to(device, dtype);
    const auto mean = [&](const at::Tensor& x_BNKD) {
      const at::Tensor mean_BNMD = at::matmul(share_MZ, x_BNKD);
      return means->rounded ? mean_BNMD.to(at::kBFloat16).to(dtype) : mean_BNMD;
    };
    k_BNKD = at::cat({k_BNKD, mean(k_BNKD)}, 2);
    v_BNKD = at::cat({v_BNKD, mean(v_BNKD)}, 2);
    allowed_BNZK = at::cat({allowed_BNZZ, means->allowed_BNZM}, 3);
    bias = means->tokens_M.log().to(device, dtype);
    if (means->beta_N.defined()) {
      beta = leaf(means->beta_N);
      bias = bias + beta.view({-1, 1, 1});
    } else {
      bias = bias.view({1, 1, -1});
    }
    bias = at::constant_pad_nd(bias, {k.size(1), 0});
  }
  at::Tensor scores = at::matmul(q.transpose(1, 2), k_BNKD.transpose(2, 3)) * scale;
  if (bias.defined()) scores = scores + bias;
  scores.masked_fill_(allowed_BNZK.to(device).logical_not(), -std::numeric_limits<double>::infinity());
  const at::Tensor p = scores.softmax(-1), out = at::matmul(p, v_BNKD).transpose(1, 2);
  std::vector<at::Tensor> leaves = {q, k, v};
  if (beta.defined()) leaves.push_back(beta);
  const auto grads = torch::autograd::grad({out}, leaves, {in.dout_BZND.to(device, dtype)});
  const at::Tensor rows = in.read_BZ11.defined() ? out.detach() * in.read_BZ11.to(device) : out.detach();
  std::map<std::string, at::Tensor> results = {{"out", rows}, {"dq", grads[0]}, {"dk", grads[1]}, {"dv", grads[2]}};
  results["lse"] = scores.detach().logsumexp(-1);
  if (beta.defined()) results["dbeta"] = grads[3];
  return results;
}

// The same through self_attention().
std::map<std::string, at::Tensor> layer_attention_of(const AttentionCase& c, const Inputs& in,
                                                     const LayerAttention& layer, at::ScalarType dtype,
                                                     at::Device device) {
  const auto leaf = [&](const at::Tensor& x) { return x.detach().to(device, dtype, false, true).requires_grad_(); };
  const at::Tensor q = leaf(in.q_BZND), k = leaf(in.k_BZND), v = leaf(in.v_BZND);
  const at::Tensor out = attention::self_attention(q, k, v, c.grid, c.text_tokens, layer, nullptr, c.text_lengths);
  const auto grads = torch::autograd::grad({out}, {q, k, v}, {in.dout_BZND.to(device, dtype)});
  return {{"out", out.detach()}, {"dq", grads[0]}, {"dk", grads[1]}, {"dv", grads[2]}};
}

// Forbids pairs with text beyond a sample's length. Its rows, which nobody reads, attend themselves.
void forbid_padding(const AttentionCase& c, at::Tensor& allowed_BNZZ) {
  for (size_t b = 0; b < c.text_lengths.size(); ++b) {
    const int64_t end = c.grid.tokens() + c.text_lengths[b];
    at::Tensor of_sample = allowed_BNZZ[int64_t(b)];
    of_sample.slice(2, end).fill_(false);
    of_sample.slice(1, end).fill_(false);
    of_sample.diagonal(0, 1, 2).fill_(true);
  }
}

// Which of a case's rows count: bool [B, Z, 1, 1].
at::Tensor read_rows(const AttentionCase& c) {
  at::Tensor rows = at::ones({c.batch, c.tokens(), 1, 1}, at::kBool);
  for (size_t b = 0; b < c.text_lengths.size(); ++b)
    rows[int64_t(b)].slice(0, c.grid.tokens() + c.text_lengths[b]).fill_(false);
  return rows;
}

// The limits of bf16 results: what the format itself costs, from plain attention in bf16. The log-sum-exp is kept in
// fp32: it may be off by what rounded means cost, besides.
void allow_bf16(const Inputs& in, const at::Tensor& allowed_BNZZ, const MeanKeys* means,
                const std::map<std::string, at::Tensor>& expected, at::Device device, GoldenResult& result) {
  for (const auto& [name, tensor] : plain_attention(in, allowed_BNZZ, means, at::kBFloat16, device))
    if (name != "lse") result.limit[name] = 2 * relative_error(tensor, expected.at(name)) + kHalfUlpBf16;
  if (means == nullptr || !expected.contains("lse")) return;
  MeanKeys rounded = *means;
  rounded.rounded = true;
  const auto with_rounded = plain_attention(in, allowed_BNZZ, &rounded, at::kDouble, at::kCPU);
  result.limit["lse"] += 2 * relative_error(with_rounded.at("lse"), expected.at("lse"));
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
  if (attention::vmoba_rule(golden.layer).learns_beta) {
    golden.learnt = {read_tensor(file, path, "beta", {heads})};
    golden.expected["dbeta"] = read_tensor(file, path, "dbeta", {heads});
  }
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

GoldenResult check_golden(const GoldenCase& golden, attention::Implementation implementation, at::ScalarType dtype,
                          at::Device device) {
  const auto input = [&](const at::Tensor& x) { return x.to(device, dtype); };
  const at::Tensor q = input(golden.q_BZND), k = input(golden.k_BZND), v = input(golden.v_BZND);
  attention::LayerAttention layer = golden.layer;
  layer.implementation = implementation;
  const attention::BlockEngine& engine = attention::block_engine(layer, q);
  const auto problem = attention::make_block_problem(q, golden.grid, golden.text_tokens, layer);
  std::vector<at::Tensor> learnt;
  for (const at::Tensor& tensor : golden.learnt) learnt.push_back(tensor.to(device));
  const attention::BlockForward forward = attention::block_forward(engine, problem, q, k, v, learnt);
  const attention::BlockGradients d =
      attention::block_backward(engine, problem, q, k, v, forward, input(golden.dout_BZND), learnt);
  const at::Tensor mask = attention::attends_BNCS(problem, forward.selection).cpu();

  GoldenResult result;
  result.name = golden.name;
  result.mask_differences = (mask != golden.mask_BNCS).sum().item<int64_t>();
  std::map<std::string, at::Tensor> found = {{"out", forward.attended.out_BZND},
                                             {"lse", forward.attended.lse_BNZ},
                                             {"dq", d.dq_BZND},
                                             {"dk", d.dk_BZND},
                                             {"dv", d.dv_BZND}};
  if (!learnt.empty()) found["dbeta"] = d.dlearnt.at(0);
  for (const auto& [name, tensor] : found) {
    result.error[name] = relative_error(tensor, golden.expected.at(name));
    result.limit[name] = kExactLimit;
  }
  if (dtype != at::kBFloat16) return result;
  const at::Tensor allowed_BNZZ = allowed_pairs(
      golden.mask_BNCS, *attention::partition_tables(golden.grid, golden.layer.chunk, at::kCPU), golden.q_BZND.size(1));
  const std::optional<MeanKeys> means =
      remainder_of(golden.grid, golden.layer, allowed_BNZZ, golden.learnt.empty() ? at::Tensor() : golden.learnt[0]);
  allow_bf16({golden.q_BZND, golden.k_BZND, golden.v_BZND, golden.dout_BZND}, allowed_BNZZ, means ? &*means : nullptr,
             golden.expected, device, result);
  return result;
}

GoldenResult check_case(const AttentionCase& c, attention::Implementation implementation, at::ScalarType dtype,
                        at::Device device) {
  constexpr int64_t kMostTokens = 4096;
  VMOBA_CHECK_INPUT(c.tokens() <= kMostTokens, "check --case {}: expected a case of at most {} tokens, found {}",
                    c.name, kMostTokens, c.tokens());
  const auto drawn = [&](const char* name) { return case_tensor(c, name, at::kBFloat16); };
  const at::Tensor read = read_rows(c);
  const Inputs in{drawn("q"), drawn("k"), drawn("v"), drawn("dout") * read, read};
  LayerAttention layer = c.layer;
  layer.implementation = implementation;
  const auto selected = [&](attention::Implementation by, at::ScalarType type, at::Device where) {
    const at::Tensor q = in.q_BZND.to(where, type), k = in.k_BZND.to(where, type), v = in.v_BZND.to(where, type);
    const auto problem = attention::make_block_problem(q, c.grid, c.text_tokens, layer);
    return attention::attends_BNCS(problem, attention::block_select(attention::block_engine(by, q), problem, q, k, v))
        .cpu();
  };
  const at::Tensor mask_BNCS = selected(attention::Implementation::kReference, at::kDouble, at::kCPU);
  at::Tensor allowed_BNZZ =
      allowed_pairs(mask_BNCS, *attention::partition_tables(c.grid, layer.chunk, at::kCPU), c.tokens());
  const std::optional<MeanKeys> means = remainder_of(c.grid, layer, allowed_BNZZ, {});
  forbid_padding(c, allowed_BNZZ);
  const auto expected = plain_attention(in, allowed_BNZZ, means ? &*means : nullptr, at::kDouble, at::kCPU);

  GoldenResult result;
  result.name = c.name;
  result.mask_differences = (selected(implementation, dtype, device) != mask_BNCS).sum().item<int64_t>();
  for (const auto& [name, tensor] : layer_attention_of(c, in, layer, dtype, device)) {
    result.error[name] = relative_error(tensor, expected.at(name));
    result.limit[name] = kExactLimit;
  }
  if (dtype == at::kBFloat16) allow_bf16(in, allowed_BNZZ, means ? &*means : nullptr, expected, device, result);
  return result;
}

}  // namespace vmoba::bench
