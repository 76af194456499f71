#include "attention/native/tile_call.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "attention/block/table_cache.h"
#include "attention/native/tile_memory.h"

namespace vmoba::attention::native {
namespace {

// First pieces of runs of at most two pieces of one owner (those of text have none), and the end of all.
std::vector<int32_t> pairs_of(const std::vector<int32_t>& owner, int64_t pieces) {
  std::vector<int32_t> first;
  const auto owner_of = [&](int64_t piece) { return piece < int64_t(owner.size()) ? owner[size_t(piece)] : -1; };
  for (int64_t piece = 0; piece < pieces;) {
    first.push_back(int32_t(piece));
    piece += piece + 1 < pieces && owner_of(piece) == owner_of(piece + 1) ? 2 : 1;
  }
  first.push_back(int32_t(pieces));
  return first;
}

// Pairs pay where most of them have two pieces.
int64_t pair_count(const std::vector<int32_t>& first, int64_t pieces) {
  const auto pairs = int64_t(first.size()) - 1;
  return 3 * pieces >= 4 * pairs ? pairs : 0;
}

// Pieces of `rows` positions at most, of blocks and then of text.
struct HostPieces {
  std::vector<int32_t> begin, block;  // `begin` with the end of all
};

HostPieces cut_blocks(const TileTables& tiles, int64_t blocks, int64_t video_tokens, int64_t tokens, int64_t rows) {
  HostPieces out;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = tiles.start[size_t(tiles.block_start[size_t(b) + 1])];
    for (int64_t p = tiles.start[size_t(tiles.block_start[size_t(b)])]; p < end; p += rows) {
      out.begin.push_back(int32_t(p));
      out.block.push_back(int32_t(b));
    }
  }
  for (int64_t p = video_tokens; p < tokens; p += rows) out.begin.push_back(int32_t(p));
  out.begin.push_back(int32_t(tokens));
  return out;
}

// The kernels of sm_80 take 16 rows or keys at a time: they want tiles cut evenly into pieces of whole groups, where
// those of sm_90 want whole pieces. Calls function(first position) for each piece of the tile [begin, end).
template <typename Function>
void cut_tile(int64_t begin, int64_t end, bool evenly, const Function& function) {
  constexpr int64_t kGroup = 16;
  const int64_t pieces = (end - begin + kernels::kPieceRows - 1) / kernels::kPieceRows;
  const int64_t groups = (end - begin + kGroup - 1) / kGroup;
  for (int64_t i = 0; i < pieces; ++i)
    function(int32_t(begin + (evenly ? groups * i / pieces * kGroup : i * kernels::kPieceRows)));
}

std::shared_ptr<const PieceTables> make_pieces(const BlockProblem& problem, at::Device device, int family) {
  const TileTables& tiles = *problem.tiles;
  std::vector<int32_t> begin, block, tile;
  for (int64_t b = 0; b < problem.tables->blocks; ++b) {
    for (int64_t u = tiles.block_start[size_t(b)]; u < tiles.block_start[size_t(b) + 1]; ++u) {
      cut_tile(tiles.start[size_t(u)], tiles.start[size_t(u) + 1], family == 80, [&](int32_t position) {
        begin.push_back(position);
        block.push_back(int32_t(b));
        tile.push_back(int32_t(u));
      });
    }
  }
  auto tables = std::make_shared<PieceTables>();
  tables->video_pieces = int64_t(begin.size());
  const int64_t tokens = problem.tables->tokens + problem.text_tokens;
  for (int64_t p = problem.tables->tokens; p < tokens; p += kernels::kPieceRows) begin.push_back(int32_t(p));
  const auto pieces = int64_t(begin.size());
  begin.push_back(int32_t(tokens));
  const auto on_device = [&](const std::vector<int32_t>& values) { return at::tensor(values, at::kInt).to(device); };
  tables->begin_P1 = on_device(begin);
  tables->block_P = on_device(block);
  tables->tile_P = on_device(tile);
  tables->block_U = tiles.block_of_U.to(at::kInt);
  if (family == 80) return tables;
  const std::vector<int32_t> row_pair = pairs_of(tile, pieces), key_pair = pairs_of(block, pieces);
  tables->row_pairs = pair_count(row_pair, pieces);
  tables->key_pairs = pair_count(key_pair, pieces);
  const HostPieces long_keys =
      cut_blocks(tiles, problem.tables->blocks, problem.tables->tokens, tokens, kernels::kLongPieceRows);
  if (int64_t(long_keys.block.size()) * kernels::kLongPieceRows < tables->video_pieces * kernels::kPieceRows) {
    tables->long_key_pieces = int64_t(long_keys.block.size());
    tables->key_begin_P1 = on_device(long_keys.begin);
    tables->key_block_P = on_device(long_keys.block);
  }
  const bool whole_groups =
      std::all_of(begin.begin(), begin.end() - 1, [](int32_t at) { return at % kernels::kGroupRows == 0; });
  tables->packs = whole_groups && 20 * pieces * kernels::kPieceRows > 21 * tokens;
  // A strip costs all its rows, a piece 64; tiles that are not blocks go by pieces.
  int64_t least = tables->video_pieces * kernels::kPieceRows;
  for (const int64_t rows : kernels::kStripRows) {
    if (!tables->packs || tiles.tiles != problem.tables->blocks) break;
    const HostPieces strips = cut_blocks(tiles, problem.tables->blocks, problem.tables->tokens, tokens, rows);
    if (int64_t(strips.block.size()) * rows >= least) continue;
    least = int64_t(strips.block.size()) * rows;
    tables->strip_rows = rows, tables->video_strips = int64_t(strips.block.size());
    tables->strip_begin_S1 = on_device(strips.begin);
    tables->strip_block_S = on_device(strips.block);
  }
  tables->row_pair_1 = on_device(row_pair);
  tables->key_pair_1 = on_device(key_pair);
  return tables;
}

std::shared_ptr<const PieceTables> piece_tables(const BlockProblem& problem, at::Device device) {
  using Key = std::tuple<int64_t, int64_t, int64_t, Chunk, int64_t, int64_t, int, std::string>;
  static TableCache<Key, PieceTables> cache;
  const Grid& grid = problem.grid;
  const int family = kernels::kernel_family(device.index());
  const Key key{grid.t, grid.h,      grid.w, problem.layer.chunk, problem.tiles->tile_tokens, problem.text_tokens,
                family, device.str()};
  return cache.get(key, [&] { return make_pieces(problem, device, family); });
}

}  // namespace

