#include "ops/options.h"

#include <memory>
#include <set>
#include <string>

#include "attention/block/table_cache.h"
#include "core/check.h"

namespace vmoba::ops {
namespace {

struct Options {
  attention::AttentionConfig attention;
  int64_t layer = 0;

  void visit(ConfigVisitor& v) {
    attention.visit(v);
    v.field("layer", layer, "Which layer of the network the call is: partitions and densities change with it.",
            at_least(0));
  }
};

// Keys that say what changes from step to step, which a call does not know.
constexpr const char* kOfRuns[] = {"dense_steps", "dense_warmup_steps", "density_steps"};

attention::LayerAttention parsed(const std::string& text) {
  Options options;
  const std::set<std::string> keys = parse_config(text, "options", {}, [&](ConfigVisitor& v) { options.visit(v); });
  for (const char* key : kOfRuns)
    VMOBA_CHECK_INPUT(!keys.contains(key),
                      "options: expected no key '{}', which counts the steps of a run, found it; remove it, and give "
                      "backend: full in the calls that shall be dense",
                      key);
  return attention::layer_attention(options.attention, options.layer, /*dense=*/false);
}

}  // namespace

attention::LayerAttention layer_of_options(std::string_view text) {
  static attention::TableCache<std::string, attention::LayerAttention> cache;
  const std::string key(text);
  return *cache.get(key, [&] { return std::make_shared<const attention::LayerAttention>(parsed(key)); });
}

}  // namespace vmoba::ops
