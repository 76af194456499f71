// Backward of the attention stage against naive dense kernels in fp32, on lists built here from random masks.
//
// Error criterion: distance to fp32 at most twice that of a plain bf16 computation (scores, probabilities and their
// gradients rounded to bf16), plus the rounding of the bf16 output itself. Large scores count as they are, since bf16
// would move them by whole units.
#include <cuda_bf16.h>

#include <cstring>
#include <functional>

#include "attention/kernels/kernels.h"
#include "kernel_test_support.h"
#include "support/catch.h"

namespace vmoba::kernels::test {
namespace {

// ---- reference -----------------------------------------------------------------------------------------------------

// One (b, n) at a time, rows and keys in permuted positions.
struct Dense {
  int tokens, dim;
  const uint32_t* mask;           // [tokens][words] bit j of row i: row i attends key j
  const float *q, *k, *v, *dout;  // [tokens, dim]
  float *p, *ds;                  // [tokens, tokens]
  float *out, *lse;               // [tokens, dim], [tokens]
  float scale;
  bool large;  // scores
};

template <bool Bf16>
__device__ float rounded(float x) {
  return Bf16 ? __bfloat162float(__float2bfloat16(x)) : x;
}

__device__ float block_reduce(float value, bool maximum) {
  __shared__ float shared[128];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int i = 64; i > 0; i /= 2) {
    if (threadIdx.x < i) {
      const float other = shared[threadIdx.x + i];
      shared[threadIdx.x] = maximum ? fmaxf(shared[threadIdx.x], other) : shared[threadIdx.x] + other;
    }
    __syncthreads();
  }
  const float result = shared[0];
  __syncthreads();
  return result;
}

__device__ float dot(const float* a, const float* b, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// One block of 128 threads a row: p, lse, out, ds.
template <bool Bf16>
__global__ void dense_rows(Dense d) {
  const int64_t row = blockIdx.x;
  const float *q = d.q + row * d.dim, *dout = d.dout + row * d.dim;
  float *p = d.p + row * d.tokens, *ds = d.ds + row * d.tokens;
  const uint32_t* mask = d.mask + row * ((d.tokens + 31) / 32);
  float maximum = -INFINITY;
  for (int key = threadIdx.x; key < d.tokens; key += 128) {
    const bool attends = mask[key / 32] >> (key % 32) & 1;
    const float score = dot(q, d.k + int64_t(key) * d.dim, d.dim);
    const float as_plain = d.large ? score * d.scale : rounded<Bf16>(rounded<Bf16>(score) * d.scale);
    p[key] = attends ? as_plain : -INFINITY;
    ds[key] = attends ? rounded<Bf16>(dot(dout, d.v + int64_t(key) * d.dim, d.dim)) : 0.0f;
    maximum = fmaxf(maximum, p[key]);
  }
  maximum = block_reduce(maximum, true);
  float sum = 0;
  for (int key = threadIdx.x; key < d.tokens; key += 128) sum += p[key] = expf(p[key] - maximum);
  sum = block_reduce(sum, false);
  float delta = 0;
  for (int key = threadIdx.x; key < d.tokens; key += 128) {
    p[key] = rounded<Bf16>(p[key] / sum);
    delta += p[key] * ds[key];
  }
  delta = block_reduce(delta, false);
  for (int key = threadIdx.x; key < d.tokens; key += 128) ds[key] = rounded<Bf16>(p[key] * (ds[key] - delta));
  if (Bf16) return;
  __syncthreads();
  if (threadIdx.x == 0) d.lse[row] = maximum + logf(sum);
  if (threadIdx.x >= d.dim) return;
  float total = 0;
  for (int key = 0; key < d.tokens; ++key) total = fmaf(p[key], d.v[int64_t(key) * d.dim + threadIdx.x], total);
  d.out[row * d.dim + threadIdx.x] = total;
}

// result[i, :] = factor * sum over j of m[i, j] x[j, :], or of m[j, i] when transposed. One block a row i.
template <bool Bf16>
__global__ void dense_product(const float* m, bool transposed, const float* x, float factor, int tokens, int dim,
                              float* result) {
  if (threadIdx.x >= dim) return;
  const int64_t i = blockIdx.x;
  float sum = 0;
  for (int64_t j = 0; j < tokens; ++j) {
    const float weight = transposed ? m[j * tokens + i] : m[i * tokens + j];
    if (weight != 0) sum = fmaf(weight, x[j * dim + threadIdx.x], sum);
  }
  result[i * dim + threadIdx.x] = rounded<Bf16>(sum * factor);
}

// ---- cases ---------------------------------------------------------------------------------------------------------

enum class Rows { kRandom, kAll, kOwn, kSkewed, kExactLength };

struct Case {
  const char* name;
  int head_dim = 128, batch = 1, heads = 1, text = 0;
  std::vector<int> blocks;  // tokens of each
  Rows rows = Rows::kRandom;
  double density = 0.3;  // kRandom: chance of another block; kExactLength: rows of a list that has fewer own rows
  bool identity = false;
  int64_t stride_padding = 0;  // elements between the tokens of the fused tensors
  float input_scale = 1;

  int video() const {
    int tokens = 0;
    for (int b : blocks) tokens += b;
    return tokens;
  }
  int tokens() const { return video() + text; }
  Shape shape() const { return {batch, heads, head_dim, video(), text, int(blocks.size())}; }
};

// Lists of all (b, n), and the same as masks of row by key. Pads hold `pad_row`, or the last row where it is negative.
struct HostLists {
  std::vector<int32_t> length, row;
  std::vector<int64_t> start;
  std::vector<std::vector<uint32_t>> key_mask;  // per (b, n)
};

HostLists lists_of(const Case& c, const TestPartition& p, std::mt19937& rng, int pad_row = -1) {
  const Shape shape = c.shape();
  const int tokens = shape.tokens(), words = (tokens + 31) / 32;
  const int64_t stride = slots_per_head_capacity(shape);
  HostLists h;
  h.row.assign(shape.batch * shape.heads * stride, 0x7f7f7f7f);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int head = 0; head < shape.batch * shape.heads; ++head) {
    h.key_mask.emplace_back(int64_t(tokens) * words, 0u);
    int32_t* rows = h.row.data() + head * stride;
    int64_t slot = 0;
    for (int block = 0; block < shape.block_count(); ++block) {
      const bool text = block == shape.blocks;
      const int first = text ? c.video() : p.block_start[block], end = text ? tokens : p.block_start[block + 1];
      h.start.push_back(slot);
      int count = 0, short_of = 0;
      if (c.rows == Rows::kExactLength) short_of = int(c.density) - (end - first) - c.text;
      for (int i = 0; i < tokens; ++i) {
        const bool must = text || i >= c.video() || p.block_of[i] == block;
        bool attends = must || c.rows == Rows::kAll || (c.rows == Rows::kSkewed && block == head % shape.blocks) ||
                       (c.rows == Rows::kRandom && uniform(rng) < c.density);
        if (!attends && c.rows == Rows::kExactLength && short_of > 0) attends = short_of-- > 0;
        if (!attends) continue;
        rows[slot + count++] = i < c.video() ? p.token_of[i] : i;
        for (int key = first; key < end; ++key) h.key_mask.back()[int64_t(i) * words + key / 32] |= 1u << (key % 32);
      }
      h.length.push_back(count);
      const int64_t last = slot + count - 1;
      for (slot += count; slot % kSlotAlign != 0; ++slot) rows[slot] = pad_row < 0 ? rows[last] : pad_row;
    }
    h.start.push_back(slot);
  }
  return h;
}

// A [B, tokens, parts, N, D] tensor with a gap behind every token.
struct Fused {
  Fused(const Case& c, int parts)
      : shape(c.shape()),
        parts(parts),
        token_stride(int64_t(parts) * c.heads * c.head_dim + c.stride_padding),
        array(token_stride * c.tokens() * c.batch) {}
  TensorView view(int part) const {
    return {array.get() + int64_t(part) * shape.heads * shape.head_dim, token_stride * shape.tokens(), token_stride,
            shape.head_dim};
  }
  int64_t row_elements() const { return int64_t(parts) * shape.heads * shape.head_dim; }
  // [B * tokens, parts, N, D] without the gaps
  void upload(const std::vector<uint16_t>& rows) {
    CUDA_OK(cudaMemcpy2D(array.get(), token_stride * 2, rows.data(), row_elements() * 2, row_elements() * 2,
                         int64_t(shape.batch) * shape.tokens(), cudaMemcpyHostToDevice));
  }
  std::vector<uint16_t> download() const {
    std::vector<uint16_t> rows(row_elements() * shape.batch * shape.tokens());
    CUDA_OK(cudaMemcpy2D(rows.data(), row_elements() * 2, array.get(), token_stride * 2, row_elements() * 2,
                         int64_t(shape.batch) * shape.tokens(), cudaMemcpyDeviceToHost));
    return rows;
  }
  bool gaps_intact() const {
    const int64_t gap = token_stride - row_elements();
    const int64_t looked_at = std::min<int64_t>(gap, 64), tokens = int64_t(shape.batch) * shape.tokens();
    if (gap == 0) return true;
    std::vector<uint16_t> bytes(looked_at * tokens);
    CUDA_OK(cudaMemcpy2D(bytes.data(), looked_at * 2, array.get() + row_elements(), token_stride * 2, looked_at * 2,
                         tokens, cudaMemcpyDeviceToHost));
    return std::all_of(bytes.begin(), bytes.end(), [](uint16_t x) { return x == 0xffff; });
  }
  int64_t index(int b, int token, int part, int n) const {
    return (((int64_t(b) * shape.tokens() + token) * parts + part) * shape.heads + n) * shape.head_dim;
  }

