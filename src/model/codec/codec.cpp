#include "model/codec.h"

#include "core/registry.h"
#include "model/codec/dct_codec.h"
#include "model/codec/hunyuan15_vae.h"
#include "model/codec/hunyuan_vae.h"
#include "model/codec/patch_codec.h"
#include "model/codec/taehv.h"
#include "model/codec/wan_vae.h"

namespace vmoba::model {
namespace {

struct CodecKind {
  CodecShape (*shape)(const CodecConfig&);
  std::unique_ptr<Codec> (*make)(const CodecConfig&, at::Device);
  void (*visit)(CodecConfig&, ConfigVisitor&) = nullptr;  // keys of its own
};

void visit_time_tiles(CodecConfig& config, ConfigVisitor& v) {
  v.field("tile_frames", config.tile_frames,
          "Longer videos are worked on in tiles of this many frames and one in front, a multiple of 4; the tile is "
          "part of what a latent is. 64 as published, 16 as diffusers. 0: never.",
          at_least(0));
  v.field("tile_frames_overlap", config.tile_frames_overlap,
          "Frames that neighbouring tiles share and blend, a multiple of 4: 16 as published, 4 as diffusers.",
          at_least(0));
}

// One line per codec.
const Registry<CodecKind>& codecs() {
  static const Registry<CodecKind> table("codec.type",
                                         {{"dct", {dct_codec_shape, make_dct_codec}},
                                          {"hunyuan_vae", {hunyuan_vae_shape, make_hunyuan_vae, visit_time_tiles}},
                                          {"hunyuan_15_vae", {hunyuan15_vae_shape, make_hunyuan15_vae}},
                                          {"patch_codec", {patch_codec_shape, make_patch_codec}},
                                          {"taehv", {taehv_shape, make_taehv}},
                                          {"wan_vae", {wan_vae_shape, make_wan_vae}}});
  return table;
}

}  // namespace

void CodecConfig::visit(ConfigVisitor& v) {
  v.field("type", type,
          "Video to latents and back. `dct`: training-free block transform, nothing to download; `wan_vae`: the "
          "pretrained VAE of Wan2.1 or Wan2.2; `hunyuan_vae` and `hunyuan_15_vae`: those of HunyuanVideo and "
          "HunyuanVideo 1.5; `taehv`: the community's tiny autoencoders for previews; `patch_codec`: a small codec of "
          "vmoba-train-codec.",
          one_of(codecs().names()));
  v.field("weights", weights,
          "A pretrained VAE: a diffusers folder (`vae/` or the one above it) or a safetensors file in diffusers', the "
          "original or ComfyUI's names. Empty for `dct`.");
  v.field("compute_dtype", compute_dtype, "Type of a pretrained VAE's weights and activations.",
          one_of({"fp32", "bf16"}));
  v.field("tile_size", tile_size,
          "Pretrained VAEs: pictures wider or higher than this many pixels are worked on in tiles of this size: less "
          "memory, "
          "more time. 0: never.",
          at_least(0));
  v.field("tile_overlap", tile_overlap, "Pixels that neighbouring tiles share and blend.", at_least(0));
  std::vector<ConfigVisitor::Kind> kinds;
  for (const std::string& name : codecs().names())
    if (const auto visit = codecs().find(name).visit; visit != nullptr)
      kinds.push_back({name, [this, visit](ConfigVisitor& own) { visit(*this, own); }});
  v.kind_fields("type", type, kinds);
}

CodecShape codec_shape(const CodecConfig& config) {
  return codecs().find(config.type).shape(config);
}

std::unique_ptr<Codec> make_codec(const CodecConfig& config, at::Device device) {
  return codecs().find(config.type).make(config, device);
}

}  // namespace vmoba::model
