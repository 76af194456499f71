// Gate, select and index kernels against fp64 programs written from the specification, and against the golden vectors.
#include <cuda_runtime.h>
#include <dirent.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "attention/kernels/kernel_test_support.h"
#include "support/catch.h"
#include "support/paths.h"

using namespace vmoba::kernels;
using namespace vmoba::kernels::test;

namespace {

// ---- reference selection -------------------------------------------------------------------------------------------

struct Entry {
  float g;
  int64_t index;  // tie order: block, head, position
  int64_t at;     // in [B, N, C, S]
  bool own;
};

// All pools of a selection; the others of each sorted by gate, descending, ties by index.
struct ReferencePools {
  struct One {
    std::vector<Entry> others;
    double min, den, total, own;
  };
  std::vector<One> pools;
  Shape shape;
  Pool kind;

  ReferencePools(const Shape& s, const TestPartition& part, Pool pool, const std::vector<float>& gate)
      : shape(s), kind(pool) {
    std::map<int64_t, std::vector<Entry>> members;
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t n = 0; n < s.heads; ++n) {
        for (int64_t c = 0; c < s.blocks; ++c) {
          for (int64_t p = 0; p < s.video_tokens; ++p) {
            const int64_t at = ((b * s.heads + n) * s.blocks + c) * s.video_tokens + p;
            const int64_t id = pool == Pool::kQueryHead    ? (b * s.heads + n) * s.video_tokens + p
                               : pool == Pool::kBlock      ? b * s.blocks + c
                               : pool == Pool::kHeadGlobal ? b * s.heads + n
                                                           : b;
            members[id].push_back({gate[at], (c * s.heads + n) * s.video_tokens + p, at, part.block_of[p] == c});
          }
        }
      }
    }
    for (auto& item : members) {
      One one{{}, INFINITY, -INFINITY, 0, 0};
      double max = -INFINITY;
      for (const Entry& e : item.second) one.min = std::min<double>(one.min, e.g), max = std::max<double>(max, e.g);
      one.den = max - one.min <= 1e-6 ? 1.0 : max - one.min;
      for (const Entry& e : item.second) {
        const double x = (double(e.g) - one.min) / one.den;
        one.total += x;
        if (e.own)
          one.own += x;
        else
          one.others.push_back(e);
      }
      std::sort(one.others.begin(), one.others.end(),
                [](const Entry& a, const Entry& b) { return a.g != b.g ? a.g > b.g : a.index < b.index; });
      pools.push_back(std::move(one));
    }
  }

  size_t taken(const One& pool, const SelectParams& params) const {
    const size_t n = pool.others.size();
    if (params.mode == SelectMode::kTopk) {
      const int64_t rows = kind == Pool::kQueryHead    ? 1
                           : kind == Pool::kHeadGlobal ? shape.video_tokens
                                                       : int64_t(shape.heads) * shape.video_tokens;
      return size_t(std::min<int64_t>(n, (params.topk - 1) * rows + std::llround(params.topk_part * double(rows))));
    }
    if (params.tau >= 1) return n;
    const double eps = 1e-6, r = std::max(0.0, params.tau - pool.own / (pool.total + eps));
    double sum = 0;
    for (size_t k = 0; k < n; ++k) {
      sum += (double(pool.others[k].g) - pool.min) / pool.den;
      if (sum / (pool.total + eps) >= r) return k + 1;
    }
    return n;
  }

  // [B, N, C, S], own blocks included.
  std::vector<uint8_t> mask(const TestPartition& part, const SelectParams& params) const {
    std::vector<uint8_t> out(int64_t(shape.batch) * shape.heads * shape.blocks * shape.video_tokens);
    for (size_t at = 0; at < out.size(); ++at) {
      out[at] = part.block_of[at % shape.video_tokens] == int(at / shape.video_tokens % shape.blocks);
    }
    for (const One& pool : pools) {
      const size_t n = taken(pool, params);
      for (size_t k = 0; k < n; ++k) out[pool.others[k].at] = 1;
    }
    return out;
  }
};

// ---- running the kernels -------------------------------------------------------------------------------------------

int64_t words_of(const Shape& s) {
  return s.lists() * s.mask_words();
}

