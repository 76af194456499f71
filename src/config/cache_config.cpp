#include "config/cache_config.h"

namespace vmoba {

void CacheConfig::visit(ConfigVisitor& v) {
  v.field("dir", dir, "Folder of latents and embeddings that `vmoba-encode` writes and training reads; empty: none.");
  v.field("mode", mode,
          "`auto`: what the cache lacks is encoded on the fly; `require`: it must be complete; `off`: it is not used.",
          one_of({"auto", "require", "off"}));
  v.field(
      "latent_dtype", latent_dtype,
      "Type of stored latents. fp32 trains bit for bit as without a cache; bf16 takes half the disk. Numbers that bf16 "
      "holds exactly are stored in it anyway.",
      one_of({"fp32", "bf16"}));
  v.field("shard_mb", shard_mb, "Size at which `vmoba-encode` starts a new file.", between(1, 65536));
}

}  // namespace vmoba
