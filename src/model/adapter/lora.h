// Which linear maps of a transformer get low-rank adapters, and what these begin with.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/architecture.h"
#include "model/dit.h"

namespace vmoba::model {

// The `lora:` group.
struct LoraConfig {
  int64_t rank = 0;                                // 0: no LoRA, all weights are trained
  double alpha = 0;                                // 0: the rank
  std::vector<std::string> targets;                // empty: the architecture's default_targets
  double plus_ratio = 1;                           // LoRA+: learning rate of B over that of A
  std::string init_from;                           // a LoRA file to go on from; empty: A random, B zero
  std::vector<std::string> formats = {"comfyui"};  // lora_format_names()
  std::string save_dtype = "bf16";                 // bf16 | fp16 | fp32
  std::vector<std::string> trigger_words;          // in the files' metadata

  bool enabled() const { return rank > 0; }
  double scale() const { return (alpha > 0 ? alpha : double(rank)) / double(rank); }
  void visit(ConfigVisitor& v);
  void validate() const;
};

// Modules of linear maps whose name in any layout of the architecture, or what is behind one of its dots, fits one of
// the patterns; '*' stands for any text. In the order of `parameters`. Throws Error(kInput) naming a pattern that fits
// nothing.
std::vector<std::string> lora_modules(const std::vector<std::string>& patterns, const Architecture& architecture,
                                      const std::vector<Parameter>& parameters);

// How many values the adapter of each module has that make_adapters would make.
std::map<std::string, int64_t> adapter_values(const LoraConfig& config, const Architecture& architecture,
                                              const std::vector<Parameter>& parameters);

// Adapters of config.rank for every targeted module, as peft begins them: A uniform in +-1/sqrt(in) (a function of seed
// and name), B zero; from config.init_from where it is set, whose modules must be among the targets and have the rank.
std::vector<Adapter> make_adapters(const LoraConfig& config, const Architecture& architecture,
                                   const std::vector<Parameter>& parameters, uint64_t seed, at::Device device);

}  // namespace vmoba::model