// Mask words [lists, words]; poisons outputs and workspace, checks guards.
std::vector<uint32_t> run_select(const Shape& s, const DevicePartition& part, const SelectParams& params,
                                 const DeviceArray<float>& gate, const DeviceArray<float>* range) {
  DeviceArray<uint32_t> mask(words_of(s));
  DeviceArray<char> workspace(select_workspace_bytes(s, params));
  SelectArgs args;
  args.shape = s, args.partition = part.view, args.params = params;
  args.gate = gate.get(), args.range = range ? range->get() : nullptr;
  args.lists.mask = mask.get(), args.workspace = workspace.get();
  CUDA_OK(select(args, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  REQUIRE(mask.guards_intact());
  REQUIRE(workspace.guards_intact());
  return mask.host();
}

// The words that a [B, N, C, S] mask and the text rules ask for.
std::vector<uint32_t> words_from(const Shape& s, const std::vector<uint8_t>& mask) {
  std::vector<uint32_t> words(words_of(s), 0);
  for (int64_t list = 0; list < s.lists(); ++list) {
    const int64_t bn = list / s.block_count(), c = list % s.block_count();
    for (int64_t p = 0; p < s.tokens(); ++p) {
      const bool video = p < s.video_tokens && c < s.blocks;
      if (!video || mask[(bn * s.blocks + c) * s.video_tokens + p]) {
        words[list * s.mask_words() + p / 32] |= 1u << p % 32;
      }
    }
  }
  return words;
}

int64_t differing_bits(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  int64_t bits = 0;
  for (size_t i = 0; i < a.size(); ++i) bits += __builtin_popcount(a[i] ^ b[i]);
  return bits;
}

void check_index(const Shape& s, const TestPartition& part, const DevicePartition& device,
                 const std::vector<uint32_t>& words) {
  const int64_t heads = int64_t(s.batch) * s.heads, lists = s.lists(), w = s.mask_words(), c1 = s.block_count();
  const int64_t stride = slots_per_head_capacity(s);
  DeviceArray<uint32_t> mask(words);
  DeviceArray<int32_t> word_rank(lists * w), length(lists), row(heads * stride);
  DeviceArray<int64_t> start(heads * (c1 + 1));
  IndexArgs args;
  args.shape = s, args.partition = device.view;
  args.lists = {mask.get(), word_rank.get(), length.get(), start.get(), row.get(), stride};
  CUDA_OK(index(args, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  const auto ranks = word_rank.host(), lengths = length.host(), rows = row.host();
  const auto starts = start.host();
  bool right = true;
  for (int64_t bn = 0; bn < heads; ++bn) {
    int64_t at = 0;
    for (int64_t c = 0; c < c1; ++c) {
      const int64_t list = bn * c1 + c;
      right &= starts[bn * (c1 + 1) + c] == at;
      int32_t n = 0, last = -1;
      for (int64_t i = 0; i < w; ++i) {
        right &= ranks[list * w + i] == n;
        for (int bit = 0; bit < 32; ++bit) {
          if (!(words[list * w + i] >> bit & 1)) continue;
          const int64_t p = i * 32 + bit;
          last = p < s.video_tokens ? part.token_of[p] : int32_t(p);
          right &= rows[bn * stride + at + n] == last;
          ++n;
        }
      }
      right &= lengths[list] == n;
      const int64_t padded = (n + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
      for (int64_t i = n; i < padded; ++i) right &= rows[bn * stride + at + i] == last;
      at += padded;
    }
    right &= starts[bn * (c1 + 1) + c1] == at;
  }
  CHECK(right);
  CHECK((word_rank.guards_intact() && length.guards_intact() && row.guards_intact() && start.guards_intact()));
}

struct GateResult {
  std::vector<float> kbar, gate, range;
  std::vector<uint16_t> k_blocks, v_blocks;
};

GateResult run_gate(const Shape& s, const DevicePartition& part, const TensorView& q, const TensorView& k,
                    const TensorView& v, bool copies) {
  const int64_t heads = int64_t(s.batch) * s.heads, rows = heads * s.blocks;
  DeviceArray<float> kbar(rows * s.head_dim), gate_out(rows * s.video_tokens), range(heads * 2);
  DeviceArray<uint16_t> k_blocks(heads * s.tokens() * s.head_dim), v_blocks(heads * s.tokens() * s.head_dim);
  DeviceArray<char> workspace(gate_workspace_bytes(s));
  GateArgs args;
  args.shape = s, args.partition = part.view;
  args.q = q, args.k = k, args.v = v;
  args.kbar = kbar.get(), args.gate = gate_out.get(), args.range = range.get();
  args.k_blocks = copies ? k_blocks.get() : nullptr;
  args.v_blocks = copies ? v_blocks.get() : nullptr;
  args.workspace = workspace.get();
  CUDA_OK(gate(args, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  CHECK((kbar.guards_intact() && gate_out.guards_intact() && range.guards_intact() && workspace.guards_intact()));
  CHECK((k_blocks.guards_intact() && v_blocks.guards_intact()));
  return {kbar.host(), gate_out.host(), range.host(), k_blocks.host(), v_blocks.host()};
}

// ---- cases ---------------------------------------------------------------------------------------------------------

enum class Gates { kNormal, kLevels, kEqual, kOutlier, kHeavy, kOffset };

std::vector<float> make_gates(Gates kind, int64_t count, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> g(count);
  for (auto& x : g) {
    x = normal(rng);
    if (kind == Gates::kLevels) x = float(int(rng() % 8)) - 3;  // many exact ties, -0 and 0
    if (kind == Gates::kLevels && x == 0 && rng() % 2) x = -0.0f;
    if (kind == Gates::kEqual) x = -2.5f;
    if (kind == Gates::kHeavy) x = (x > 0 ? 1.0f : -1.0f) * std::exp(6 * normal(rng));  // all exponents
    if (kind == Gates::kOffset) x = 1000 + 1e-2f * x;  // few distinct values far from 0
  }
  if (kind == Gates::kOutlier) g[count / 3] = 1e6f, g[count / 2] = -3e5f;
  return g;
}

struct SelectCase {
  int batch, heads, tokens, text, blocks;
  bool ragged;
};

// Small ones, then pools large enough for the refining and tie paths (candidate lists hold max(4096, pool / 32)).
const SelectCase kSmall[] = {{1, 1, 64, 0, 1, false},   {1, 2, 33, 0, 2, true},    {2, 3, 777, 5, 7, true},
                             {1, 2, 1000, 0, 64, true}, {2, 2, 513, 40, 9, false}, {1, 3, 320, 0, 32, false}};
const SelectCase kLarge[] = {{1, 2, 5000, 0, 33, true}, {2, 3, 2051, 13, 16, true}};
const SelectCase kManyBlocks[] = {{1, 2, 700, 0, 130, true},
                                  {1, 2, 650, 3, 325, false},
                                  {1, 1, 500, 0, 100, true},
                                  {1, 1, 900, 0, 600, false},
                                  {1, 1, 1300, 0, 1200, false}};

std::vector<SelectParams> params_for(Pool pool, int blocks) {
  std::vector<SelectParams> out;
  for (double tau : {0.0, 0.1, 0.25, 0.5, 0.9, 1.0}) out.push_back({SelectMode::kThreshold, pool, tau, 1});
  if (pool == Pool::kBlock) return out;
  for (int k : {1, 2, 3, (blocks + 1) / 2, blocks, blocks + 3}) {
    if (k >= 1) out.push_back({SelectMode::kTopk, pool, 0.25, k});
    if (k >= 1 && pool != Pool::kQueryHead) out.push_back({SelectMode::kTopk, pool, 0.25, k, 0.37});
  }
  return out;
}

std::vector<float> range_of(const Shape& s, const std::vector<float>& gate) {
  std::vector<float> range;
  const int64_t n = int64_t(s.blocks) * s.video_tokens;
  for (int64_t bn = 0; bn < int64_t(s.batch) * s.heads; ++bn) {
    const auto ends = std::minmax_element(gate.begin() + bn * n, gate.begin() + (bn + 1) * n);
    range.push_back(*ends.first), range.push_back(*ends.second);
  }
  return range;
}

void check_selection(const SelectCase& c, Gates kind, Pool pool, unsigned seed) {
  std::mt19937 rng(seed);
  Shape s;
  s.batch = c.batch, s.heads = c.heads, s.video_tokens = c.tokens, s.text_tokens = c.text, s.blocks = c.blocks;
  const TestPartition part = make_partition(c.tokens, c.blocks, c.ragged, false, rng);
  const DevicePartition device(part);
  const std::vector<float> gates = make_gates(kind, int64_t(s.batch) * s.heads * s.blocks * s.video_tokens, rng);
  const DeviceArray<float> gate(gates), range(range_of(s, gates));
  const ReferencePools reference(s, part, pool, gates);
  for (const SelectParams& params : params_for(pool, c.blocks)) {
    const std::vector<uint32_t> expected = words_from(s, reference.mask(part, params));
    const std::vector<uint32_t> found = run_select(s, device, params, gate, &range);
    CAPTURE(c.batch, c.heads, c.tokens, c.text, c.blocks, int(kind), int(pool), int(params.mode), params.tau,
            params.topk, params.topk_part);
    CHECK(differing_bits(expected, found) == 0);
    CHECK(differing_bits(expected, run_select(s, device, params, gate, nullptr)) == 0);
    if (kind == Gates::kNormal) check_index(s, part, device, found);
  }
}

constexpr Pool kPools[] = {Pool::kQueryHead, Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall};
constexpr Gates kGates[] = {Gates::kNormal,  Gates::kLevels, Gates::kEqual,
                            Gates::kOutlier, Gates::kHeavy,  Gates::kOffset};

}  // namespace

TEST_CASE("select equals the fp64 program, small pools", "[gpu]") {
  unsigned seed = 1;
  for (const SelectCase& c : kSmall) {
    for (Gates kind : kGates) {
      for (Pool pool : kPools) check_selection(c, kind, pool, seed++);
    }
  }
}

TEST_CASE("select equals the fp64 program, pools that overflow their candidate lists", "[gpu]") {
  unsigned seed = 1000;
  for (const SelectCase& c : kLarge) {
    for (Gates kind : kGates) {
      for (Pool pool : {Pool::kHeadGlobal, Pool::kOverall, Pool::kBlock}) check_selection(c, kind, pool, seed++);
    }
  }
}

TEST_CASE("select equals the fp64 program, more blocks than a thread sorts", "[gpu]") {
  unsigned seed = 2000;
  for (const SelectCase& c : kManyBlocks) {
    for (Gates kind : kGates) check_selection(c, kind, Pool::kQueryHead, seed++);
    check_selection(c, Gates::kNormal, Pool::kBlock, seed++);
    check_selection(c, Gates::kNormal, Pool::kHeadGlobal, seed++);
  }
}

// Few enough for compute-sanitizer's racecheck (docs/attention.md).
TEST_CASE("select, small cases of every pool", "[gpu][sanitizer]") {
  unsigned seed = 3000;
  for (Gates kind : {Gates::kNormal, Gates::kLevels}) {
    for (Pool pool : kPools) {
      check_selection({1, 2, 333, 5, 7, true}, kind, pool, seed++);
      check_selection({1, 1, 500, 0, 100, true}, kind, pool, seed++);
    }
  }
  for (Pool pool : {Pool::kHeadGlobal, Pool::kOverall, Pool::kBlock}) {
    check_selection({1, 1, 5000, 0, 33, true}, Gates::kLevels, pool, seed++);
  }
}

TEST_CASE("select gives the same mask in every run", "[gpu]") {
  std::mt19937 rng(5);
  Shape s;
  s.heads = 3, s.video_tokens = 6007, s.blocks = 24;
  const TestPartition part = make_partition(s.video_tokens, s.blocks, true, false, rng);
  const DevicePartition device(part);
  for (Gates kind : {Gates::kNormal, Gates::kLevels}) {
    const DeviceArray<float> gate(make_gates(kind, int64_t(s.heads) * s.blocks * s.video_tokens, rng));
    for (Pool pool : kPools) {
      const SelectParams params{SelectMode::kThreshold, pool, 0.25, 1};
      const auto first = run_select(s, device, params, gate, nullptr);
      for (int i = 0; i < 25; ++i) CHECK(differing_bits(first, run_select(s, device, params, gate, nullptr)) == 0);
    }
  }
}

TEST_CASE("select ends on NaN and infinite gates and keeps the own blocks", "[gpu]") {
  std::mt19937 rng(6);
  Shape s;
  s.heads = 2, s.video_tokens = 3000, s.blocks = 40;
  const TestPartition part = make_partition(s.video_tokens, s.blocks, true, false, rng);
  const DevicePartition device(part);
  std::vector<float> gates = make_gates(Gates::kNormal, int64_t(s.heads) * s.blocks * s.video_tokens, rng);
  const SelectParams own_only{SelectMode::kTopk, Pool::kHeadGlobal, 0.25, 1};
  const auto own = run_select(s, device, own_only, DeviceArray<float>(gates), nullptr);
  for (float special : {NAN, INFINITY, -INFINITY}) {
    for (int every : {1, 2, 1000}) {
      std::vector<float> bad = gates;
      for (size_t i = 0; i < bad.size(); i += every) bad[i] = special;
      const DeviceArray<float> gate(bad);
      for (Pool pool : kPools) {
        for (const SelectParams& params : params_for(pool, s.blocks)) {
          const auto mask = run_select(s, device, params, gate, nullptr);
          bool kept = true;
          for (size_t i = 0; i < mask.size(); ++i) kept &= (mask[i] & own[i]) == own[i];
          CHECK(kept);
        }
      }
    }
  }
  // A few NaNs only drop themselves: top-k still takes as many as asked for.
  std::vector<float> few = gates;
  for (size_t i = 0; i < few.size(); i += 1000) few[i] = NAN;
  const auto mask =
      run_select(s, device, {SelectMode::kTopk, Pool::kHeadGlobal, 0, 4}, DeviceArray<float>(few), nullptr);
  int64_t bits = 0;
  for (uint32_t w : mask) bits += __builtin_popcount(w);
  CHECK(bits == int64_t(s.heads) * s.video_tokens * 4);
}

// ---- gate ----------------------------------------------------------------------------------------------------------

namespace {

struct GateCase {
  int batch, heads, head_dim, tokens, text, blocks;
  bool identity;
};

const GateCase kGateCases[] = {
    {1, 2, 128, 1000, 0, 8, false}, {2, 3, 128, 777, 19, 7, false}, {1, 2, 64, 515, 0, 64, true},
    {1, 1, 64, 300, 3, 17, false},  {2, 2, 32, 200, 0, 5, false},   {1, 2, 48, 331, 0, 30, false},
    {1, 3, 96, 260, 8, 70, false},  {1, 1, 16, 40, 0, 1, true},     {1, 2, 128, 1437, 2, 61, false},
    {1, 1, 128, 512, 0, 128, true}, {1, 1, 112, 900, 0, 130, false}};

struct GateErrors {
  double kernel = 0, plain = 0, size = 0;  // rms against fp64
};

// Checks kbar, gate, range and the copies of one (b, n).
GateErrors check_head(const Shape& s, const TestPartition& part, const std::vector<uint16_t>& q,
                      const std::vector<uint16_t>& k, const GateResult& r, int64_t bn, int64_t token_stride) {
  const int64_t b = bn / s.heads, n = bn % s.heads, d_count = s.head_dim;
  const auto at = [&](int64_t token) { return (b * s.tokens() + token) * token_stride + n * d_count; };
  GateErrors e;
  float least = INFINITY, greatest = -INFINITY;
  double worst_mean = 0;
  for (int c = 0; c < s.blocks; ++c) {
    std::vector<double> mean(d_count, 0);
    for (int p = part.block_start[c]; p < part.block_start[c + 1]; ++p) {
      for (int64_t d = 0; d < d_count; ++d) mean[d] += from_bf16(k[at(part.token_of[p]) + d]);
    }
    for (int64_t d = 0; d < d_count; ++d) {
      mean[d] /= part.block_start[c + 1] - part.block_start[c];
      worst_mean = std::max(worst_mean, std::abs(mean[d] - r.kbar[(bn * s.blocks + c) * d_count + d]));
    }
    for (int p = 0; p < s.video_tokens; ++p) {
      double exact = 0;
      float plain = 0;
      for (int64_t d = 0; d < d_count; ++d) {
        const float x = from_bf16(q[at(part.token_of[p]) + d]);
        exact += x * mean[d];
        plain += x * float(mean[d]);
      }
      const float found = r.gate[(bn * s.blocks + c) * s.video_tokens + p];
      least = std::min(least, found), greatest = std::max(greatest, found);
      e.kernel += (found - exact) * (found - exact);
      e.plain += (plain - exact) * (plain - exact);
      e.size += exact * exact;
    }
  }
  CHECK(worst_mean < 1e-6);  // values of order 1
  CHECK((r.range[2 * bn] == least && r.range[2 * bn + 1] == greatest));
  return e;
}

}  // namespace

TEST_CASE("gate has fp32 accuracy, and the copies are exact", "[gpu]") {
  std::mt19937 rng(7);
  for (const GateCase& c : kGateCases) {
    CAPTURE(c.batch, c.heads, c.head_dim, c.tokens, c.text, c.blocks);
    Shape s;
    s.batch = c.batch, s.heads = c.heads, s.head_dim = c.head_dim, s.video_tokens = c.tokens, s.text_tokens = c.text;
    s.blocks = c.blocks;
    const TestPartition part = make_partition(c.tokens, c.blocks, true, c.identity, rng);
    const DevicePartition device(part);
    // One [B, S+X, 3, N, D] tensor: q, k, v strided.
    const int64_t row = int64_t(s.heads) * s.head_dim, stride = 3 * row;
    const std::vector<uint16_t> qkv = random_bf16(int64_t(s.batch) * s.tokens() * stride, 1.0f, rng);
    const DeviceArray<uint16_t> packed(qkv);
    const auto view = [&](int i) {
      return TensorView{packed.get() + i * row, s.tokens() * stride, stride, int64_t(s.head_dim)};
    };
    const GateResult r = run_gate(s, device, view(0), view(1), view(2), true);
    const std::vector<uint16_t> k(qkv.begin() + row, qkv.end()), v(qkv.begin() + 2 * row, qkv.end());
    for (int64_t bn = 0; bn < int64_t(s.batch) * s.heads; ++bn) {
      const GateErrors e = check_head(s, part, qkv, k, r, bn, stride);
      const double kernel = std::sqrt(e.kernel / e.size), plain = std::sqrt(e.plain / e.size);
      INFO("relative rms error: kernel " << kernel << ", plain fp32 " << plain);
      CHECK(kernel <= 2 * plain + 6e-8);  // floor: half an fp32 ulp
    }
    bool copied = true;
    for (int64_t bn = 0; bn < int64_t(s.batch) * s.heads; ++bn) {
      for (int64_t p = 0; p < s.tokens(); ++p) {
        const int64_t token = p < s.video_tokens ? part.token_of[p] : p;
        const int64_t from = (bn / s.heads * s.tokens() + token) * stride + bn % s.heads * s.head_dim;
        for (int64_t d = 0; d < s.head_dim; ++d) {
          copied &= r.k_blocks[(bn * s.tokens() + p) * s.head_dim + d] == k[from + d];
          copied &= r.v_blocks[(bn * s.tokens() + p) * s.head_dim + d] == v[from + d];
        }
      }
    }
    CHECK(copied);
    const GateResult plain = run_gate(s, device, view(0), view(1), view(2), false);
    CHECK(std::memcmp(plain.gate.data(), r.gate.data(), r.gate.size() * 4) == 0);
    CHECK((plain.k_blocks[0] == 0xFFFF && plain.v_blocks.back() == 0xFFFF));
  }
}

// ---- golden vectors ------------------------------------------------------------------------------------------------

namespace {

struct SafeTensors {
  nlohmann::json header;
  std::vector<char> data;

  explicit SafeTensors(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    uint64_t size = 0;
    file.read(reinterpret_cast<char*>(&size), 8);
    std::string text(size, ' ');
    file.read(&text[0], int64_t(size));
    header = nlohmann::json::parse(text);
    data.assign(std::istreambuf_iterator<char>(file), {});
  }
  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const auto& offsets = header.at(name).at("data_offsets");
    const int64_t begin = offsets[0], end = offsets[1];
    std::vector<T> out((end - begin) / sizeof(T));
    std::memcpy(out.data(), data.data() + begin, end - begin);
    return out;
  }
  std::string meta(const std::string& name) const {
    const auto& m = header.at("__metadata__");
    return m.contains(name) ? m.at(name).get<std::string>() : "";
  }
};

std::vector<int> numbers(std::string text) {
  for (char& ch : text) {
    if (ch == 'x' || ch == ',') ch = ' ';
  }
  std::vector<int> out;
  size_t used = 0;
  for (; !text.empty(); text = text.substr(std::min(used + 1, text.size()))) out.push_back(std::stoi(text, &used));
  return out;
}

// Block of a coordinate: ceil(length / chunk) blocks, sizes differing by at most one, the larger ones first.
int block_of_coordinate(int at, int length, int chunk) {
  const int n = (length + chunk - 1) / chunk, small = length / n, larger = length % n;
  return at < larger * (small + 1) ? at / (small + 1) : larger + (at - larger * (small + 1)) / small;
}

TestPartition golden_partition(const std::vector<int>& grid, std::vector<int> chunk) {
  if (chunk.size() == 1) chunk = {chunk[0], grid[1], grid[2]};
  if (chunk.size() == 2) chunk = {grid[0], chunk[0], chunk[1]};
  int count[3];
  for (int i = 0; i < 3; ++i) count[i] = (grid[i] + chunk[i] - 1) / chunk[i];
  std::vector<std::vector<int32_t>> members(count[0] * count[1] * count[2]);
  int token = 0;
  for (int t = 0; t < grid[0]; ++t) {
    for (int h = 0; h < grid[1]; ++h) {
      for (int w = 0; w < grid[2]; ++w) {
        const int at[3] = {t, h, w};
        int block = 0;
        for (int i = 0; i < 3; ++i) block = block * count[i] + block_of_coordinate(at[i], grid[i], chunk[i]);
        members[block].push_back(token++);
      }
    }
  }
  TestPartition p;
  p.identity = false;
  p.block_start.push_back(0);
  for (size_t c = 0; c < members.size(); ++c) {
    p.token_of.insert(p.token_of.end(), members[c].begin(), members[c].end());
    p.block_of.insert(p.block_of.end(), members[c].size(), int32_t(c));
    p.block_start.push_back(int32_t(p.token_of.size()));
    p.max_block = std::max(p.max_block, int(members[c].size()));
  }
  return p;
}

// [B, C, N, S] to [B, N, C, S].
template <typename T>
std::vector<T> heads_first(const std::vector<T>& x, const Shape& s) {
  std::vector<T> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t p = i % s.video_tokens, n = i / s.video_tokens % s.heads;
    const int64_t c = i / s.video_tokens / s.heads % s.blocks, b = i / s.video_tokens / s.heads / s.blocks;
    out[((b * s.heads + n) * s.blocks + c) * s.video_tokens + p] = x[i];
  }
  return out;
}

void check_golden(const std::string& path) {
  const SafeTensors file(path);
  INFO(path);
  const std::map<std::string, Pool> pools = {{"query_head", Pool::kQueryHead},
                                             {"block", Pool::kBlock},
                                             {"head_global", Pool::kHeadGlobal},
                                             {"overall", Pool::kOverall}};
  const std::vector<int> grid = numbers(file.meta("grid"));
  const TestPartition part = golden_partition(grid, numbers(file.meta("chunk")));
  const DevicePartition device(part);
  Shape s;
  s.batch = std::stoi(file.meta("batch")), s.heads = std::stoi(file.meta("heads"));
  s.head_dim = std::stoi(file.meta("head_dim")), s.video_tokens = grid[0] * grid[1] * grid[2];
  s.text_tokens = file.meta("text_tokens").empty() ? 0 : std::stoi(file.meta("text_tokens"));
  s.blocks = part.blocks();
  SelectParams params;
  params.pool = pools.at(file.meta("pool"));
  params.mode = file.meta("select_mode") == "topk" ? SelectMode::kTopk : SelectMode::kThreshold;
  if (params.mode == SelectMode::kTopk)
    params.topk = std::stoi(file.meta("topk"));
  else
    params.tau = std::stod(file.meta("tau"));
  REQUIRE(std::stoi(file.meta("blocks")) == s.blocks);

  const std::vector<float> gates = heads_first(file.get<float>("gate"), s);
  const std::vector<uint32_t> expected = words_from(s, heads_first(file.get<uint8_t>("mask"), s));
  CHECK(differing_bits(expected, run_select(s, device, params, DeviceArray<float>(gates), nullptr)) == 0);

  const DeviceArray<uint16_t> q(file.get<uint16_t>("q")), k(file.get<uint16_t>("k")), v(file.get<uint16_t>("v"));
  const GateResult r = run_gate(s, device, view_of(q.get(), s), view_of(k.get(), s), view_of(v.get(), s), true);
  double worst = 0, greatest = 0;
  for (size_t i = 0; i < gates.size(); ++i) {
    worst = std::max(worst, double(std::abs(gates[i] - r.gate[i])));
    greatest = std::max(greatest, double(std::abs(gates[i])));
  }
  CHECK(worst <= 1e-6 * greatest);
  const DeviceArray<float> range(r.range);
  const auto found = run_select(s, device, params, DeviceArray<float>(r.gate), &range);
  CHECK(differing_bits(expected, found) == 0);
  check_index(s, part, device, found);
}

}  // namespace

TEST_CASE("golden vectors: gate to mask, and q, k to mask", "[gpu]") {
  const std::string folder = vmoba::test::fixtures() + "/golden";
  std::vector<std::string> paths;
  DIR* dir = opendir(folder.c_str());
  REQUIRE(dir != nullptr);
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    const bool of_tokens = name.rfind("beyond_", 0) != 0;  // tiles choose by gates of their own
    if (of_tokens && name.size() > 12 && name.substr(name.size() - 12) == ".safetensors")
      paths.push_back(folder + "/" + name);
  }
  closedir(dir);
  std::sort(paths.begin(), paths.end());
  REQUIRE(paths.size() >= 30);
  for (const std::string& path : paths) check_golden(path);
}

// ---- without a GPU -------------------------------------------------------------------------------------------------

TEST_CASE("gate, select and index refuse bad arguments before touching the GPU") {
  // An address that is never used: the checks come first.
  char* memory = reinterpret_cast<char*>(uintptr_t(1) << 20);
  const int32_t* ints = reinterpret_cast<const int32_t*>(memory);
  Shape s;
  s.heads = 2, s.video_tokens = 100, s.blocks = 4;
  const PartitionView partition = {ints, ints, ints, 25, false};

  SelectArgs select_args;
  select_args.shape = s;
  select_args.partition = partition;
  select_args.gate = reinterpret_cast<const float*>(memory);
  select_args.lists.mask = reinterpret_cast<uint32_t*>(memory);
  select_args.workspace = memory;
  const auto select_refused = [&](auto&& spoil) {
    SelectArgs args = select_args;
    spoil(args);
    return select(args, nullptr) == cudaErrorInvalidValue;
  };
  if (without_gpu()) CHECK(!select_refused([](SelectArgs&) {}));
  CHECK(select_refused([](SelectArgs& a) { a.params = {SelectMode::kTopk, Pool::kBlock, 0.25, 2}; }));
  CHECK(select_refused([](SelectArgs& a) { a.params = {SelectMode::kTopk, Pool::kOverall, 0.25, 0}; }));
  for (double part : {-0.1, 1.0, double(NAN)})
    CHECK(select_refused([&](SelectArgs& a) { a.params = {SelectMode::kTopk, Pool::kOverall, 0.25, 2, part}; }));
  CHECK(select_refused([](SelectArgs& a) { a.params = {SelectMode::kTopk, Pool::kQueryHead, 0.25, 2, 0.5}; }));
  for (double tau : {-0.1, double(NAN)})
    CHECK(select_refused([&](SelectArgs& a) { a.params = {SelectMode::kThreshold, Pool::kOverall, tau, 1}; }));
  CHECK(select_refused([](SelectArgs& a) { a.gate = nullptr; }));
  CHECK(select_refused([](SelectArgs& a) { a.partition.block_of = nullptr; }));
  CHECK(select_refused([](SelectArgs& a) { a.workspace = static_cast<char*>(a.workspace) + 16; }));

  GateArgs gate_args;
  gate_args.shape = s;
  gate_args.partition = partition;
  gate_args.q = gate_args.k = gate_args.v = {memory, 25'600, 256, 128};
  gate_args.kbar = gate_args.gate = reinterpret_cast<float*>(memory);
  gate_args.workspace = memory;
  const auto gate_refused = [&](auto&& spoil) {
    GateArgs args = gate_args;
    spoil(args);
    return gate(args, nullptr) == cudaErrorInvalidValue;
  };
  if (without_gpu()) CHECK(!gate_refused([](GateArgs&) {}));
  CHECK(gate_refused([](GateArgs& a) { a = GateArgs(); }));
  CHECK(gate_refused([](GateArgs& a) { a.shape.head_dim = 72; }));
  CHECK(gate_refused([](GateArgs& a) { a.k.token_stride += 1; }));
  CHECK(gate_refused([](GateArgs& a) { a.q.data = static_cast<char*>(a.q.data) + 2; }));
  CHECK(gate_refused([&](GateArgs& a) { a.v_blocks = memory, a.v.data = nullptr; }));
  CHECK(gate_refused([](GateArgs& a) { a.partition.max_block_tokens = 0; }));
  CHECK(gate_refused([](GateArgs& a) { a.workspace = nullptr; }));

  IndexArgs index_args;
  index_args.shape = s;
  index_args.partition = partition;
  int32_t* lists = reinterpret_cast<int32_t*>(memory);
  index_args.lists = {reinterpret_cast<uint32_t*>(memory), lists, lists,
                      reinterpret_cast<int64_t*>(memory),  lists, slots_per_head_capacity(s)};
  const auto index_refused = [&](auto&& spoil) {
    IndexArgs args = index_args;
    spoil(args);
    return index(args, nullptr) == cudaErrorInvalidValue;
  };
  if (without_gpu()) CHECK(!index_refused([](IndexArgs&) {}));
  CHECK(index_refused([](IndexArgs& a) { a.lists = SlotLists(); }));
  CHECK(index_refused([](IndexArgs& a) { a.lists.row_stride -= 128; }));
  CHECK(index_refused([](IndexArgs& a) { a.lists.word_rank = nullptr; }));
  CHECK(index_refused([](IndexArgs& a) { a.partition.token_of = nullptr; }));
}

TEST_CASE("workspaces grow with the problem and stay far below the gates") {
  Shape s;
  s.heads = 12, s.video_tokens = 55296, s.blocks = 64;
  const int64_t gate_bytes = int64_t(s.heads) * s.blocks * s.video_tokens * 4;
  for (Pool pool : {Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall}) {
    const SelectParams params{SelectMode::kThreshold, pool, 0.25, 1};
    Shape twice = s;
    twice.batch = 2;
    CHECK(select_workspace_bytes(s, params) > 0);
    CHECK(select_workspace_bytes(s, params) < gate_bytes / 8);
    CHECK(select_workspace_bytes(twice, params) > select_workspace_bytes(s, params));
  }
  CHECK(gate_workspace_bytes(s) < gate_bytes / 8);
  CHECK(select_workspace_bytes(s, {SelectMode::kThreshold, Pool::kQueryHead, 0.25, 1}) == 0);
}
