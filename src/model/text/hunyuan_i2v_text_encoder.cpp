// Shape letters: B prompts, I rows of a picture, L rows, E width.
#include "model/text/hunyuan_i2v_text_encoder.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "model/common/linear.h"
#include "model/image/clip_vision.h"
#include "model/text/pooled_text.h"
#include "model/text/prompt_language.h"

namespace vmoba::model {
namespace {

constexpr const char* kKey = "text.weights";
constexpr const char* kPicture = "<image>";
constexpr const char* kHeaderEnd = "<|end_header_id|>";
constexpr int64_t kTailTokens = 4;  // of the assistant's header, which are dropped

// As published (Tencent-Hunyuan/HunyuanVideo-I2V hyvideo/constants.py, diffusers' DEFAULT_PROMPT_TEMPLATE of its
// image-to-video pipeline).
PromptTemplate llava_template() {
  PromptTemplate prompt{llama3_kind(), llama3_rules()};
  prompt.begin = "<|begin_of_text|>";
  prompt.before =
      "<|start_header_id|>system<|end_header_id|>\n\n<image>\nDescribe the video by detailing the following aspects "
      "according to the reference image: "
      "1. The main content and theme of the video."
      "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
      "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
      "4. background environment, light, style and atmosphere."
      "5. camera angles, movements, and transitions used in the video:<|eot_id|>\n\n"
      "<|start_header_id|>user<|end_header_id|>\n\n";
  prompt.behind = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
  prompt.rules.marks.push_back(kPicture);
  return prompt;
}

// Where a published file has the tensors of a part of LLaVA: versions of transformers differ in what stands before.
std::string prefix_of(const WeightFiles& files, const std::string& path, const std::vector<std::string>& prefixes,
                      const std::string& name) {
  for (const std::string& prefix : prefixes)
    if (files.entries().contains(prefix + name)) return prefix;
  throw_input("{}: expected LLaVA with its vision tower and projector (a tensor {}{}) at '{}', found {}", kKey,
              prefixes.front(), name, path, EncoderWeights(files, path, kKey).other_tensors());
}

// All of LLaVA beside its language model: an image's rows in the space of the language model's embeddings.
class Eyes {
 public:
  Eyes(const WeightFiles& files, const std::string& path, int64_t width, at::Device device)
      : vision_(tower(files, path),
                read_clip_vision_options(tower(files, path), {{16, 1e-5, quick_gelu}},
                                         /*heads_known=*/true),
                device) {
    const EncoderWeights projector(files, path, kKey, prefix_of(files, path, kProjectors, "linear_1.weight"));
    const auto read = [&](const std::string& name, int64_t in, int64_t out) {
      return Linear{projector.read(name + ".weight", {out, in}, at::kFloat, device),
                    projector.read(name + ".bias", {out}, at::kFloat, device)};
    };
    up_ = read("linear_1", vision_.dim(), width);
    down_ = read("linear_2", width, width);
  }

  static void check(const WeightFiles& files, const std::string& path) {
    tower(files, path);
    prefix_of(files, path, kProjectors, "linear_1.weight");
  }

  int64_t rows() const { return vision_.tokens() - 1; }
  // [1, 3, H, W] -> [I, E], without the class token.
  at::Tensor see(const at::Tensor& image_1CHW) const {
    const at::Tensor patches_IM = vision_.encode(image_1CHW)[0].slice(0, 1);
    return linear(exact_gelu(linear(patches_IM, up_)), down_);
  }

 private:
  inline static const std::vector<std::string> kTowers = {
      "vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.", "model.vision_tower."};
  inline static const std::vector<std::string> kProjectors = {"multi_modal_projector.", "model.multi_modal_projector."};

  static EncoderWeights tower(const WeightFiles& files, const std::string& path) {
    return {files, path, kKey, prefix_of(files, path, kTowers, "embeddings.patch_embedding.weight")};
  }

  ClipVision vision_;
  Linear up_, down_;
};

class HunyuanI2vTextEncoder : public ImageTextEncoder {
 public:
  HunyuanI2vTextEncoder(const TextEncoderConfig& config, at::Device device, at::Device output)
      : language_(config, llava_template(), device),
        eyes_(WeightFiles(language_weights(config, llava_template()), {}), config.weights, language_.width(), device),
        pooled_(config, device),
        every_(config.type == "hunyuan_i2v" ? 4 : 2),
        max_tokens_(config.max_tokens),
        output_(output) {}