TileCall::TileCall(const BlockProblem& problem, const at::Tensor& x_BZND)
    : pieces_(piece_tables(problem, x_BZND.device())) {
  const PartitionTables& tables = *problem.tables;
  shape.batch = int32_t(x_BZND.size(0));
  shape.heads = int32_t(x_BZND.size(2));
  shape.head_dim = x_BZND.size(3) <= 64 ? 64 : 128;
  shape.video_tokens = int32_t(tables.tokens);
  shape.text_tokens = int32_t(problem.text_tokens);
  shape.blocks = int32_t(tables.blocks);
  shape.tiles = int32_t(problem.tiles->tiles);
  shape.video_pieces = int32_t(pieces_->video_pieces);
  shape.row_pairs = int32_t(pieces_->row_pairs);
  shape.key_pairs = at::globalContext().deterministicAlgorithms() ? 0 : int32_t(pieces_->key_pairs);
  const bool strips = pieces_->strip_rows > 0 && shape.head_dim == 128;
  const bool long_keys =
      !strips && pieces_->long_key_pieces > 0 && shape.row_pairs > 0 && shape.key_pairs > 0 && shape.head_dim == 128;
  shape.packed = pieces_->packs && (shape.key_pairs > 0 || strips) && shape.head_dim == 128;
  if (strips) {
    shape.strip_rows = int32_t(pieces_->strip_rows), shape.video_strips = int32_t(pieces_->video_strips);
    partition.strip_begin = pieces_->strip_begin_S1.const_data_ptr<int32_t>();
    partition.strip_block = pieces_->strip_block_S.const_data_ptr<int32_t>();
  }
  shape.key_rows = long_keys ? kernels::kLongPieceRows : kernels::kPieceRows;
  shape.video_key_pieces = long_keys ? int32_t(pieces_->long_key_pieces) : shape.video_pieces;
  partition.key_piece_begin = (long_keys ? pieces_->key_begin_P1 : pieces_->begin_P1).const_data_ptr<int32_t>();
  partition.key_piece_block = (long_keys ? pieces_->key_block_P : pieces_->block_P).const_data_ptr<int32_t>();
  partition.token_of = tables.token_of_S.const_data_ptr<int32_t>();
  partition.piece_begin = pieces_->begin_P1.const_data_ptr<int32_t>();
  partition.piece_block = pieces_->block_P.const_data_ptr<int32_t>();
  partition.piece_tile = pieces_->tile_P.const_data_ptr<int32_t>();
  partition.tile_block = pieces_->block_U.const_data_ptr<int32_t>();
  if (pieces_->row_pair_1.defined()) {
    partition.row_pair = pieces_->row_pair_1.const_data_ptr<int32_t>();
    partition.key_pair = pieces_->key_pair_1.const_data_ptr<int32_t>();
  }
  partition.block_begin = tables.block_start_C1.const_data_ptr<int32_t>();
  wave_heads = tile_wave_heads(shape);
}

