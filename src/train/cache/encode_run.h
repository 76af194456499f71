// What vmoba-encode does: captions and clips of a configuration into the cache folder, each once. It resumes by
// itself: what is there and undamaged is left alone.
#pragma once
#include <cstdint>
#include <string>

#include "config/root_config.h"

namespace vmoba::train {

// Which part of the work is this process's, and which GPU of its host.
struct EncodeShare {
  int64_t rank = 0, ranks = 1, local_rank = 0;
};
// From mpirun's, srun's or torchrun's environment variables; one process without them.
EncodeShare share_from_environment();

struct EncodeOptions {
  EncodeShare share;
  bool verify = true;  // read what is there and compare its checksums
  bool prune = false;  // afterwards remove what no clip or caption of the configuration needs
};

// Returns the exit code: 0, or kExitStopped after a signal, with what was encoded so far written. Throws Error.
int encode_dataset(const RootConfig& config, const EncodeOptions& options);

// "clips 12/100 (14 %), 3.1/s, 0:04:35 left"; `share_done` in [0, 1] by tokens, `seconds` since the start.
std::string encode_progress_line(const std::string& what, int64_t done, int64_t total, double share_done,
                                 double seconds);

}  // namespace vmoba::train