  int64_t dim() const override { return language_.width(); }
  int64_t max_tokens() const override { return picture_tokens() + max_tokens_; }

  TextEmbedding encode(const std::vector<std::string>&) const override {
    throw_input("text.type: expected a first frame beside each prompt for LLaVA of image-to-video, found none");
  }

  TextEmbedding encode_beside(const std::vector<std::string>& prompts, const at::Tensor& images_BCHW) const override {
    VMOBA_CHECK_INPUT(images_BCHW.dim() == 4 && images_BCHW.size(0) == int64_t(prompts.size()),
                      "expected an image for each of {} prompts, found {}", prompts.size(), images_BCHW.size(0));
    TextEmbedding out;
    out.tokens_BLE = at::zeros({int64_t(prompts.size()), max_tokens(), dim()}, at::TensorOptions(output_));
    std::vector<int64_t> lengths;
    for (size_t b = 0; b < prompts.size(); ++b) {
      const at::Tensor rows_LE = rows(prompts[b], images_BCHW.narrow(0, int64_t(b), 1));
      lengths.push_back(rows_LE.size(0));
      out.tokens_BLE[int64_t(b)].narrow(0, 0, lengths.back()).copy_(rows_LE);
    }
    out.length_B = at::tensor(lengths, at::kLong);
    out.pooled_BP = pooled_.encode(prompts, output_);
    return out;
  }

 private:
  int64_t picture_tokens() const { return (eyes_.rows() + every_ - 1) / every_; }

  // Tokens are counted without the picture's further rows, which lie before all that is asked for.
  at::Tensor rows(const std::string& prompt, const at::Tensor& image_1CHW) const {
    const std::vector<int64_t> ids = language_.ids(prompt, max_tokens_);
    const int64_t count = int64_t(ids.size()), first = language_.dropped(), more = eyes_.rows() - 1;
    const int64_t place = std::find(ids.begin(), ids.end(), language_.special(kPicture)) - ids.begin();
    const int64_t header_end = language_.special(kHeaderEnd);
    // A caption that was cut has the system's and the user's header alone; it loses its own last tokens then.
    const bool cut = std::count(ids.begin(), ids.end(), header_end) == 2;
    const int64_t behind = cut ? count : count - (std::find(ids.rbegin(), ids.rend(), header_end) - ids.rbegin());
    const at::Tensor states_LE = language_.states(ids, eyes_.see(image_1CHW), place);
    const auto part = [&](int64_t begin, int64_t end) { return states_LE.slice(0, begin + more, end + more); };
    return at::cat(
        {states_LE.slice(0, place, place + more + 1, every_), part(first, behind - kTailTokens), part(behind, count)});
  }

  PromptLanguage language_;
  Eyes eyes_;
  PooledText pooled_;
  int64_t every_, max_tokens_;
  at::Device output_;
};

}  // namespace

std::unique_ptr<TextEncoder> make_hunyuan_i2v_text_encoder(const TextEncoderConfig& config, at::Device device) {
  check_hunyuan_i2v_text_encoder(config);
  return std::make_unique<HunyuanI2vTextEncoder>(config, encoder_device(config, device), device);
}

int64_t check_hunyuan_i2v_text_encoder(const TextEncoderConfig& config) {
  int64_t width = 0;
  check_parts({[&] { width = PromptLanguage::check(config, llava_template()).width; },
               [&] {
                 const std::string weights = language_weights(config, llava_template());
                 Eyes::check(WeightFiles(weights, {}), config.weights);
               },
               [&] { PooledText::check(config); }});
  return width;
}

TokenCounter hunyuan_i2v_token_counter(const TextEncoderConfig& config) {
  return prompt_token_counter(config, llava_template());
}

std::vector<std::string> hunyuan_i2v_text_files(const TextEncoderConfig& config) {
  std::vector<std::string> files = PromptLanguage::files(config, llava_template());
  for (const std::string& file : PooledText::files(config)) files.push_back(file);
  return files;
}

}  // namespace vmoba::model