RowMeans permute_rows(const BlockProblem& problem, const TileCall& call, const at::Tensor& q_BZND,
                      const at::Tensor& k_BZND, const at::Tensor& v_BZND, bool rounded, Selection& selection) {
  const kernels::TileShape& s = call.shape;
  const auto means = [&](int64_t runs, at::ScalarType type) {
    return at::empty({s.batch, s.heads, runs, s.head_dim}, q_BZND.options().dtype(type));
  };
  RowMeans out{means(s.tiles, at::kFloat), means(s.blocks, at::kFloat), {}, {}};
  const at::Tensor v_BNCD = rounded ? means(s.blocks, at::kFloat) : at::Tensor();
  if (rounded) out.k_rounded_BNCD = means(s.blocks, at::kBFloat16), out.v_rounded_BNCD = means(s.blocks, at::kBFloat16);
  kernels::TileGatherArgs args;
  args.shape = s;
  args.partition = call.partition;
  const auto set = [&](int i, const at::Tensor& from, at::Tensor& to, const at::Tensor& mean, const at::Tensor& bf16) {
    args.x[i] = view(from);
    if (call.keeps_copies()) {
      const at::Tensor copy = at::empty({s.batch, s.heads, s.tokens(), s.head_dim}, q_BZND.options());
      args.out[i] = copy.data_ptr();
      to = copy.transpose(1, 2);
    }
    kernels::TileRuns& runs = args.runs[i];
    runs.begin = call.partition.block_begin;
    runs.count = s.blocks;
    if (mean.defined()) runs.mean = mean.data_ptr<float>();
    if (bf16.defined()) runs.rounded = bf16.data_ptr();
  };
  set(0, q_BZND, selection.q_blocks_BZND, out.q_BNUD, {});
  args.runs[0].begin = problem.tiles->start_U1.const_data_ptr<int32_t>();
  args.runs[0].count = s.tiles;
  set(1, k_BZND, selection.k_blocks_BZND, out.k_BNCD, out.k_rounded_BNCD);
  set(2, v_BZND, selection.v_blocks_BZND, v_BNCD, out.v_rounded_BNCD);
  check_launch(kernels::tile_gather(args, c10::cuda::getCurrentCUDAStream()), "gather");
  return out;
}

void for_each_wave(const TileCall& call, const Selection& selection, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                   const at::Tensor& v_BZND, const std::function<void(const TileWave&)>& function) {
  if (selection.q_blocks_BZND.defined()) return function({{call.shape}, {}});
  const kernels::TileShape& all = call.shape;
  const at::Tensor from[3] = {prepared(q_BZND), prepared(k_BZND), prepared(v_BZND)};
  const at::Tensor rows = at::empty({3, 1, call.wave_heads, all.tokens(), all.head_dim}, q_BZND.options());
  for_each_heads(all, call.wave_heads, [&](const TileHeads& heads) {
    const TileWave wave{heads, rows.narrow(2, 0, heads.shape.heads)};
    kernels::TileGatherArgs args;
    args.shape = wave.shape;
    args.partition = call.partition;
    for (int i = 0; i < 3; ++i) {
      args.x[i] = wave.view_of(from[i]);
      args.out[i] = wave.rows_3BNZD[i].data_ptr();
      args.runs[i] = {call.partition.block_begin, all.blocks, nullptr, nullptr};
    }
    check_launch(kernels::tile_gather(args, c10::cuda::getCurrentCUDAStream()), "gather");
    function(wave);
  });
}

at::Tensor run_means(const TileCall& call, const at::Tensor& x_BZND, const at::Tensor& token_of_S,
                     const at::Tensor& start_R1) {
  const kernels::TileShape& s = call.shape;
  const int64_t runs = start_R1.size(0) - 1;
  const at::Tensor mean = at::empty({s.batch, s.heads, runs, s.head_dim}, x_BZND.options().dtype(at::kFloat));
  kernels::TileGatherArgs args;
  args.shape = s;
  args.partition = call.partition;
  args.partition.token_of = token_of_S.const_data_ptr<int32_t>();
  args.x[0] = view(x_BZND);
  args.runs[0] = {start_R1.const_data_ptr<int32_t>(), int32_t(runs), mean.data_ptr<float>(), nullptr};
  check_launch(kernels::tile_gather(args, c10::cuda::getCurrentCUDAStream()), "means");
  return mean;
}

}  // namespace vmoba::attention::native
