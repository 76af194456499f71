// Launch interface of the native VMoBA kernels: gate, select, index, attend (forward, backward).
//
// Plain structs of device pointers; the caller owns all memory, asks *_workspace_bytes for scratch, and passes a
// stream. Every call is asynchronous on that stream, never synchronises, never allocates, never prints, and returns
// the first cudaError_t it met (cudaErrorInvalidValue for arguments out of range, cudaErrorNotSupported for a GPU or
// head size without a kernel). No torch here: src/attention/vmoba_op.cpp binds these to tensors.
//
// Words (docs/attention.md): B samples, N heads, D head size, S video tokens, X text tokens behind them, C blocks.
// "Permuted position" p in [0, S): tokens in block order (blocks row-major, tokens row-major inside a block).
// With X > 0 the text keys form one more block, number C, that every row attends, and the text rows (positions
// S..S+X-1, the same in original and permuted order) attend every block; block_count() counts it. Gates and pools
// never see text.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace vmoba::kernels {

struct Shape {
  int32_t batch = 1;         // B
  int32_t heads = 1;         // N
  int32_t head_dim = 128;    // D: 64 or 128
  int32_t video_tokens = 0;  // S
  int32_t text_tokens = 0;   // X
  int32_t blocks = 1;        // C, without the text block
  // Of the rows, index and forward handle those of `row_words` words of the masks from `first_word` on, so that lists
  // and partial outputs are no longer than that; 0: all. The other stages handle all.
  int32_t first_word = 0, row_words = 0;

  constexpr int32_t tokens() const { return video_tokens + text_tokens; }
  constexpr int32_t block_count() const { return blocks + (text_tokens > 0 ? 1 : 0); }
  constexpr int32_t mask_words() const { return (tokens() + 31) / 32; }
  constexpr int32_t end_word() const { return row_words > 0 ? first_word + row_words : mask_words(); }
  int64_t lists() const { return int64_t(batch) * heads * block_count(); }
};

