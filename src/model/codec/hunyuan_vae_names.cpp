#include "model/codec/hunyuan_vae_names.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

namespace vmoba::model {
namespace {

constexpr int64_t kStages = 4;

// Takes `beginning` off the front of `text`.
bool take(std::string_view& text, std::string_view beginning) {
  if (!text.starts_with(beginning)) return false;
  text.remove_prefix(beginning.size());
  return true;
}

// "3.rest" -> 3, leaving "rest"; -1 where it begins with no number.
int64_t take_number(std::string_view& text) {
  int64_t number = -1;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
  if (read.ec != std::errc() || read.ptr == text.data() + text.size() || *read.ptr != '.') return -1;
  text.remove_prefix(size_t(read.ptr - text.data()) + 1);
  return number;
}

std::string block_part(std::string_view part) {
  if (take(part, "nin_shortcut.")) return fmt::format("conv_shortcut.{}", part);
  return std::string(part);
}

// Behind "encoder." or "decoder."; "" where there is nothing to translate.
std::string side_part(std::string_view part, bool encoder) {
  if (take(part, "norm_out.")) return fmt::format("conv_norm_out.{}", part);
  if (take(part, "mid.block_1.")) return "mid_block.resnets.0." + block_part(part);
  if (take(part, "mid.block_2.")) return "mid_block.resnets.1." + block_part(part);
  if (take(part, "mid.attn_1.")) {
    constexpr std::pair<const char*, const char*> kParts[] = {
        {"norm.", "group_norm."}, {"q.", "to_q."}, {"k.", "to_k."}, {"v.", "to_v."}, {"proj_out.", "to_out.0."}};
    for (const auto& [stored, ours] : kParts)
      if (take(part, stored)) return fmt::format("mid_block.attentions.0.{}{}", ours, part);
    return "";
  }
  if (!take(part, encoder ? "down." : "up.")) return "";
  const int64_t number = take_number(part);
  if (number < 0 || number >= kStages) return "";
  // The decoder counted its stages from the last one.
  const std::string stage =
      fmt::format("{}.{}", encoder ? "down_blocks" : "up_blocks", encoder ? number : kStages - 1 - number);
  if (take(part, encoder ? "downsample." : "upsample."))
    return fmt::format("{}.{}.0.{}", stage, encoder ? "downsamplers" : "upsamplers", part);
  if (!take(part, "block.")) return "";
  const int64_t block = take_number(part);
  return block < 0 ? "" : fmt::format("{}.resnets.{}.{}", stage, block, block_part(part));
}

}  // namespace

std::string hunyuan_vae_name(const std::string& name) {
  std::string_view bare = name;
  if (!take(bare, "first_stage_model.")) take(bare, "vae.");
  for (const char* side : {"encoder.", "decoder."}) {
    std::string_view part = bare;
    if (!take(part, side)) continue;
    const std::string translated = side_part(part, side[0] == 'e');
    if (!translated.empty()) return side + translated;
  }
  return std::string(bare);
}

}  // namespace vmoba::model
