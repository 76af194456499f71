#include "model/codec/wan_vae_names.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

namespace vmoba::model {
namespace {

// Layers of one stage of Wan2.1's decoder, which numbers them through: three residual blocks and an upsampler.
constexpr int64_t kLayersOfStage = 4;

constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kBlockParts = {
    {{"residual.0.", "norm1."},
     {"residual.2.", "conv1."},
     {"residual.3.", "norm2."},
     {"residual.6.", "conv2."},
     {"shortcut.", "conv_shortcut."}}};

// Whole names but for a side's prefix, and beginnings of names.
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kSideParts = {
    {{"conv1.", "conv_in."},
     {"head.0.", "norm_out."},
     {"head.2.", "conv_out."},
     {"middle.0.", "mid_block.resnets.0."},
     {"middle.1.", "mid_block.attentions.0."},
     {"middle.2.", "mid_block.resnets.1."}}};

// Takes "word." off the front; false where it is not there.
bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) return false;
  text.remove_prefix(word.size());
  return true;
}

// Takes "12." off the front; -1 where it is not there.
int64_t take_number(std::string_view& text) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end == text.data() + text.size() || *end != '.' || number < 0) return -1;
  text.remove_prefix(size_t(end - text.data()) + 1);
  return number;
}

std::string block_part(std::string_view part) {
  for (const auto& [original, ours] : kBlockParts) {
    if (take(part, original)) return fmt::format("{}{}", ours, part);
  }
  return std::string(part);
}

bool is_resampler(std::string_view part) {
  return part.starts_with("resample.") || part.starts_with("time_conv.");
}

// What follows "encoder.downsamples." or "decoder.upsamples."; "" where it is not a layer of a Wan VAE.
std::string stage_part(std::string_view part, bool encoder) {
  const int64_t number = take_number(part);
  if (number < 0) return "";
  if (take(part, encoder ? "downsamples." : "upsamples.")) {  // Wan2.2: numbered within the stage
    const int64_t layer = take_number(part);
    if (layer < 0) return "";
    if (is_resampler(part)) return fmt::format("{}.{}.{}", number, encoder ? "downsampler" : "upsampler", part);
    return fmt::format("{}.resnets.{}.{}", number, layer, block_part(part));
  }
  if (encoder) return fmt::format("{}.{}", number, block_part(part));
  const int64_t stage = number / kLayersOfStage;
  if (is_resampler(part)) return fmt::format("{}.upsamplers.0.{}", stage, part);
  return fmt::format("{}.resnets.{}.{}", stage, number % kLayersOfStage, block_part(part));
}

}  // namespace

std::string wan_vae_name(const std::string& name) {
  std::string_view part = name;
  for (const std::string_view prefix : {"model.", "vae.", "first_stage_model."}) {
    if (take(part, prefix)) break;
  }
  const std::string bare(part);
  if (take(part, "conv1.")) return fmt::format("quant_conv.{}", part);
  if (take(part, "conv2.")) return fmt::format("post_quant_conv.{}", part);
  const bool encoder = take(part, "encoder.");
  if (!encoder && !take(part, "decoder.")) return bare;
  const char* side = encoder ? "encoder" : "decoder";
  if (take(part, encoder ? "downsamples." : "upsamples.")) {
    const std::string stage = stage_part(part, encoder);
    return stage.empty() ? bare : fmt::format("{}.{}.{}", side, encoder ? "down_blocks" : "up_blocks", stage);
  }
  for (const auto& [original, ours] : kSideParts) {
    if (take(part, original)) return fmt::format("{}.{}{}", side, ours, block_part(part));
  }
  return bare;
}

}  // namespace vmoba::model
