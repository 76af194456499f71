#include "model/adapter/lora_names.h"

#include <algorithm>

namespace vmoba::model {
namespace {

struct Prefix {
  const char* text;
  bool second;  // of the second transformer
};

// Taken off one after the other, so that "base_model.model.diffusion_model." is none of its own.
constexpr const char* kPeftPrefix = "base_model.model.";
constexpr Prefix kPrefixes[] = {
    {kPeftPrefix, false},        {"model.diffusion_model.", false},
    {"diffusion_model.", false}, {"transformer.", false},
    {"pipe.dit.", false},        {"dit.", false},
    {"transformer_2.", true},    {"pipe.dit2.", true},
};
constexpr Prefix kFlattenedPrefixes[] = {{kKohyaPrefix, false},
                                         {"lora_transformer_2_", true},
                                         {"lora_transformer_", false},
                                         {"lycoris_", false},
                                         {"Hunyuan_video_I2V_lora_", false}};

struct Written {
  std::string name;
  bool flattened = false, second = false, from_peft = false;
};

Written without_prefixes(const std::string& written) {
  Written out{written};
  for (const Prefix& prefix : kFlattenedPrefixes) {
    if (!written.starts_with(prefix.text)) continue;
    return {written.substr(std::string(prefix.text).size()), true, prefix.second, false};
  }
  for (const Prefix& prefix : kPrefixes) {
    if (!out.name.starts_with(prefix.text)) continue;
    out.name = out.name.substr(std::string(prefix.text).size());
    out.second |= prefix.second;
    out.from_peft |= prefix.text == kPeftPrefix;
  }
  return out;
}

// "blocks.0.self_attn.q", "blocks_0_self_attn_q", or diffusers' name -> diffusers' names.
Held held_by(const Written& written, const Architecture& architecture) {
  for (const Layout& layout : architecture.layouts) {
    const NameTable& names = layout.names;
    if (written.flattened) {
      if (Held held = names.from_flattened(written.name); !held.names.empty()) return held;
      continue;
    }
    if (std::vector<std::string> modules = names.to_diffusers(written.name); !modules.empty()) {
      const Rows rows = names.place_of(modules.front()).value().rows;
      return {std::move(modules), rows};
    }
    if (names.from_diffusers(written.name)) return {{written.name}};
  }
  return {};
}

struct Split {
  std::string module;
  LoraPart part;
};

// ".lora_A.weight", ".lora_A.<adapter>.weight", ".lora_A", and ".bias" in place of ".weight".
std::optional<Split> matrix_of(const std::string& name) {
  struct Mark {
    const char* text;
    bool is_a;
  };
  constexpr Mark kMarks[] = {{".lora_A", true},   {".lora_B", false},   {".lora_down", true},
                             {".lora_up", false}, {".lora.down", true}, {".lora.up", false}};
  for (const Mark& mark : kMarks) {
    const size_t at = name.rfind(mark.text), end = at + std::string(mark.text).size();
    if (at == std::string::npos || (end < name.size() && name[end] != '.')) continue;
    const std::string rest = name.substr(end), last = rest.empty() ? ".weight" : rest.substr(rest.rfind('.'));
    if (std::count(rest.begin(), rest.end(), '.') > 2) return std::nullopt;
    if (last == ".bias") return mark.is_a ? std::nullopt : std::optional(Split{name.substr(0, at), LoraPart::kBBias});
    if (last != ".weight") return std::nullopt;
    return Split{name.substr(0, at), mark.is_a ? LoraPart::kA : LoraPart::kB};
  }
  return std::nullopt;
}

std::optional<Split> split(const std::string& name) {
  struct Ending {
    const char* text;
    LoraPart part;
  };
  constexpr Ending kEndings[] = {{".alpha", LoraPart::kAlpha},
                                 {".dora_scale", LoraPart::kMagnitude},
                                 {".diff", LoraPart::kDifference},
                                 {".diff_b", LoraPart::kBias}};
  for (const Ending& ending : kEndings)
    if (name.ends_with(ending.text))
      return Split{name.substr(0, name.size() - std::string(ending.text).size()), ending.part};
  // peft's, with and without the adapter's name and ".weight".
  if (const size_t at = name.rfind(".lora_magnitude_vector"); at != std::string::npos)
    return Split{name.substr(0, at), LoraPart::kMagnitude};
  return matrix_of(name);
}

}  // namespace

std::optional<LoraKey> parse_lora_key(const std::string& name, const Architecture& architecture) {
  const std::optional<Split> parts = split(name);
  if (!parts) return std::nullopt;
  const Written written = without_prefixes(parts->module);
  Held held = held_by(written, architecture);
  if (held.names.empty()) return std::nullopt;
  const std::string patterned = written.flattened ? held.names.front() : written.name;
  return LoraKey{std::move(held), patterned, parts->part, written.second ? std::optional<size_t>(1) : std::nullopt,
                 written.from_peft};
}

std::string other_adapter_kind(const std::vector<std::string>& names) {
  struct Kind {
    const char* mark;
    const char* title;
  };
  constexpr Kind kKinds[] = {{"lokr_", "LoKr"},
                             {"hada_", "LoHa"},
                             {"lora_mid", "LoCon with a middle matrix (Tucker)"},
                             {"oft_", "OFT"},
                             {"boft_", "BOFT"},
                             {"vera_lambda", "VeRA"},
                             {"lora_E", "AdaLoRA"},
                             {"ia3_", "IA3"},
                             {"glora", "GLoRA"},
                             {"lora_embedding", "an embedding's LoRA"},
                             {".set_weight", "whole weights (set_weight)"},
                             {".reshape_weight", "reshaped weights (reshape_weight)"}};
  for (const Kind& kind : kKinds)
    for (const std::string& name : names)
      if (name.find(kind.mark) != std::string::npos) return kind.title;
  return "";
}

}  // namespace vmoba::model