// A [B, S+X, N, D] tensor in original token order, D contiguous. Strides in elements; 16-byte aligned rows.
struct TensorView {
  void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

// Device tables of one partition.
struct PartitionView {
  const int32_t* token_of = nullptr;     // [S] permuted position -> original token
  const int32_t* block_of = nullptr;     // [S] permuted position -> block
  const int32_t* block_start = nullptr;  // [C+1] first permuted position of each block; block_start[C] = S
  int32_t max_block_tokens = 0;          // largest block
  bool identity = false;                 // token_of[p] == p for all p (temporal): K and V need no copy
};

enum class SelectMode : int32_t { kThreshold = 0, kTopk = 1 };
enum class Pool : int32_t { kQueryHead = 0, kBlock = 1, kHeadGlobal = 2, kOverall = 3 };

struct SelectParams {
  SelectMode mode = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;     // threshold
  int32_t topk = 1;      // top-k, the own block counted
  double topk_part = 0;  // part of one more block for each token; 0 in query_head pools
};

// Slots: for every (b, n, c) list the rows (queries) that attend block c, ascending in permuted position, own rows
// included. Lists start at multiples of kSlotAlign; the pad slots behind a list repeat its last row.
constexpr int32_t kSlotAlign = 128;
struct SlotLists {
  uint32_t* mask = nullptr;      // [B, N, block_count, mask_words] bit p%32 of word p/32: position p attends the block
  int32_t* word_rank = nullptr;  // [B, N, block_count, mask_words] rows of the list before that word
  int32_t* length = nullptr;     // [B, N, block_count] rows, pads not counted
  int64_t* start = nullptr;      // [B, N, block_count + 1] first slot of a list, counted from the first slot of (b, n);
                                 // the last entry is the number of slots of (b, n), pads counted
  int32_t* row = nullptr;        // [B, N, slots_per_head_capacity] original token of each slot
  int64_t row_stride = 0;        // slots_per_head_capacity: (b, n) starts at (b*N + n) * row_stride
};
// Slots that one (b, n) can need at most: every row in every list, lists padded.
inline int64_t slots_per_head_capacity(const Shape& s) {
  const int32_t end = 32 * s.end_word() < s.tokens() ? 32 * s.end_word() : s.tokens(), rows = end - 32 * s.first_word;
  return int64_t(s.block_count()) * ((rows + kSlotAlign - 1) / kSlotAlign * kSlotAlign);
}

// ---- stage 1: gate ------------------------------------------------------------------------------------------------
// kbar[b,n,c,:] = fp32 mean of k over the tokens of block c; gate[b,n,c,p] = q[b, token_of[p], n, :] . kbar[b,n,c,:]
// in fp32 accuracy (three-term bf16 split of kbar, small terms first). Copies K and V into block order on the way
// when k_blocks/v_blocks are given (required where !partition.identity). D: any multiple of 16 up to 128.
struct GateArgs {
  Shape shape;
  PartitionView partition;
  TensorView q, k, v;        // bf16
  float* kbar = nullptr;     // [B, N, C, D] out
  float* gate = nullptr;     // [B, N, C, S] out, permuted positions
  float* range = nullptr;    // [B, N, 2] out, least and greatest gate of each (b, n); may be null
  void* k_blocks = nullptr;  // [B, N, S+X, D] bf16 out, permuted order; may be null
  void* v_blocks = nullptr;
  void* workspace = nullptr;
};
int64_t gate_workspace_bytes(const Shape& shape);
cudaError_t gate(const GateArgs& args, cudaStream_t stream);

// ---- stage 2: select ----------------------------------------------------------------------------------------------
// Writes lists.mask from the gates (own block always; text rules above). Deterministic. Equal gates: the lower block,
// then the lower head, then the lower permuted position first. A NaN gate counts as the least of its pool.
struct SelectArgs {
  Shape shape;
  PartitionView partition;
  SelectParams params;
  const float* gate = nullptr;
  const float* range = nullptr;  // stage 1's range; null: found here, with one more pass over the gates
  SlotLists lists;
  void* workspace = nullptr;
};
int64_t select_workspace_bytes(const Shape& shape, const SelectParams& params);
cudaError_t select(const SelectArgs& args, cudaStream_t stream);

// ---- stage 3: index -----------------------------------------------------------------------------------------------
// Fills word_rank, length, start and row from mask; without `row`, word_rank and length alone.
struct IndexArgs {
  Shape shape;
  PartitionView partition;
  SlotLists lists;
  void* workspace = nullptr;
};
int64_t index_workspace_bytes(const Shape& shape);
cudaError_t index(const IndexArgs& args, cudaStream_t stream);

// ---- stage 4: attend ----------------------------------------------------------------------------------------------
// out[b,i,n,:] = softmax over the keys of the attended blocks of (q.k * scale) times v; lse natural log.
// k_blocks/v_blocks: views in *permuted* order (the copies of stage 1, or k and v themselves for an identity
// partition). Partial outputs of at most partial_slots slots are held at a time (heads in groups, decided on the
// device); partial_slots >= slots_per_head_capacity(shape).
struct ForwardArgs {
  Shape shape;
  PartitionView partition;
  SlotLists lists;
  TensorView q;                   // bf16, original order
  TensorView k_blocks, v_blocks;  // bf16, permuted order
  TensorView out;                 // bf16, original order
  float* lse = nullptr;           // [B, N, S+X], original order, natural log
  float scale = 0;                // 1/sqrt(D)
  int64_t partial_slots = 0;
  void* workspace = nullptr;
  int32_t family = 0;  // kernel_family()'s `wanted`
};
int64_t forward_workspace_bytes(const Shape& shape, int64_t partial_slots);
cudaError_t forward(const ForwardArgs& args, cudaStream_t stream);

// dq, dk, dv of the above with the selection held constant. All written in original order (bf16).
struct BackwardArgs {
  Shape shape;
  PartitionView partition;
  SlotLists lists;
  TensorView q, out, dout;        // bf16, original order
  TensorView k_blocks, v_blocks;  // bf16, permuted order
  const float* lse = nullptr;     // [B, N, S+X] natural log
  TensorView dq, dk, dv;          // bf16, original order
  float scale = 0;
  bool deterministic = false;  // bitwise equal results in every run, at some cost
  void* workspace = nullptr;
  int32_t family = 0;  // kernel_family()'s `wanted`
};
int64_t backward_workspace_bytes(const Shape& shape, bool deterministic);
cudaError_t backward(const BackwardArgs& args, cudaStream_t stream);

// Which kernel family a device runs: 90 (wgmma + TMA), 80 (mma.sync + cp.async), or 0 with no kernel for it. A wanted
// family other than 0 is taken where the device can run it, so that a device of family 90 can try 80 too. A negative
// device is none (that of a tensor on the CPU): no GPU is asked, and the answer is what is wanted.
int kernel_family(int device, int wanted = 0);

// What calls of this process want that do not say; 0, as at the start: the device's own family.
void set_default_family(int family);

}  // namespace vmoba::kernels
