// The `cache:` group: latents and embeddings that vmoba-encode wrote and training reads.
#pragma once
#include <cstdint>
#include <string>

#include "core/config.h"

namespace vmoba {

struct CacheConfig {
  std::string dir;                    // empty: no cache
  std::string mode = "auto";          // auto | require | off
  std::string latent_dtype = "fp32";  // fp32 | bf16
  int64_t shard_mb = 256;

  void visit(ConfigVisitor& v);
};

}  // namespace vmoba
