// model::WeightStore for frozen blocks that wait in page-locked memory of the host. A ring of buffers on the device
// holds the weights of the block at work and of the next one, which travels while the present one computes: forward the
// block behind it, within backward the one before it. Values stay as they are; no parameter changes its name or place.
// Where blocks compute in less time than they travel, some of them can stay on the device: every second or third of
// them, so that the others have the time of several.
//
// Unit 0 (what is outside the blocks) is copied to the device once and stays there. A block whose weights autograd
// would keep (one that backward does not recompute) gets copies of its own, which live as long as the graph wants.
//
// Streams: copies run on a side stream. A slot is overwritten behind all work that the current stream had been given
// when the copy was begun, which holds the last use of the block that had been there: users gather one block after the
// other on one stream, and use a block's weights before they gather the next one. The current stream waits for a copy
// where its block is gathered. Nobody waits on the host.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <vector>

#include "model/common/side_stream.h"
#include "model/weight_store.h"

namespace vmoba::model {

// The device's buffers, which several models may share that compute one after the other (experts).
class RingSlots {
 public:
  // `resident_bytes`: of the device, for units that stay there from the first use on.
  explicit RingSlots(at::Device device, int64_t resident_bytes = 0) : resident_bytes_(resident_bytes), side_(device) {}

  // Tensors of the host that travel together. Returns their number. All come before the first use.
  size_t add(std::vector<at::Tensor> host);
  // Those on the device, until the second use() after this one.
  std::vector<at::Tensor> use(size_t number);
  // Begins to copy them beside those in use.
  void prepare(size_t number);
  // Whether the unit stays on the device. Of the first use on.
  bool resident(size_t number) const { return number < resident_.size() && resident_[number].defined(); }

  at::Device device() const { return side_.device(); }
  int64_t bytes() const { return int64_t(slots_.size()) * slot_bytes_; }  // of the slots, on the device
  int64_t copies() const { return copies_; }                              // of units, since the object was made

 private:
  static constexpr size_t kNobody = size_t(-1);
  struct Slot {
    at::Tensor bytes;
    size_t holds = kNobody;
    SideStream::Mark ready;
  };

  size_t slot_with(size_t number);
  void make_residents();
  void begin_copy(size_t number, Slot& slot);

  std::vector<std::vector<at::Tensor>> units_;
  int64_t resident_bytes_;
  std::vector<at::Tensor> resident_;  // bytes of each unit; undefined where it travels; empty before the first use
  int64_t slot_bytes_ = 0;
  std::array<Slot, 2> slots_;
  size_t at_work_ = 0;
  int64_t copies_ = 0;
  SideStream side_;  // ends first: what is under way writes to the slots
};

class WeightRing final : public WeightStore {
 public:
  explicit WeightRing(std::shared_ptr<RingSlots> slots) : slots_(std::move(slots)) {}

  // A copy in page-locked memory.
  at::Tensor keep(const at::Tensor& whole) const override;
  size_t add_unit(std::vector<StoredParameter> parameters) override;
  // Throws Error(kRuntime) where a parameter is to be trained.
  std::vector<at::Tensor> gather(size_t unit, at::TensorList parts, at::ScalarType compute_dtype, bool again) override;

 private:
  struct Unit {
    std::vector<at::Tensor> host;
    size_t number = 0;  // in the slots; unused for unit 0
  };
  std::vector<at::Tensor> copies_of(const Unit& unit) const;

  std::shared_ptr<RingSlots> slots_;
  std::vector<Unit> units_;
  std::vector<at::Tensor> outer_;  // unit 0 on the device
};

}  // namespace vmoba::model
