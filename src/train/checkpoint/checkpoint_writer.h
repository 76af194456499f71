// Writes checkpoints of all ranks while training goes on.
//
// begin() copies what this rank writes of weights, average and optimiser state to memory of the host, and starts a
// thread that writes it: every rank its runs of values into files that all share, in the layout of a single process
// (checkpoint.h). When all ranks have written and synced theirs, finish() lets rank 0 add the manifest and rename the
// folder. At most one checkpoint is under way. Whatever fails on any rank, and a kill at any instant, leaves older
// checkpoints alone; a checkpoint-<step> folder is always complete. Owns the copy, which is kept for the next
// checkpoint.
#pragma once
#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "model/adapter/weight_change.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/host_memory.h"
#include "train/checkpoint/rotation.h"

namespace vmoba::train {

// A checkpoint could not be written, on all ranks alike; older ones are untouched.
class SaveError : public Error {
 public:
  explicit SaveError(const std::string& message) : Error(ErrorKind::kRuntime, message) {}
};

class CheckpointWriter {
 public:
  // `control`: all ranks that train together, for CPU tensors; must outlive it.
  CheckpointWriter(dist::Communicator& control, std::string run_dir, Rotation rotation)
      : control_(control), run_dir_(std::move(run_dir)), rotation_(std::move(rotation)) {}
  // Gives up what is under way.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Takes the memory that begin() copies to, which for gigabytes of page-locked memory takes seconds: do it before
  // training. Not collective.
  void reserve(const CheckpointParts& parts);

  // Before the next checkpoint is completed.
  void set_rotation(Rotation rotation) { rotation_ = std::move(rotation); }

  // What a checkpoint takes on the disk, the small files for other tools left out.
  int64_t file_bytes(const CheckpointParts& parts) const;

  // Collective; none must be under way. Training may change all parts when it returns. Throws SaveError on all ranks
  // where one could not begin.
  void begin(const TrainerState& state, const CheckpointParts& parts);

  // Between begin() and finish(), on all ranks alike.
  bool under_way() const { return thread_.joinable(); }
  enum class Progress { kNone, kWriting, kWritten, kFailed };
  // Of this rank alone.
  Progress progress() const { return progress_; }

  struct Saved {
    int64_t step = 0;
    std::string folder;
  };
  // Collective: waits until all ranks have written, or have left off where one failed, and completes the checkpoint.
  // Throws SaveError on all ranks with the ranks and reasons of what failed.
  Saved finish();
  // Lets this rank's writing end early, for finish() to report another rank's failure.
  void give_up() { stop_ = true; }

 private:
  struct Slice {
    int64_t offset = 0;  // in the file
    at::Tensor values;   // in the copy
    size_t tensor = 0;   // of the file
    int64_t first = 0;   // number of the first value in the tensor
  };
  struct File {
    std::string path, header;
    int64_t bytes = 0;
    std::vector<std::string> tensors;
    std::vector<uint64_t> checksums;  // of the tensors: what this rank writes of them
    std::vector<Slice> slices;
  };
  struct Source {
    at::Tensor values;  // flat
    size_t file = 0;    // of the plan
    size_t tensor = 0;
    int64_t offset = 0;  // in the file
    int64_t first = 0;   // number of the first value in the tensor
    int64_t begin = 0;   // in the copy
  };
  // A file for other tools, which the first rank writes from whole adapters.
  struct ToolFile {
    std::string path, format, dtype;
    std::vector<model::Adapter> adapters;
    const model::Architecture* architecture;
    model::ShapeOf shape_of;
    std::map<std::string, std::string> metadata;
  };
  struct Planned;

  void plan(const CheckpointParts& parts, std::vector<Planned>& files) const;
  void make_files(const CheckpointParts& parts, const std::vector<Planned>& files) const;
  static std::vector<Source> sources_of(const std::vector<Planned>& files);
  void reserve_copy(const std::vector<Source>& sources);
  void copy_values(const std::vector<Planned>& files);
  void copy_adapters(const CheckpointParts& parts);
  void write();
  std::map<std::string, std::string> file_metadata() const;
  // Of all ranks' parts together; the first rank's are of use.
  Checksums sum_checksums();
  void complete(Checksums checksums);
  void throw_together(const std::string& own_failure);

  dist::Communicator& control_;
  std::string run_dir_, working_;
  Rotation rotation_;
  int64_t step_ = 0;
  Manifest manifest_;
  std::string config_yaml_;
  HostMemory copy_;
  std::vector<File> files_;
  std::vector<ToolFile> tool_files_;
  std::thread thread_;
  std::string failure_;  // the thread's until it is joined
  std::atomic<Progress> progress_{Progress::kNone};
  std::atomic<bool> stop_{false};
};

}  // namespace vmoba::train