  Shape shape;
  int parts;
  int64_t token_stride;
  DeviceArray<uint16_t> array;
};

enum Input { kQ, kOut, kDout, kInputs };
enum Gradient { kDq, kDk, kDv, kGradients };

// Everything one backward call needs, its results, and the reference.
class Problem {
 public:
  Problem(const Case& c, unsigned seed, const std::function<void(Problem&, std::vector<uint16_t>&)>& change_inputs = {})
      : c(c),
        rng(seed),
        partition(partition_of(c.blocks, c.identity, rng)),
        device_partition(partition),
        inputs(c, kInputs),
        keys(c, 2) {
    lists = lists_of(c, partition, rng);
    input_rows = random_bf16(inputs.row_elements() * c.batch * c.tokens(), c.input_scale, rng);
    key_rows = random_bf16(keys.row_elements() * c.batch * c.tokens(), c.input_scale, rng);
    if (change_inputs) change_inputs(*this, input_rows);
    reference();
    inputs.upload(input_rows);
    keys.upload(key_rows);
  }

  // Runs the kernels; the gradients' rows, [B * tokens, 3, N, D].
  std::vector<uint16_t> run(bool deterministic, int family = 0) {
    const Shape shape = c.shape();
    Fused gradients(c, kGradients);
    DeviceArray<char> workspace(backward_workspace_bytes(shape, deterministic));
    DeviceArray<int32_t> length(lists.length), row(lists.row);
    DeviceArray<int64_t> start(lists.start);
    DeviceArray<float> device_lse(lse);
    BackwardArgs args;
    args.shape = shape;
    args.partition = device_partition.view;
    args.lists.length = length.get();
    args.lists.start = start.get();
    args.lists.row = row.get();
    args.lists.row_stride = slots_per_head_capacity(shape);
    args.q = inputs.view(kQ);
    args.out = inputs.view(kOut);
    args.dout = inputs.view(kDout);
    args.k_blocks = keys.view(0);
    args.v_blocks = keys.view(1);
    args.lse = device_lse.get();
    args.dq = gradients.view(kDq);
    args.dk = gradients.view(kDk);
    args.dv = gradients.view(kDv);
    args.scale = scale();
    args.deterministic = deterministic;
    args.workspace = workspace.get();
    args.family = family;
    CUDA_OK(backward(args, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    CHECK(workspace.guards_intact());
    CHECK(gradients.array.guards_intact());
    CHECK(gradients.gaps_intact());
    return gradients.download();
  }

  void check(const std::vector<uint16_t>& got) const {
    const char* names[] = {"dq", "dk", "dv"};
    for (int part = 0; part < kGradients; ++part) {
      double error = 0, plain_error = 0, norm = 0, worst = 0, plain_worst = 0, largest = 0;
      for_each(part, [&](int64_t place, int64_t at) {
        const double expected = exact[part][place];
        const double e = std::abs(from_bf16(got[at]) - expected), plain = std::abs(plain_bf16[part][place] - expected);
        error += e * e, plain_error += plain * plain, norm += expected * expected;
        if (!(e <= worst)) worst = e;
        plain_worst = std::max(plain_worst, plain), largest = std::max(largest, std::abs(expected));
      });
      INFO(c.name << " " << names[part] << ": error " << std::sqrt(error) << ", plain bf16 " << std::sqrt(plain_error)
                  << ", norm " << std::sqrt(norm) << "; worst " << worst << ", plain " << plain_worst << ", largest "
                  << largest);
      // dP - delta is a difference of sums of head_dim products: where it vanishes, their fp32 rounding remains.
      const double cancelled = 1e-6 * c.head_dim * std::pow(c.input_scale, 3);
      CHECK(std::sqrt(error) <= 2 * std::sqrt(plain_error) + std::sqrt(norm) / 1024 + cancelled);
      CHECK(worst <= 2 * plain_worst + largest / 256 + cancelled);
    }
  }

  float scale() const { return 1.0f / std::sqrt(float(c.head_dim)); }

  Case c;
  std::mt19937 rng;
  TestPartition partition;
  DevicePartition device_partition;
  HostLists lists;
  Fused inputs, keys;
  std::vector<uint16_t> input_rows, key_rows;
  std::vector<float> lse;  // [B, N, tokens]
  // Per gradient: [B, N, permuted position, D]
  std::vector<float> exact[kGradients], plain_bf16[kGradients];

 private:
  int token_at(int position) const { return position < c.video() ? partition.token_of[position] : position; }

  template <class F>
  void for_each(int part, const F& visit) const {
    const Fused layout_only(Case{"", c.head_dim, c.batch, c.heads, c.text, c.blocks}, kGradients);
    int64_t place = 0;
    for (int b = 0; b < c.batch; ++b) {
      for (int n = 0; n < c.heads; ++n) {
        for (int i = 0; i < c.tokens(); ++i) {
          const int64_t at = layout_only.index(b, token_at(i), part, n);
          for (int d = 0; d < c.head_dim; ++d) visit(place++, at + d);
        }
      }
    }
  }

  // dq, dk and dv of the head that `dense` describes; its out and lse too.
  template <bool Bf16>
  static void append_gradients(const Dense& dense, const DeviceArray<float>& result,
                               std::vector<float> (&into)[kGradients]) {
    const struct {
      const float* m;
      bool transposed;
      const float* x;
      float factor;
    } terms[kGradients] = {{dense.ds, false, dense.k, dense.scale},
                           {dense.ds, true, dense.q, dense.scale},
                           {dense.p, true, dense.dout, 1.0f}};
    dense_rows<Bf16><<<dense.tokens, 128>>>(dense);
    for (int part = 0; part < kGradients; ++part) {
      const auto& term = terms[part];
      dense_product<Bf16>
          <<<dense.tokens, 128>>>(term.m, term.transposed, term.x, term.factor, dense.tokens, dense.dim, result.get());
      const std::vector<float> rows = result.host();
      into[part].insert(into[part].end(), rows.begin(), rows.end());
    }
  }

  void reference() {
    const int tokens = c.tokens(), dim = c.head_dim;
    lse.assign(int64_t(c.batch) * c.heads * tokens, 0.0f);
    DeviceArray<float> p(int64_t(tokens) * tokens), ds(int64_t(tokens) * tokens);
    DeviceArray<float> out(int64_t(tokens) * dim), row_lse(tokens), result(int64_t(tokens) * dim);
    for (int head = 0; head < c.batch * c.heads; ++head) {
      const int b = head / c.heads, n = head % c.heads;
      // In permuted order; the keys already are.
      std::vector<float> host[4];
      for (int i = 0; i < tokens; ++i) {
        for (int d = 0; d < dim; ++d) {
          host[0].push_back(from_bf16(input_rows[inputs.index(b, token_at(i), kQ, n) + d]));
          host[1].push_back(from_bf16(key_rows[keys.index(b, i, 0, n) + d]));
          host[2].push_back(from_bf16(key_rows[keys.index(b, i, 1, n) + d]));
          host[3].push_back(from_bf16(input_rows[inputs.index(b, token_at(i), kDout, n) + d]));
        }
      }
      const DeviceArray<float> q(host[0]), k(host[1]), v(host[2]), dout(host[3]);
      const DeviceArray<uint32_t> mask(lists.key_mask[head]);
      const Dense dense = {tokens,  dim,      mask.get(), q.get(),       k.get(), v.get(),          dout.get(),
                           p.get(), ds.get(), out.get(),  row_lse.get(), scale(), c.input_scale > 3};
      append_gradients<true>(dense, result, plain_bf16);
      append_gradients<false>(dense, result, exact);
      CUDA_OK(cudaDeviceSynchronize());
      const std::vector<float> out_rows = out.host(), lse_rows = row_lse.host();
      for (int i = 0; i < tokens; ++i) {
        lse[int64_t(head) * tokens + token_at(i)] = lse_rows[i];
        for (int d = 0; d < dim; ++d) {
          input_rows[inputs.index(b, token_at(i), kOut, n) + d] = to_bf16(out_rows[int64_t(i) * dim + d]);
        }
      }
    }
  }
};

const std::vector<int> kRaggedBlocks = {1, 7, 64, 65, 127, 128, 129, 256, 257, 383};

std::vector<Case> cases(int head_dim) {
  std::vector<Case> all = {
      {"one block", head_dim, 1, 1, 0, {128}},
      {"one token", head_dim, 1, 1, 0, {1}},
      {"ragged blocks", head_dim, 1, 2, 0, kRaggedBlocks},
      {"ragged blocks, batch, text, gaps", head_dim, 2, 2, 77, kRaggedBlocks, Rows::kRandom, 0.2, false, 40},
      {"sampled like production", head_dim, 1, 2, 0, {864, 864}, Rows::kRandom, 0.2, true},
      {"everything", head_dim, 1, 1, 0, {129, 257, 64}, Rows::kAll},
      {"own block alone", head_dim, 1, 2, 0, {65, 127, 383, 1}, Rows::kOwn},
      {"one list of all rows", head_dim, 2, 3, 0, {64, 200, 300, 31, 5}, Rows::kSkewed},
      {"one text token", head_dim, 1, 1, 1, {100, 28}, Rows::kRandom},
      {"text of two tiles", head_dim, 1, 2, 130, {256, 7, 129}, Rows::kRandom, 0.4},
      {"large scores", head_dim, 1, 1, 0, {200, 300}, Rows::kRandom, 0.5, false, 0, 3.0f},
      {"scores of hundreds", head_dim, 1, 2, 9, {200, 64, 90}, Rows::kRandom, 0.5, false, 0, 10.0f},
      {"scores of thousands", head_dim, 1, 2, 9, {200, 64, 90}, Rows::kRandom, 0.5, false, 0, 30.0f},
  };
  for (int length : {1, 63, 64, 65, 127, 128, 129, 191, 192, 193}) {
    all.push_back({"exact length", head_dim, 1, 1, 0, {1, 1, 1, 130, 70}, Rows::kExactLength, double(length)});
  }
  return all;
}

void check_cases(int family) {
  for (int head_dim : {128, 64}) {
    unsigned seed = 1;
    for (const Case& c : cases(head_dim)) {
      Problem problem(c, seed++);
      const auto sums = problem.run(false, family), fixed_point = problem.run(true, family);
      problem.check(sums);
      problem.check(fixed_point);
    }
  }
}

}  // namespace

TEST_CASE("backward agrees with dense fp32 attention", "[gpu]") {
  check_cases(0);
}

TEST_CASE("backward of the sm_80 kernels agrees with dense fp32 attention", "[gpu]") {
  check_cases(80);
}

TEST_CASE("deterministic backward repeats its bits, and dk and dv always do", "[gpu]") {
  for (int head_dim : {128, 64}) {
    Problem problem({"repeats", head_dim, 2, 4, 33, kRaggedBlocks, Rows::kRandom, 0.5}, 7);
    const auto first = problem.run(true), fallback = problem.run(true, 80);
    for (int i = 0; i < 10; ++i) {
      REQUIRE(problem.run(true) == first);
      REQUIRE(problem.run(true, 80) == fallback);
      const auto sums = problem.run(false);
      int64_t different = 0;
      for (size_t at = 0; at < sums.size(); ++at) {
        const int part = int(at / (problem.c.heads * head_dim) % kGradients);
        different += part != kDq && sums[at] != first[at];
      }
      REQUIRE(different == 0);
    }
  }
}

// Pads may name any row. One whose values are 1e4 times the usual must leave no trace in anything.
TEST_CASE("pad slots contribute nothing", "[gpu]") {
  for (int head_dim : {128, 64}) {
    const auto enlarge = [](Problem& problem, std::vector<uint16_t>& rows) {
      for (int part : {kQ, kDout}) {
        const int64_t first = problem.inputs.index(0, 5, part, 0);
        for (int d = 0; d < problem.c.head_dim; ++d) rows[first + d] = to_bf16(1e4f * from_bf16(rows[first + d]));
      }
    };
    Problem problem({"pads", head_dim, 1, 1, 0, {70, 129, 33}, Rows::kRandom, 0.3}, 11, enlarge);
    const auto repeat_last = problem.run(true);
    for (int pad_row : {6, 5}) {
      for (size_t list = 0; list + 1 < problem.lists.start.size(); ++list) {
        for (int64_t slot = problem.lists.start[list] + problem.lists.length[list];
             slot < problem.lists.start[list + 1]; ++slot) {
          problem.lists.row[slot] = pad_row;
        }
      }
      REQUIRE(problem.run(true) == repeat_last);
    }
  }
}

TEST_CASE("backward addresses elements past 2^31", "[gpu]") {
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_OK(cudaMemGetInfo(&free_bytes, &total_bytes));
  const int64_t padding = int64_t(12) << 20;  // 201 tokens of 12 Mi elements: 2.5e9
  if (free_bytes < size_t(padding) * 201 * 2 * 4) {
    WARN("not enough memory for tensors beyond 2^31 elements");
    return;
  }
  Problem problem({"far apart", 128, 1, 2, 0, {130, 71}, Rows::kRandom, 0.5, false, padding}, 13);
  problem.check(problem.run(false));
}

TEST_CASE("gradients that are not numbers stay so in deterministic mode", "[gpu]") {
  const auto spoil = [](Problem& problem, std::vector<uint16_t>& rows) {
    rows[problem.inputs.index(0, 3, kDout, 0)] = 0x7fc0;
  };
  Problem problem({"nan", 128, 1, 1, 0, {70, 30}, Rows::kOwn}, 17, spoil);
  const auto got = problem.run(true);
  CHECK(std::isnan(from_bf16(got[problem.inputs.index(0, 3, kDq, 0)])));
}

TEST_CASE("backward workspace grows with its parts") {
  const Shape shape = {1, 2, 128, 1000, 0, 4};
  // dk and dv of the parts of split lists: 132 key tiles in 4 parts of 128 keys, fp32, whatever the shape.
  const int64_t parts = int64_t(132) * 4 * 128 * 2 * 128 * 4;
  const int64_t bytes = backward_workspace_bytes(shape, false) - parts;
  CHECK(bytes >= int64_t(2) * 1000 * 128 * 4);
  CHECK(bytes < int64_t(2) * 1000 * 128 * 4 * 5 / 4);
  CHECK(backward_workspace_bytes(shape, true) >= int64_t(2) * 1000 * 128 * 8);
  Shape twice = shape;
  twice.batch = 2;
  CHECK(backward_workspace_bytes(twice, false) - parts > bytes * 3 / 2);
  Shape odd = shape;
  odd.head_dim = 96;
  CHECK(backward_workspace_bytes(odd, false) == 0);
}

TEST_CASE("backward refuses arguments out of range") {
  alignas(256) static char memory[256];
  BackwardArgs good;
  good.shape = {1, 1, 64, 16, 0, 1};
  good.partition.block_start = reinterpret_cast<int32_t*>(memory);
  good.partition.identity = true;
  good.partition.max_block_tokens = 16;
  good.lists.length = good.lists.row = reinterpret_cast<int32_t*>(memory);
  good.lists.start = reinterpret_cast<int64_t*>(memory);
  good.lists.row_stride = 128;
  for (TensorView* view :
       {&good.q, &good.out, &good.dout, &good.k_blocks, &good.v_blocks, &good.dq, &good.dk, &good.dv}) {
    *view = {memory, 16 * 64, 64, 64};
  }
  good.lse = reinterpret_cast<float*>(memory);
  good.scale = 0.125f;
  good.workspace = memory;
  const std::vector<std::function<void(BackwardArgs&)>> faults = {
      [](BackwardArgs& a) { a.shape.head_dim = 80; },
      [](BackwardArgs& a) { a.shape.batch = 0; },
      [](BackwardArgs& a) { a.shape.blocks = 17; },
      [](BackwardArgs& a) { a.shape.video_tokens = 0; },
      [](BackwardArgs& a) { a.q.data = nullptr; },
      [](BackwardArgs& a) { a.dv.data = static_cast<char*>(a.dv.data) + 2; },
      [](BackwardArgs& a) { a.dout.token_stride = 65; },
      [](BackwardArgs& a) { a.lse = nullptr; },
      [](BackwardArgs& a) { a.lists.row = nullptr; },
      [](BackwardArgs& a) { a.lists.row_stride = 0; },
      [](BackwardArgs& a) { a.partition.identity = false; },
      [](BackwardArgs& a) { a.partition.max_block_tokens = 17; },
      [](BackwardArgs& a) { a.scale = 0; },
      [](BackwardArgs& a) { a.scale = std::nanf(""); },
      [](BackwardArgs& a) { a.workspace = nullptr; },
      [](BackwardArgs& a) { a.workspace = static_cast<char*>(a.workspace) + 16; },
  };
  if (without_gpu()) CHECK(backward(good, nullptr) != cudaErrorInvalidValue);
  for (size_t i = 0; i < faults.size(); ++i) {
    INFO("fault " << i);
    BackwardArgs bad = good;
    faults[i](bad);
    CHECK(backward(bad, nullptr) == cudaErrorInvalidValue);
  }
}

}  // namespace vmoba::kernels::test
