// What one pass of a step computes on, and where passes come from.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/batch.h"

namespace vmoba::train {

struct MicroBatch {
  // The part that trains one expert.
  struct Part {
    std::vector<int64_t> samples;  // global numbers
    TrainingBatch batch;           // where there are samples
  };
  std::vector<Part> parts;         // by expert
  std::vector<int64_t> samples;    // of all parts, in the stream's order
  std::vector<std::string> clips;  // their paths, for messages
};

class MicroBatchSource {
 public:
  virtual ~MicroBatchSource() = default;
  // The next one: what prepare() made, or made now. Throws what making it threw.
  virtual MicroBatch next() = 0;
  // Makes the next one ahead. Called when the GPU has been given its work. An error waits for next().
  virtual void prepare() = 0;
};

}  // namespace vmoba::train
