// Forward of the attention stage against a naive masked attention in fp32, on lists built here from random masks.
#include <cuda_bf16.h>

#include "attention/kernels/kernels.h"
#include "kernel_test_support.h"
#include "support/catch.h"

namespace vmoba::kernels::test {
namespace {

// ---- references ----------------------------------------------------------------------------------------------------

struct ReferenceProblem {
  Shape shape;
  int block_count, tokens, mask_words;
  PartitionView partition;
  const uint32_t* mask;
  TensorView q, k_blocks, v_blocks;
  float scale;
};

__device__ float at(const TensorView& view, int b, int n, int64_t token, int column) {
  const int64_t index = b * view.batch_stride + n * view.head_stride + token * view.token_stride + column;
  return __bfloat162float(static_cast<const __nv_bfloat16*>(view.data)[index]);
}

__device__ float rounded(float x) {
  return __bfloat162float(__float2bfloat16(x));
}

// One block per (row, b * N + n). Bf16: as plain bf16 tensor code computes it, with rounded scores, probabilities and
// output. Writes dense fp32 [B, N, tokens, D] and natural-log lse, original order.
template <bool Bf16>
__global__ void reference_kernel(ReferenceProblem problem, float* out, float* lse) {
  extern __shared__ float probability[];  // one per key; negative infinity where masked
  __shared__ float query[128], reduced[128];
  const Shape& shape = problem.shape;
  const int position = blockIdx.x, head = blockIdx.y, thread = threadIdx.x, dim = shape.head_dim;
  const int b = head / shape.heads, n = head % shape.heads;
  const int token = position < shape.video_tokens ? problem.partition.token_of[position] : position;
  if (thread < dim) query[thread] = at(problem.q, b, n, token, thread);
  __syncthreads();
  const auto reduce = [&](float value, bool maximum) {
    reduced[thread] = value;
    __syncthreads();
    for (int i = 64; i > 0; i /= 2) {
      if (thread < i) {
        reduced[thread] = maximum ? fmaxf(reduced[thread], reduced[thread + i]) : reduced[thread] + reduced[thread + i];
      }
      __syncthreads();
    }
    const float result = reduced[0];
    __syncthreads();
    return result;
  };

  float maximum = -INFINITY;
  for (int c = 0; c < problem.block_count; ++c) {
    const int begin = c < shape.blocks ? problem.partition.block_start[c] : shape.video_tokens;
    const int end = c < shape.blocks ? problem.partition.block_start[c + 1] : problem.tokens;
    const int64_t word = (int64_t(head) * problem.block_count + c) * problem.mask_words + position / 32;
    const bool attends = problem.mask[word] >> (position % 32) & 1;
    for (int key = begin + thread; key < end; key += blockDim.x) {
      float score = -INFINITY;
      if (attends) {
        score = 0;
        for (int i = 0; i < dim; ++i) score = fmaf(query[i], at(problem.k_blocks, b, n, key, i), score);
        score *= problem.scale;
        if (Bf16) score = rounded(score);
      }
      probability[key] = score;
      maximum = fmaxf(maximum, score);
    }
  }
  maximum = reduce(maximum, true);
  float sum = 0;
  for (int key = thread; key < problem.tokens; key += blockDim.x) {
    probability[key] = expf(probability[key] - maximum);
    sum += probability[key];
  }
  sum = reduce(sum, false);
  if (thread == 0) lse[int64_t(head) * problem.tokens + token] = maximum + logf(sum);
  if (thread >= dim) return;
  float total = 0;
  for (int key = 0; key < problem.tokens; ++key) {
    float p = probability[key] / sum;
    if (p == 0) continue;
    if (Bf16) p = rounded(p);
    total = fmaf(p, at(problem.v_blocks, b, n, key, thread), total);
  }
  out[(int64_t(head) * problem.tokens + token) * dim + thread] = Bf16 ? rounded(total) : total;
}

double relative_error(const std::vector<float>& value, const std::vector<float>& reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < value.size(); ++i) {
    difference += (double(value[i]) - reference[i]) * (double(value[i]) - reference[i]);
    norm += double(reference[i]) * reference[i];
  }
  return std::sqrt(difference / norm);
}

double largest_error(const std::vector<float>& value, const std::vector<float>& reference) {
  double largest = 0;
  for (size_t i = 0; i < value.size(); ++i) {
    const double error = std::abs(double(value[i]) - reference[i]);
    if (!(error <= largest)) largest = error;  // a NaN stays
  }
  return largest;
}

double largest_magnitude(const std::vector<float>& values) {
  return largest_error(values, std::vector<float>(values.size(), 0.f));
}

// ---- cases ---------------------------------------------------------------------------------------------------------

enum class Rows { kOwn, kRandom, kAll, kSkewed, kExactLength };

struct Case {
  const char* name;
  int head_dim = 128, batch = 1, heads = 1, text = 0;
  std::vector<int> blocks;  // tokens of each
  Rows rows = Rows::kRandom;
  double density = 0.3;  // kRandom: chance of another block; kExactLength: rows of a list, where it has fewer own rows
  bool identity = false;
  int heads_per_wave = 0;      // 0: all of them
  int64_t stride_padding = 0;  // elements more between tokens of q than a fused q, k, v projection has
  float key_scale = 1;
  int row_words = 0;  // mask words of rows in a forward; 0: all
};

struct HostLists {
  std::vector<uint32_t> mask;
  std::vector<int32_t> word_rank, length, row;
  std::vector<int64_t> start;
  int64_t row_stride = 0;
};

// Which rows attend block `block` of (b, n) `head`, as one flag per permuted position.
std::vector<char> attending(const Case& c, const TestPartition& p, int head, int block, std::mt19937& rng) {
  const int tokens = p.tokens() + c.text;
  std::vector<char> rows(tokens, 0);
  for (int i = p.tokens(); i < tokens; ++i) rows[i] = 1;
  if (block == p.blocks()) return std::vector<char>(tokens, 1);
  std::uniform_real_distribution<double> uniform(0, 1);
  const bool popular = block == head % p.blocks();
  int have = 0;
  for (int i = 0; i < p.tokens(); ++i) {
    const bool own = p.block_of[i] == block;
    rows[i] = own || c.rows == Rows::kAll || (c.rows == Rows::kSkewed && popular) ||
              (c.rows == Rows::kRandom && uniform(rng) < c.density);
    have += rows[i];
  }
  for (int i = p.tokens() - 1; c.rows == Rows::kExactLength && i >= 0 && have < c.density; --i) {
    have += !rows[i];
    rows[i] = 1;
  }
  return rows;
}

HostLists lists_of(const Case& c, const TestPartition& p, const Shape& shape, std::mt19937& rng) {
  const int words = shape.mask_words(), lists = shape.block_count();
  HostLists h;
  h.row_stride = slots_per_head_capacity(shape);
  h.row.assign(shape.batch * shape.heads * h.row_stride, 0x7f7f7f7f);
  h.mask.assign(shape.lists() * words, 0);
  h.word_rank.assign(shape.lists() * words, 0);
  for (int head = 0; head < shape.batch * shape.heads; ++head) {
    int64_t slot = 0;
    for (int block = 0; block < lists; ++block) {
      h.start.push_back(slot);
      const std::vector<char> rows = attending(c, p, head, block, rng);
      const int64_t first_word = (int64_t(head) * lists + block) * words;
      int count = 0;
      for (int i = 0; i < shape.tokens(); ++i) {
        if (i % 32 == 0) h.word_rank[first_word + i / 32] = count;
        if (!rows[i]) continue;
        h.mask[first_word + i / 32] |= 1u << (i % 32);
        h.row[head * h.row_stride + slot + count++] = i < p.tokens() ? p.token_of[i] : i;
      }
      h.length.push_back(count);
      const int64_t last = slot + count - 1;
      const int64_t end = slot + (count + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
      for (int64_t pad = slot + count; pad < end; ++pad) {
        h.row[head * h.row_stride + pad] = h.row[head * h.row_stride + last];
      }
      slot = end;
    }
    h.start.push_back(slot);
  }
  return h;
}

// The forward of some rows after others, each with lists of its own, into `out` and `lse` of `args`.
void forward_by_rows(ForwardArgs args, int row_words) {
  const int words = args.shape.mask_words();
  for (int first = 0; first < words; first += row_words) {
    Shape& shape = args.shape;
    shape.first_word = first, shape.row_words = std::min(row_words, words - first);
    const int64_t lists = shape.lists(), heads = int64_t(shape.batch) * shape.heads;
    const DeviceArray<int32_t> word_rank(lists * words), length(lists), row(heads * slots_per_head_capacity(shape));
    const DeviceArray<int64_t> start(lists + heads);
    args.lists.word_rank = word_rank.get(), args.lists.length = length.get(), args.lists.start = start.get();
    args.lists.row = row.get(), args.lists.row_stride = slots_per_head_capacity(shape);
    args.partial_slots = 2 * slots_per_head_capacity(shape);
    const DeviceArray<char> workspace(forward_workspace_bytes(shape, args.partial_slots));
    args.workspace = workspace.get();
    CUDA_OK(index({shape, args.partition, args.lists, nullptr}, nullptr));
    CUDA_OK(forward(args, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    CHECK(row.guards_intact());
    CHECK(workspace.guards_intact());
  }
}

void check(const Case& c, int family = 0) {
  INFO(c.name);
  std::mt19937 rng(20261124);
  const TestPartition partition = partition_of(c.blocks, c.identity, rng);
  const DevicePartition device_partition(partition);
  Shape shape;
  shape.batch = c.batch, shape.heads = c.heads, shape.head_dim = c.head_dim;
  shape.video_tokens = partition.tokens(), shape.text_tokens = c.text, shape.blocks = partition.blocks();
  const HostLists host = lists_of(c, partition, shape, rng);
  const DeviceArray<uint32_t> mask(host.mask);
  const DeviceArray<int32_t> word_rank(host.word_rank), length(host.length), row(host.row);
  const DeviceArray<int64_t> start(host.start);

  // q is a slice of a fused [B, tokens, 3, N, D]; k and v are block-ordered copies [B, N, tokens, D].
  const int64_t tokens = shape.tokens(), width = int64_t(c.heads) * c.head_dim;
  const int64_t q_row = 3 * width + c.stride_padding;
  const std::vector<uint16_t> host_q = random_bf16(c.batch * tokens * 3 * width, 1.f, rng);
  const DeviceArray<uint16_t> q(c.batch * tokens * q_row);
  CUDA_OK(cudaMemcpy2D(q.get(), q_row * 2, host_q.data(), 3 * width * 2, 3 * width * 2, c.batch * tokens,
                       cudaMemcpyHostToDevice));
  const DeviceArray<uint16_t> k(random_bf16(c.batch * tokens * width, c.key_scale, rng));
  const DeviceArray<uint16_t> v(random_bf16(c.batch * tokens * width, 1.f, rng));
  const DeviceArray<uint16_t> out(c.batch * tokens * width);
  const DeviceArray<float> lse(c.batch * c.heads * tokens);

  ForwardArgs args;
  args.shape = shape;
  args.partition = device_partition.view;
  args.lists = {mask.get(), word_rank.get(), length.get(), start.get(), row.get(), host.row_stride};
  args.q = {q.get() + width, tokens * q_row, q_row, c.head_dim};
  args.k_blocks = {k.get(), tokens * width, c.head_dim, tokens * c.head_dim};
  args.v_blocks = {v.get(), tokens * width, c.head_dim, tokens * c.head_dim};
  args.out = {out.get(), tokens * width, width, c.head_dim};
  args.lse = lse.get();
  args.scale = 1 / std::sqrt(float(c.head_dim));
  const int heads_per_wave = c.heads_per_wave > 0 ? c.heads_per_wave : c.batch * c.heads;
  args.partial_slots = heads_per_wave * slots_per_head_capacity(shape);
  const DeviceArray<char> workspace(forward_workspace_bytes(shape, args.partial_slots));
  args.workspace = workspace.get();
  args.family = family;
  CUDA_OK(forward(args, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  CHECK(out.guards_intact());
  CHECK(lse.guards_intact());
  CHECK(workspace.guards_intact());

  if (c.row_words > 0) {
    const std::vector<uint16_t> at_once = out.host();
    const std::vector<float> lse_at_once = lse.host();
    CUDA_OK(cudaMemset(out.get(), 0xff, out.bytes()));
    CUDA_OK(cudaMemset(lse.get(), 0xff, lse.bytes()));
    forward_by_rows(args, c.row_words);
    CHECK(out.host() == at_once);
    CHECK(lse.host() == lse_at_once);
    CHECK(out.guards_intact());
    CHECK(lse.guards_intact());
  }

  const int64_t elements = c.batch * tokens * width;
  const DeviceArray<float> exact(elements), plain(elements), exact_lse(c.batch * c.heads * tokens),
      plain_lse(c.batch * c.heads * tokens);
  const ReferenceProblem problem{shape,          shape.block_count(), int(tokens), shape.mask_words(),
                                 args.partition, mask.get(),          args.q,      args.k_blocks,
                                 args.v_blocks,  args.scale};
  const dim3 grid(unsigned(tokens), unsigned(c.batch * c.heads));
  const size_t shared_bytes = tokens * sizeof(float);
  CUDA_OK(cudaFuncSetAttribute(reference_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  CUDA_OK(cudaFuncSetAttribute(reference_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  reference_kernel<false><<<grid, 128, shared_bytes>>>(problem, exact.get(), exact_lse.get());
  reference_kernel<true><<<grid, 128, shared_bytes>>>(problem, plain.get(), plain_lse.get());
  CUDA_OK(cudaDeviceSynchronize());

  // To the references' [B, N, tokens, D].
  const std::vector<uint16_t> raw = out.host();
  std::vector<float> value(elements);
  for (int64_t i = 0; i < elements; ++i) {
    const int64_t column = i % c.head_dim, token = i / c.head_dim % tokens, head = i / c.head_dim / tokens;
    const int64_t b = head / c.heads, n = head % c.heads;
    value[i] = from_bf16(raw[(b * tokens + token) * width + n * c.head_dim + column]);
  }
  const std::vector<float> reference = exact.host(), bf16 = plain.host();
  // The floors: an eighth of a bf16 step of the typical, and one of the largest, value.
  CHECK(relative_error(value, reference) <= 2 * relative_error(bf16, reference) + 0x1p-12);
  CHECK(largest_error(value, reference) <= 2 * largest_error(bf16, reference) + 0x1p-9 * largest_magnitude(reference));
  const std::vector<float> reference_lse = exact_lse.host();
  CHECK(largest_error(lse.host(), reference_lse) <= 1e-5 * (1 + largest_magnitude(reference_lse)));
}

void check_shapes(int family) {
  const std::vector<int> ragged = {1, 7, 64, 127, 128, 129, 256, 257, 319, 320, 383, 864};
  for (const int head_dim : {128, 64}) {
    check({"one block", head_dim, 1, 1, 0, {200}, Rows::kOwn}, family);
    check({"one token", head_dim, 1, 1, 0, {1}, Rows::kOwn}, family);
    check({"own rows only", head_dim, 2, 2, 0, ragged, Rows::kOwn}, family);
    check({"ragged", head_dim, 2, 3, 0, ragged, Rows::kRandom}, family);
    check({"everything", head_dim, 1, 2, 0, ragged, Rows::kAll}, family);
    check({"skewed", head_dim, 2, 2, 0, ragged, Rows::kSkewed}, family);
    check({"text", head_dim, 2, 2, 77, ragged, Rows::kRandom, 0.1}, family);
    check({"identity", head_dim, 1, 3, 0, {384, 384, 300}, Rows::kRandom, 0.5, true}, family);
    for (const int block : {127, 144, 160, 176, 192}) {  // one and two of every key tile that a kernel may pick
      check({"key tiles", head_dim, 1, 2, 0, {block, 2 * block, 2 * block}, Rows::kRandom, 0.3}, family);
    }
    check({"large scores", head_dim, 1, 2, 0, {300, 200, 400}, Rows::kRandom, 0.5, false, 0, 0, 12.f}, family);
    for (const int length : {1, 127, 128, 129}) {
      check({"exact lengths", head_dim, 1, 2, 0, {1, 1, 20, 127, 1, 90, 128}, Rows::kExactLength, double(length)},
            family);
    }
    check({"many blocks", head_dim, 1, 2, 0, std::vector<int>(300, 5), Rows::kRandom, 0.2}, family);
  }
}

}  // namespace

TEST_CASE("forward equals masked attention", "[gpu]") {
  check_shapes(0);
}

TEST_CASE("forward of the sm_80 kernels equals masked attention", "[gpu]") {
  check_shapes(80);
}

TEST_CASE("forward of a long block", "[gpu]") {
  check({"long block", 128, 1, 1, 0, {7000, 320, 864}, Rows::kRandom, 0.1});
}

TEST_CASE("forward in waves of heads", "[gpu]") {
  const std::vector<int> blocks = {256, 300, 129, 400};
  for (const int heads_per_wave : {1, 2, 4}) {
    Case c{"waves", 128, 2, 3, 0, blocks, Rows::kRandom, 0.3};
    c.heads_per_wave = heads_per_wave;
    check(c);
    c.rows = Rows::kAll;
    check(c);
  }
}

TEST_CASE("forward of some rows after others", "[gpu]") {
  for (const int family : {0, 80}) {
    for (const int row_words : {1, 5, 13}) {
      Case c{"rows", 128, 2, 3, 77, {256, 300, 1, 129, 400}, Rows::kRandom, 0.2};
      c.row_words = row_words;
      check(c, family);
      c.rows = Rows::kOwn, c.text = 0, c.head_dim = 64;
      check(c, family);
    }
  }
}

// Few enough for compute-sanitizer's racecheck (docs/attention.md).
TEST_CASE("forward, small cases of both families", "[gpu][sanitizer]") {
  for (const int family : {0, 80}) {
    for (const int head_dim : {128, 64}) {
      check({"ragged", head_dim, 2, 2, 5, {1, 64, 129, 200}, Rows::kRandom, 0.4}, family);
      check({"everything", head_dim, 1, 1, 0, {192, 300}, Rows::kAll, 0, true}, family);
    }
  }
}

TEST_CASE("forward with offsets past 2^31", "[gpu]") {
  Case c{"far apart", 128, 1, 2, 0, {300, 200, 100}, Rows::kRandom, 0.5};
  c.stride_padding = 5'000'000;
  check(c);
}

TEST_CASE("forward refuses bad arguments") {
  Shape shape;
  shape.heads = 2, shape.video_tokens = 1000, shape.blocks = 4;
  const int64_t slots = slots_per_head_capacity(shape);
  CHECK(slots == 4 * 1024);
  // Partial outputs and their lse at least, and not much more.
  const int64_t bytes = forward_workspace_bytes(shape, slots);
  CHECK(bytes >= slots * (128 * 2 + 4));
  CHECK(bytes <= slots * (128 * 2 + 4) + 4096);
  CHECK(forward_workspace_bytes(shape, 2 * slots) > bytes);
  CHECK(forward_workspace_bytes(shape, slots - 1) == 0);
  Shape odd = shape;
  odd.head_dim = 96;
  CHECK(forward_workspace_bytes(odd, slots) == 0);
  Shape rows = shape;  // 32 words in all
  rows.first_word = 30, rows.row_words = 2;
  CHECK(slots_per_head_capacity(rows) == 4 * 128);
  CHECK(forward_workspace_bytes(rows, 4 * 128) >= 4 * 128 * (128 * 2 + 4));
  CHECK(forward_workspace_bytes(rows, 4 * 128 - 1) == 0);
  rows.row_words = 3;
  CHECK(forward_workspace_bytes(rows, slots) == 0);

  // Addresses that are never used: the checks come first.
  char* memory = reinterpret_cast<char*>(uintptr_t(1) << 20);
  ForwardArgs good;
  good.shape = shape;
  int32_t* ints = reinterpret_cast<int32_t*>(memory);
  good.partition = {ints, ints, ints, 250, false};
  good.lists = {reinterpret_cast<uint32_t*>(memory), ints, ints, reinterpret_cast<int64_t*>(memory), ints, slots};
  good.q = good.k_blocks = good.v_blocks = good.out = {memory, 256'000, 256, 128};
  good.lse = reinterpret_cast<float*>(memory);
  good.scale = 0.1f;
  good.partial_slots = slots;
  good.workspace = memory;
  const auto refused = [&](auto&& spoil) {
    ForwardArgs args = good;
    spoil(args);
    return forward(args, nullptr) == cudaErrorInvalidValue;
  };
  if (without_gpu()) CHECK(!refused([](ForwardArgs&) {}));
  CHECK(refused([](ForwardArgs& a) { a.shape.head_dim = 96; }));
  CHECK(refused([](ForwardArgs& a) { a.shape.blocks = 0; }));
  CHECK(refused([](ForwardArgs& a) { a.shape.batch = 0; }));
  CHECK(refused([](ForwardArgs& a) { a.partial_slots -= 1; }));
  CHECK(refused([](ForwardArgs& a) { a.workspace = nullptr; }));
  CHECK(refused([](ForwardArgs& a) { a.workspace = static_cast<char*>(a.workspace) + 16; }));
  CHECK(refused([](ForwardArgs& a) { a.lse = nullptr; }));
  CHECK(refused([](ForwardArgs& a) { a.scale = 0; }));
  CHECK(refused([](ForwardArgs& a) { a.q.data = static_cast<char*>(a.q.data) + 2; }));
  CHECK(refused([](ForwardArgs& a) { a.k_blocks.token_stride += 1; }));
  CHECK(refused([](ForwardArgs& a) { a.out.data = nullptr; }));
  CHECK(refused([](ForwardArgs& a) { a.lists.row = nullptr; }));
  CHECK(refused([](ForwardArgs& a) { a.lists.mask = nullptr; }));
  CHECK(refused([](ForwardArgs& a) { a.lists.row_stride -= 128; }));
  CHECK(refused([](ForwardArgs& a) { a.partition.block_start = nullptr; }));
}

}  // namespace vmoba::kernels::test
