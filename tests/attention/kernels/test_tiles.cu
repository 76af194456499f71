// Attention by query tiles, forward and backward, against plain loops in double precision on the host. A second run of
// the same loops with every intermediate rounded to bf16 gives the error that is allowed, twice over.
// Large scores count as rounded to fp32, since bf16 would move them by whole units.
#include "attention/kernels/tiles.h"
#include "kernel_test_support.h"
#include "support/catch.h"

namespace vmoba::kernels::test {
namespace {

struct Case {
  const char* name;
  std::vector<int> blocks;  // tokens of each
  int tile_pieces = 0;      // pieces of a query tile; 0: a tile is a block
  int head_dim = 128, batch = 1, heads = 1, text = 0;
  double density = 0.3;
  bool means = false;
  bool pairs = false;  // pieces of a tile and of a block go two by two
  // With pairs and head size 128: longer pieces of keys than of rows; steps of several pieces of rows, whole groups.
  bool long_keys = false, packed = false;
  int strip_rows = 0;     // packed, where tiles are blocks
  float qk_scale = 1;     // standard deviation of q and k
  bool outliers = false;  // two channels of q and k are 20 times as large
  int family = 0;         // of the kernels; 80: without pairs
  int piece_rows = kPieceRows;
};

// The tables of a partition cut into blocks, tiles and pieces.
struct HostTables {
  TileShape shape;
  std::vector<int32_t> token_of, piece_begin, piece_block, piece_tile, block_begin, tile_block, row_pair, key_pair,
      key_begin, key_block, strip_begin, strip_block;
};

// First pieces of runs of at most two pieces of one owner, and the end of all.
std::vector<int32_t> pairs_of(const std::vector<int32_t>& owner, int pieces) {
  std::vector<int32_t> first;
  const auto owner_of = [&](int piece) { return piece < int(owner.size()) ? owner[piece] : -1; };
  for (int piece = 0; piece < pieces;) {
    first.push_back(piece);
    piece += piece + 1 < pieces && owner_of(piece) == owner_of(piece + 1) ? 2 : 1;
  }
  first.push_back(pieces);
  return first;
}

HostTables tables_of(const Case& c, std::mt19937& rng) {
  HostTables t;
  TileShape& s = t.shape;
  s.batch = c.batch, s.heads = c.heads, s.head_dim = c.head_dim, s.text_tokens = c.text;
  s.blocks = int(c.blocks.size()), s.tiles = 0, s.video_pieces = 0;
  int position = 0;
  for (int block = 0; block < s.blocks; ++block) {
    t.block_begin.push_back(position);
    const int end = position + c.blocks[block];
    for (int piece = 0; position < end; ++piece) {
      if (c.tile_pieces == 0 ? piece == 0 : piece % c.tile_pieces == 0) t.tile_block.push_back(block), ++s.tiles;
      t.piece_begin.push_back(position);
      t.piece_block.push_back(block);
      t.piece_tile.push_back(s.tiles - 1);
      position = std::min(end, position + c.piece_rows);
    }
  }
  t.block_begin.push_back(position);
  s.video_tokens = position, s.video_pieces = int(t.piece_block.size());
  for (; position < s.tokens(); position = std::min(s.tokens(), position + kPieceRows))
    t.piece_begin.push_back(position);
  t.piece_begin.push_back(s.tokens());
  t.row_pair = pairs_of(t.piece_tile, s.pieces()), t.key_pair = pairs_of(t.piece_block, s.pieces());
  if (c.pairs) s.row_pairs = int(t.row_pair.size()) - 1, s.key_pairs = int(t.key_pair.size()) - 1;
  if (c.long_keys) s.key_rows = kLongPieceRows;
  s.packed = c.packed;
  for (int block = 0; block < s.blocks; ++block) {
    const int step = c.long_keys ? s.key_rows : c.piece_rows;
    for (int p = t.block_begin[block]; p < t.block_begin[block + 1]; p += step)
      t.key_begin.push_back(p), t.key_block.push_back(block);
  }
  s.video_key_pieces = int(t.key_block.size());
  for (int p = s.video_tokens; p < s.tokens(); p += s.key_rows) t.key_begin.push_back(p);
  t.key_begin.push_back(s.tokens());
  if (c.strip_rows > 0) {
    for (int block = 0; block < s.blocks; ++block) {
      for (int p = t.block_begin[block]; p < t.block_begin[block + 1]; p += c.strip_rows)
        t.strip_begin.push_back(p), t.strip_block.push_back(block);
    }
    s.strip_rows = c.strip_rows, s.video_strips = int(t.strip_block.size());
    for (int p = s.video_tokens; p < s.tokens(); p += c.strip_rows) t.strip_begin.push_back(p);
    t.strip_begin.push_back(s.tokens());
  }
  for (int i = 0; i < s.video_tokens; ++i) t.token_of.push_back(i);
  std::shuffle(t.token_of.begin(), t.token_of.end(), rng);
  return t;
}

// All values in the order [b * N + n][position or token][column], as floats that bf16 holds exactly.
struct Inputs {
  std::vector<float> q, k, v, dout;  // permuted
  std::vector<float> mean_k, mean_v, bias;
  std::vector<uint8_t> mask;  // [heads, U, C]
};

struct Results {
  std::vector<double> out, lse, dq, dk, dv, dbias;
  double dbias_terms = 0;  // root of the sum of squares of what dbias adds up
};

double rounded(double x, bool bf16) {
  return bf16 ? double(from_bf16(to_bf16(float(x)))) : x;
}

// The gradients of a mean's key and value are spread over the block's tokens.
Results reference(const Case& c, const HostTables& t, const Inputs& in, bool bf16) {
  const TileShape& s = t.shape;
  const int heads = s.batch * s.heads, rows = s.tokens(), dim = s.head_dim, means = c.means ? s.blocks : 0;
  const double scale = 1 / std::sqrt(double(dim));
  const bool fp32_scores = c.qk_scale > 1 || c.outliers;
  Results r;
  for (auto* x : {&r.out, &r.dq, &r.dk, &r.dv}) x->assign(size_t(heads) * rows * dim, 0);
  r.lse.assign(size_t(heads) * rows, 0);
  r.dbias.assign(size_t(heads) * s.mean_pieces(), 0);
  std::vector<int> tile_of(rows, -1), block_of(rows, -1);
  for (int piece = 0; piece < s.video_pieces; ++piece) {
    for (int p = t.piece_begin[piece]; p < t.piece_begin[piece + 1]; ++p)
      tile_of[p] = t.piece_tile[piece], block_of[p] = t.piece_block[piece];
  }
  for (int head = 0; head < heads; ++head) {
    const auto row = [&](const std::vector<float>& x, int p) { return x.data() + (size_t(head) * rows + p) * dim; };
    const auto mean = [&](const std::vector<float>& x, int m) {
      return x.data() + (size_t(head) * s.blocks + m) * dim;
    };
    std::vector<std::vector<double>> mean_dk(means, std::vector<double>(dim)), mean_dv = mean_dk;
    for (int i = 0; i < rows; ++i) {
      const uint8_t* mask =
          tile_of[i] < 0 ? nullptr : in.mask.data() + (size_t(head) * s.tiles + tile_of[i]) * s.blocks;
      struct Key {
        const float *k, *v;
        double *dk, *dv;
        double bias;
        int mean;
      };
      std::vector<Key> keys;
      for (int j = 0; j < rows; ++j) {
        if (mask == nullptr || block_of[j] < 0 || mask[block_of[j]])
          keys.push_back({row(in.k, j), row(in.v, j), &r.dk[(size_t(head) * rows + j) * dim],
                          &r.dv[(size_t(head) * rows + j) * dim], 0, -1});
      }
      for (int m = 0; mask != nullptr && m < means; ++m) {
        if (!mask[m])
          keys.push_back({mean(in.mean_k, m), mean(in.mean_v, m), mean_dk[m].data(), mean_dv[m].data(),
                          in.bias[size_t(head) * s.blocks + m], m});
      }
      std::vector<double> score(keys.size()), probability(keys.size());
      double maximum = -INFINITY, sum = 0;
      for (size_t j = 0; j < keys.size(); ++j) {
        for (int d = 0; d < dim; ++d) score[j] += double(row(in.q, i)[d]) * keys[j].k[d];
        score[j] = score[j] * scale + keys[j].bias;
        score[j] = bf16 && fp32_scores ? double(float(score[j])) : rounded(score[j], bf16);
        maximum = std::max(maximum, score[j]);
      }
      for (double x : score) sum += std::exp(x - maximum);
      r.lse[size_t(head) * rows + i] = maximum + std::log(sum);
      double* out = &r.out[(size_t(head) * rows + i) * dim];
      for (size_t j = 0; j < keys.size(); ++j) {
        probability[j] = rounded(std::exp(score[j] - maximum) / sum, bf16);
        for (int d = 0; d < dim; ++d) out[d] += probability[j] * keys[j].v[d];
      }
      double delta = 0;
      for (int d = 0; d < dim; ++d) out[d] = rounded(out[d], bf16), delta += out[d] * row(in.dout, i)[d];
      for (size_t j = 0; j < keys.size(); ++j) {
        double dp = 0;
        for (int d = 0; d < dim; ++d) dp += double(row(in.dout, i)[d]) * keys[j].v[d];
        const double ds = rounded(probability[j] * (rounded(dp, bf16) - delta), bf16);
        for (int d = 0; d < dim; ++d) {
          r.dq[(size_t(head) * rows + i) * dim + d] += scale * ds * keys[j].k[d];
          keys[j].dk[d] += scale * ds * row(in.q, i)[d];
          keys[j].dv[d] += probability[j] * row(in.dout, i)[d];
        }
        if (keys[j].mean < 0) continue;
        r.dbias[size_t(head) * s.mean_pieces() + keys[j].mean / kPieceRows] += ds;
        r.dbias_terms = std::hypot(r.dbias_terms, ds);
      }
    }
    for (int j = 0; j < s.video_tokens && means > 0; ++j) {
      for (int d = 0; d < dim; ++d) {
        r.dk[(size_t(head) * rows + j) * dim + d] += mean_dk[block_of[j]][d] / c.blocks[block_of[j]];
        r.dv[(size_t(head) * rows + j) * dim + d] += mean_dv[block_of[j]][d] / c.blocks[block_of[j]];
      }
    }
  }
  for (auto* x : {&r.out, &r.dq, &r.dk, &r.dv})
    for (double& value : *x) value = rounded(value, bf16);
  return r;
}

std::vector<float> drawn(int64_t count, float scale, std::mt19937& rng) {
  std::vector<float> out;
  for (const uint16_t x : random_bf16(count, scale, rng)) out.push_back(from_bf16(x));
  return out;
}

std::vector<uint16_t> as_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> out;
  for (const float x : values) out.push_back(to_bf16(x));
  return out;
}

Inputs inputs_of(const Case& c, const HostTables& t, std::mt19937& rng) {
  const TileShape& s = t.shape;
  const int64_t heads = int64_t(s.batch) * s.heads, values = heads * s.tokens() * s.head_dim;
  Inputs in;
  in.q = drawn(values, c.qk_scale, rng), in.k = drawn(values, c.qk_scale, rng), in.v = drawn(values, 1, rng);
  in.dout = drawn(values, 1, rng);
  for (int64_t at = 0; c.outliers && at < values; ++at) {
    const int64_t channel = at % s.head_dim;
    if (channel != 3 && channel != 40) continue;
    for (float* x : {&in.q[size_t(at)], &in.k[size_t(at)]}) *x = from_bf16(to_bf16(20 * *x));
  }
  in.mean_k = drawn(heads * s.blocks * s.head_dim, 0.3f, rng);
  in.mean_v = drawn(heads * s.blocks * s.head_dim, 0.3f, rng);
  for (int64_t i = 0; i < heads * s.blocks; ++i) in.bias.push_back(std::log(float(c.blocks[i % s.blocks])) + 0.1f);
  std::bernoulli_distribution taken(c.density);
  for (int64_t head = 0; head < heads; ++head) {
    for (int tile = 0; tile < s.tiles; ++tile) {
      for (int block = 0; block < s.blocks; ++block) in.mask.push_back(t.tile_block[tile] == block || taken(rng));
    }
  }
  return in;
}

// [heads][position] to the [B, Z, N, D] order of tensors, and back.
template <typename T>
std::vector<T> to_tensor(const HostTables& t, const std::vector<T>& permuted) {
  const TileShape& s = t.shape;
  std::vector<T> out(permuted.size());
  for (int head = 0; head < s.batch * s.heads; ++head) {
    for (int p = 0; p < s.tokens(); ++p) {
      const int64_t token = p < s.video_tokens ? t.token_of[p] : p;
      const int64_t target = ((int64_t(head / s.heads) * s.tokens() + token) * s.heads + head % s.heads) * s.head_dim;
      std::copy_n(permuted.begin() + (int64_t(head) * s.tokens() + p) * s.head_dim, s.head_dim, out.begin() + target);
    }
  }
  return out;
}

std::vector<double> as_doubles(const std::vector<uint16_t>& values) {
  std::vector<double> out;
  for (const uint16_t x : values) out.push_back(from_bf16(x));
  return out;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

// `more`: error that is allowed beside.
void check_close(const char* what, const std::vector<double>& found, const std::vector<double>& exact,
                 const std::vector<double>& plain, double more = 0) {
  const double norm = distance(exact, std::vector<double>(exact.size(), 0));
  const double error = distance(found, exact), allowed = 2 * distance(plain, exact) + 1e-3 * norm + more;
  INFO(what << ": error " << error / norm << ", allowed " << allowed / norm);
  CHECK(error <= allowed);
}

TensorView tensor_view(void* data, const TileShape& s) {
  const int64_t row = int64_t(s.heads) * s.head_dim;
  return {data, s.tokens() * row, row, s.head_dim};
}

// Rows that attend each block and, where there is any, the text, [heads, E].
std::vector<int32_t> attending_rows(const HostTables& t, const std::vector<uint8_t>& mask) {
  const TileShape& s = t.shape;
  std::vector<int32_t> rows(size_t(s.batch) * s.heads * s.key_blocks(), s.text_tokens);
  for (int head = 0; head < s.batch * s.heads; ++head) {
    if (s.text_tokens > 0) rows[size_t(head) * s.key_blocks() + s.blocks] = s.tokens();
    for (int piece = 0; piece < s.video_pieces; ++piece) {
      for (int block = 0; block < s.blocks; ++block) {
        if (mask[(size_t(head) * s.tiles + t.piece_tile[piece]) * s.blocks + block])
          rows[size_t(head) * s.key_blocks() + block] += t.piece_begin[piece + 1] - t.piece_begin[piece];
      }
    }
  }
  return rows;
}

bool can_be_packed(const Case& c) {
  const auto whole = [](int rows) { return rows % kGroupRows == 0; };
  return c.head_dim == 128 && std::all_of(c.blocks.begin(), c.blocks.end(), whole);
}

void run_case(const Case& c) {
  INFO(c.name << ", pairs " << c.pairs << ", long keys " << c.long_keys << ", packed " << c.packed << ", strips of "
              << c.strip_rows << ", family " << c.family << ", pieces of " << c.piece_rows);
  std::mt19937 rng(uint32_t(c.blocks.size()) * 7919 + uint32_t(c.text));
  const HostTables t = tables_of(c, rng);
  const TileShape& s = t.shape;
  const Inputs in = inputs_of(c, t, rng);
  const Results exact = reference(c, t, in, false), plain = reference(c, t, in, true);

  const DeviceArray<int32_t> token_of(t.token_of), piece_begin(t.piece_begin), piece_block(t.piece_block),
      piece_tile(t.piece_tile), block_begin(t.block_begin), tile_block(t.tile_block), row_pair(t.row_pair),
      key_pair(t.key_pair), key_begin(t.key_begin), key_block(t.key_block), strip_begin(t.strip_begin),
      strip_block(t.strip_block);
  const TilePartition partition{token_of.get(),    piece_begin.get(), piece_block.get(), piece_tile.get(),
                                block_begin.get(), tile_block.get(),  row_pair.get(),    key_pair.get(),
                                key_begin.get(),   key_block.get(),   strip_begin.get(), strip_block.get()};
  const int64_t heads = int64_t(s.batch) * s.heads, values = heads * s.tokens() * s.head_dim;
  const DeviceArray<uint16_t> q(to_tensor(t, as_bf16(in.q))), k(to_tensor(t, as_bf16(in.k))),
      v(to_tensor(t, as_bf16(in.v))), dout(to_tensor(t, as_bf16(in.dout)));
  DeviceArray<uint16_t> q_rows(values), k_rows(values), v_rows(values), out(values), dq(values), dk(values), dv(values);
  const DeviceArray<uint16_t> mean_k(as_bf16(in.mean_k)), mean_v(as_bf16(in.mean_v));
  const DeviceArray<float> bias(in.bias);
  const DeviceArray<uint8_t> mask(in.mask);
  DeviceArray<uint32_t> next(2);
  DeviceArray<uint16_t> key_list(heads * s.tiles * s.key_pieces()), row_list(heads * s.blocks * s.pieces());
  DeviceArray<int32_t> key_count(heads * s.tiles), row_count(heads * s.blocks), row_tokens(heads * s.key_blocks()),
      key_tokens(heads * s.tiles);
  DeviceArray<float> lse(heads * s.tokens()), dbias(heads * s.mean_pieces());
  DeviceArray<char> workspace(tile_backward_workspace_bytes(s, c.means));

  TileGatherArgs gather;
  gather.shape = s, gather.partition = partition;
  gather.x[0] = tensor_view(q.get(), s), gather.x[1] = tensor_view(k.get(), s), gather.x[2] = tensor_view(v.get(), s);
  gather.out[0] = q_rows.get(), gather.out[1] = k_rows.get(), gather.out[2] = v_rows.get();
  for (TileRuns& runs : gather.runs) runs.begin = block_begin.get(), runs.count = s.blocks;
  CUDA_OK(tile_gather(gather, nullptr));
  CHECK(q_rows.host() == as_bf16(in.q));
  CHECK(v_rows.host() == as_bf16(in.v));

  const TileLists lists{key_list.get(),   key_count.get(),  row_list.get(), row_count.get(),
                        row_tokens.get(), key_tokens.get(), next.get(),     mask.get()};
  CUDA_OK(tile_index(s, partition, lists, nullptr));
  CHECK(row_tokens.host() == attending_rows(t, in.mask));
  TileMeans means;
  if (c.means) means = {mean_k.get(), mean_v.get(), bias.get()};

  TileForwardArgs forward;
  forward.shape = s, forward.partition = partition, forward.lists = lists, forward.means = means;
  forward.q = q_rows.get(), forward.k = k_rows.get(), forward.v = v_rows.get();
  forward.out = tensor_view(out.get(), s), forward.lse = lse.get();
  forward.scale = float(1 / std::sqrt(double(s.head_dim)));
  forward.family = c.family;
  CUDA_OK(tile_forward(forward, nullptr));
  CUDA_OK(cudaDeviceSynchronize());

  TileBackwardArgs backward;
  backward.shape = s, backward.partition = partition, backward.lists = lists, backward.means = means;
  backward.q = q_rows.get(), backward.k = k_rows.get(), backward.v = v_rows.get();
  backward.out = forward.out, backward.dout = tensor_view(dout.get(), s), backward.lse = lse.get();
  backward.dq = tensor_view(dq.get(), s), backward.dk = tensor_view(dk.get(), s),
  backward.dv = tensor_view(dv.get(), s);
  backward.dbias = c.means ? dbias.get() : nullptr;
  backward.scale = forward.scale, backward.workspace = workspace.get(), backward.family = c.family;
  CUDA_OK(tile_backward(backward, nullptr));
  CUDA_OK(cudaDeviceSynchronize());

  check_close("out", as_doubles(out.host()), to_tensor(t, exact.out), to_tensor(t, plain.out));
  check_close("dq", as_doubles(dq.host()), to_tensor(t, exact.dq), to_tensor(t, plain.dq));
  check_close("dk", as_doubles(dk.host()), to_tensor(t, exact.dk), to_tensor(t, plain.dk));
  check_close("dv", as_doubles(dv.host()), to_tensor(t, exact.dv), to_tensor(t, plain.dv));
  const std::vector<float> found_lse = lse.host();
  for (int64_t head = 0; head < heads; ++head) {
    for (int p = 0; p < s.tokens(); ++p) {
      const int64_t token = p < s.video_tokens ? t.token_of[p] : p;
      const double expected = exact.lse[head * s.tokens() + p];
      CHECK(std::abs(found_lse[head * s.tokens() + token] - expected) <= 1e-4 * std::max(1.0, std::abs(expected)));
    }
  }
  if (c.means) {
    const std::vector<float> found = dbias.host();
    // A few sums of many terms that cancel: one draw of rounded terms says little about another's distance.
    const double rounding = exact.dbias_terms / 256;
    check_close("dbias", std::vector<double>(found.begin(), found.end()), exact.dbias, plain.dbias, rounding);
  }
  // Sums of dq of pairs are atomic; nothing else is.
  const std::vector<uint16_t> first_dq = dq.host(), first_dk = dk.host(), first_dv = dv.host();
  for (DeviceArray<uint16_t>* gradient : {&dq, &dk, &dv}) gradient->poison();
  CUDA_OK(tile_backward(backward, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  if (s.key_pairs == 0 || s.head_dim == 64) CHECK(dq.host() == first_dq);
  CHECK(dk.host() == first_dk);
  CHECK(dv.host() == first_dv);
  CHECK(row_tokens.guards_intact());
  CHECK(key_tokens.guards_intact());
  for (const auto* array : {&q_rows, &k_rows, &v_rows, &out, &dq, &dk, &dv, &key_list, &row_list})
    CHECK(array->guards_intact());
  CHECK(next.host() == std::vector<uint32_t>{0, 0});
  CHECK(lse.guards_intact());
  CHECK(dbias.guards_intact());
  CHECK(workspace.guards_intact());
}

// The same with strips of every size that there is.
void run_strips(Case c) {
  c.long_keys = false;
  if (c.tile_pieces != 0 || !can_be_packed(c)) return;
  c.packed = true;
  for (const int rows : kStripRows) {
    c.strip_rows = rows;
    run_case(c);
  }
}

std::vector<Case> shape_cases() {
  const std::vector<int> cubes(12, 64);
  return {
      {"one block", {64}},
      {"cubes of 64", cubes},
      {"cubes of 64, head size 64", cubes, 0, 64},
      {"cubes of 72", std::vector<int>(8, 72), 0, 128, 1, 2},
      {"ragged blocks", {1, 63, 64, 65, 100, 128, 7, 130}, 0, 128, 1, 2},
      {"tiles of one piece in large blocks", {200, 130, 64, 90}, 1},
      {"tiles of two pieces", {200, 130, 64, 90}, 2, 64},
      {"text", cubes, 0, 128, 1, 1, 5},
      {"much text", {64, 60, 50, 64}, 0, 64, 1, 2, 150},
      {"batch", {64, 40, 64}, 0, 128, 2, 2, 9},
      {"cubes of 72, text that ends within a group", std::vector<int>(6, 72), 0, 128, 2, 2, 77},
      {"ragged blocks of whole groups", {8, 16, 64, 72, 104, 128, 56, 136}, 0, 128, 1, 2, 24, 0.4},
      {"means", cubes, 0, 128, 1, 2, 0, 0.3, true},
      {"means of ragged blocks of whole groups, text, batch",
       {8, 16, 64, 72, 104, 128, 56, 136},
       0,
       128,
       2,
       1,
       136,
       0.3,
       true},
      {"means, own blocks alone", cubes, 0, 64, 1, 1, 0, 0.0, true},
      {"means where everything is attended", cubes, 0, 128, 1, 1, 0, 1.0, true},
      {"means of many ragged blocks, text, batch", std::vector<int>(70, 9), 0, 128, 2, 1, 11, 0.2, true},
      {"means, tiles of one piece", {200, 130, 64, 90}, 1, 128, 1, 1, 0, 0.3, true},
      {"more pieces than look-ups at a time", std::vector<int>(40, 64), 0, 64, 1, 1, 0, 0.95},
  };
}

}  // namespace

TEST_CASE("attention by tiles and its gradients agree with plain loops", "[gpu]") {
  for (Case c : shape_cases()) {
    for (const bool pairs : {false, true}) {
      c.pairs = pairs;
      run_case(c);
      c.long_keys = pairs && c.head_dim == 128;
      if (c.long_keys) run_case(c);
      c.packed = pairs && can_be_packed(c);
      if (c.packed) run_case(c);
      run_strips(c);
    }
  }
}

TEST_CASE("attention by tiles and its gradients agree with plain loops: sm_80 kernels", "[gpu][sm80]") {
  for (Case c : shape_cases()) {
    c.family = 80;
    run_case(c);
    c.piece_rows = 48;
    if (c.tile_pieces == 0) run_case(c);
  }
}

TEST_CASE("attention by tiles is right where queries and keys are large", "[gpu]") {
  for (const int head_dim : {128, 64}) {
    for (const bool means : {false, true}) {
      Case c{"large", {64, 72, 64, 130, 50, 64}, 0, head_dim, 1, 2, 5, 0.4, means};
      Case whole = c;
      whole.blocks = {64, 72, 64, 136, 48, 64};
      for (const float scale : {3.0f, 10.0f, 30.0f}) {
        INFO("q and k times " << scale << ", head size " << head_dim << ", means " << means);
        c.qk_scale = scale;
        for (const int family : {0, 80}) {
          Case own = c;
          own.family = family, own.pairs = c.pairs && family == 0;
          run_case(own);
        }
        c.pairs = !c.pairs;
        whole.qk_scale = scale;
        run_strips(whole);
      }
      c.qk_scale = 1, c.outliers = true;
      INFO("outlier channels, head size " << head_dim << ", means " << means);
      run_case(c);
      whole.qk_scale = 1, whole.outliers = true;
      run_strips(whole);
      c.pairs = false, c.family = 80;
      run_case(c);
    }
  }
}

// More items than blocks of threads: these go through several.
TEST_CASE("attention by tiles is right where blocks of threads go through many pieces", "[gpu]") {
  Case c{"many pieces", std::vector<int>(8, 72), 0, 128, 1, 20, 0, 0.2, true, true};
  run_case(c);
  c.long_keys = c.packed = true;
  run_case(c);
  run_strips(c);
  c = {"many single pieces", std::vector<int>(14, 40), 0, 128, 1, 20, 70, 0.2, true, false};
  run_case(c);
}

// Few enough for compute-sanitizer's racecheck (docs/attention.md): every kernel, several pieces to a block of threads.
TEST_CASE("attention by tiles, small cases of every kernel", "[gpu][sanitizer]") {
  for (const int head_dim : {128, 64}) {
    for (const bool means : {false, true}) {
      Case c{"small", {64, 40, 72, 136}, 0, head_dim, 1, 2, 21, 0.4, means};
      run_case(c);
      c.pairs = true;
      run_case(c);
      c.long_keys = c.packed = head_dim == 128;
      if (c.packed) run_case(c);
      run_strips(c);
    }
  }
}

TEST_CASE("top-k of tiles agrees with a sort", "[gpu][sanitizer]") {
  std::mt19937 rng(5);
  for (const int blocks : {2, 33, 300}) {
    Case c{"topk", std::vector<int>(blocks, 70)};
    c.heads = 2, c.tile_pieces = 1;
    const HostTables t = tables_of(c, rng);
    const TileShape& s = t.shape;
    const DeviceArray<int32_t> tile_block(t.tile_block);
    TilePartition partition;
    partition.tile_block = tile_block.get();
    const int64_t rows = int64_t(s.heads) * s.tiles;
    std::vector<float> gate(rows * blocks);
    std::normal_distribution<float> normal;
    for (float& g : gate) g = normal(rng);
    // Ties: few values in some rows, one in others; both zeros, infinities.
    for (int64_t i = 0; i < int64_t(gate.size()); ++i) {
      if (i / blocks % 3 == 1) gate[i] = std::round(gate[i]);
      if (i / blocks % 7 == 2) gate[i] = i % 2 ? 0.f : -0.f;
      if (i % 101 == 50) gate[i] = i % 2 ? INFINITY : -INFINITY;
    }
    const DeviceArray<float> gates(gate);
    std::vector<uint8_t> more(rows);
    for (int64_t row = 0; row < rows; ++row) more[row] = row % 3 == 1;
    const DeviceArray<uint8_t> one_more(more);
    for (const int topk : {1, 2, 5, blocks / 2 + 1, blocks, blocks + 3}) {
      DeviceArray<uint8_t> mask(rows * blocks);
      CUDA_OK(tile_topk({s, partition, gates.get(), topk, topk % 2 ? one_more.get() : nullptr, mask.get()}, nullptr));
      std::vector<uint8_t> expected(rows * blocks, 0);
      for (int64_t row = 0; row < rows; ++row) {
        const int own = t.tile_block[row % s.tiles];
        std::vector<int> order;
        for (int block = 0; block < blocks; ++block) {
          if (block != own) order.push_back(block);
        }
        const float* of_row = gate.data() + row * blocks;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return of_row[a] > of_row[b]; });
        expected[row * blocks + own] = 1;
        const int taken = topk - 1 + (topk % 2 ? more[row] : 0);
        for (int i = 0; i < std::min(taken, blocks - 1); ++i) expected[row * blocks + order[i]] = 1;
      }
      INFO(blocks << " blocks, top " << topk);
      CHECK(mask.host() == expected);
      CHECK(mask.guards_intact());
    }
  }
}

TEST_CASE("the gather gives means of runs of rows", "[gpu][sanitizer]") {
  std::mt19937 rng(3);
  for (const int head_dim : {128, 64}) {
    const Case c{"means", {64, 3, 130, 700}, 2, head_dim, 1, 2, 70};
    const HostTables t = tables_of(c, rng);
    const TileShape& s = t.shape;
    std::vector<int32_t> tile_begin;
    for (int piece = 0; piece < s.video_pieces; ++piece) {
      if (piece == 0 || t.piece_tile[piece] != t.piece_tile[piece - 1]) tile_begin.push_back(t.piece_begin[piece]);
    }
    tile_begin.push_back(s.video_tokens);
    const std::vector<float> x = drawn(int64_t(s.heads) * s.tokens() * s.head_dim, 1, rng);
    const DeviceArray<uint16_t> tensor(to_tensor(t, as_bf16(x)));
    const DeviceArray<int32_t> token_of(t.token_of), of_blocks(t.block_begin), of_tiles(tile_begin);
    const std::vector<int32_t>* begins[2] = {&t.block_begin, &tile_begin};
    DeviceArray<uint16_t> rows(int64_t(x.size())), more_rows(int64_t(x.size()));
    DeviceArray<uint16_t> rounded_mean(int64_t(s.heads) * s.blocks * s.head_dim);
    DeviceArray<float> block_mean(int64_t(s.heads) * s.blocks * s.head_dim);
    DeviceArray<float> tile_mean(int64_t(s.heads) * s.tiles * s.head_dim);
    TileGatherArgs args;
    args.shape = s;
    args.partition.token_of = token_of.get();
    args.x[0] = args.x[2] = tensor_view(tensor.get(), s);
    args.out[0] = rows.get(), args.out[2] = more_rows.get();
    args.runs[0] = {of_blocks.get(), s.blocks, block_mean.get(), rounded_mean.get()};
    args.runs[2] = {of_tiles.get(), s.tiles, tile_mean.get(), nullptr};
    CUDA_OK(tile_gather(args, nullptr));
    CHECK(rows.host() == as_bf16(x));
    CHECK(more_rows.host() == as_bf16(x));
    const std::vector<float> found[2] = {block_mean.host(), tile_mean.host()};
    const std::vector<uint16_t> found_rounded = rounded_mean.host();
    // Without copies the means are the same.
    for (const auto* mean : {&block_mean, &tile_mean}) CUDA_OK(cudaMemset(mean->get(), 0xff, mean->bytes()));
    args.out[0] = args.out[2] = nullptr;
    CUDA_OK(tile_gather(args, nullptr));
    CHECK(block_mean.host() == found[0]);
    CHECK(tile_mean.host() == found[1]);
    for (int of = 0; of < 2; ++of) {
      const std::vector<int32_t>& begin = *begins[of];
      const int runs = int(begin.size()) - 1;
      for (int64_t at = 0; at < int64_t(s.heads) * runs * s.head_dim; ++at) {
        const int64_t run = at / s.head_dim % runs, head = at / s.head_dim / runs;
        double sum = 0, magnitude = 0;
        for (int p = begin[run]; p < begin[run + 1]; ++p) {
          const double value = x[(head * s.tokens() + p) * s.head_dim + at % s.head_dim];
          sum += value, magnitude += std::abs(value);
        }
        const int size = begin[run + 1] - begin[run];
        // fp32 sums of at most 700 terms.
        CHECK(std::abs(found[of][at] - sum / size) <= size * 6e-8 * magnitude / size);
        if (of == 0) CHECK(found_rounded[at] == to_bf16(found[of][at]));
      }
    }
    CHECK(block_mean.guards_intact());
    CHECK(tile_mean.guards_intact());
    CHECK(rounded_mean.guards_intact());
  }
}

}  // namespace vmoba::kernels::test
