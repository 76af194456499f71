// Readers of models: transformers, VAEs, encoders and tokenizers, each with its configuration and weights.
#include <ATen/ATen.h>

#include <filesystem>

#include "core/check.h"
#include "model/architecture.h"
#include "model/codec.h"
#include "model/codec/patch_codec_network.h"
#include "model/dit.h"
#include "model/image_encoder.h"
#include "model/long_captions.h"
#include "model/text/bpe_tokenizer.h"
#include "model/text/sentencepiece_tokenizer.h"
#include "model/text_encoder.h"
#include "model/weights/safetensors.h"
#include "model/weights/stated_sizes.h"
#include "model/weights/weight_files.h"
#include "readers/readers.h"
#include "support/paths.h"

namespace vmoba::test {
namespace {

namespace fs = std::filesystem;

const std::string kModels = test::fixtures() + "/model/";

void copy_all(const std::string& from, const std::string& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().filename().string().starts_with('.')) continue;
    fs::copy(entry.path(), fs::path(to) / entry.path().filename(), fs::copy_options::recursive);
  }
}

const model::Architecture& wan() {
  return model::architectures().find("wan");
}

Reader gguf() {
  return {"GGUF",
          [](const std::string& folder) { fs::copy(kModels + "packed.gguf", folder + "/x.gguf"); },
          {"x.gguf"},
          [](const std::string& folder) {
            const model::WeightFiles files(folder + "/x.gguf", {});
            for (const auto& [name, entry] : files.entries()) files.read(name, at::kFloat, at::kCPU);
          }};
}

Reader index() {
  return {"index of shards",
          [](const std::string& folder) {
            model::write_safetensors(folder + "/m-1.safetensors", {{"a.weight", at::ones({2, 3})}}, {});
            model::write_safetensors(folder + "/m-2.safetensors", {{"b.weight", at::ones({3})}}, {});
            write_text(folder + "/model.safetensors.index.json",
                       R"({"metadata": {"total_size": 36}, "weight_map": {"a.weight": "m-1.safetensors",
                           "b.weight": "m-2.safetensors"}})");
          },
          {"model.safetensors.index.json", "m-1.safetensors"},
          [](const std::string& folder) {
            const model::WeightFiles files(folder, wan().layouts);
            for (const auto& [name, entry] : files.entries()) files.read(name, at::kFloat, at::kCPU);
          }};
}

void read_weights(model::ModelConfig config, const std::string& folder) {
  config.weights = folder;
  model::take_stated_sizes(config, folder, {});
  config.validate();
  model::check_weights(config);
}

void read_model(const std::string& folder) {
  read_weights({}, folder);
}

Reader model_config() {
  return {"configuration of a transformer",
          [](const std::string& folder) { copy_all(kModels + "wan_t2v", folder); },
          {"config.json"},
          read_model};
}

Reader original_config() {
  return {"configuration of an original transformer",
          [](const std::string& folder) {
            copy_all(kModels + "wan_t2v", folder);
            write_text(folder + "/config.json",
                       R"({"_class_name": "WanModel", "dim": 40, "num_heads": 2, "num_layers": 2, "ffn_dim": 56,
                           "freq_dim": 16, "in_dim": 4, "out_dim": 4, "text_len": 512, "eps": 1e-06})");
          },
          {"config.json"},
          read_model};
}

Reader vae_config() {
  return {"configuration of a VAE",
          [](const std::string& folder) { copy_all(kModels + "wan_vae_21", folder); },
          {"config.json"},
          [](const std::string& folder) {
            model::CodecConfig config;
            config.type = "wan_vae";
            config.weights = folder;
            model::codec_shape(config);
          }};
}

Reader clip_config() {
  return {"configuration of CLIP",
          [](const std::string& folder) { copy_all(kModels + "clip/image_encoder", folder); },
          {"config.json"},
          [](const std::string& folder) {
            model::ImageEncoderConfig config;
            config.type = "clip";
            config.weights = folder;
            model::make_image_encoder(config, at::kCPU);
          }};
}

Reader model_folder(const std::string& fixture) {
  return {"configuration and weights of " + fixture,
          [=](const std::string& folder) { copy_all(kModels + fixture, folder); },
          {"config.json", "diffusion_pytorch_model.safetensors"},
          [=](const std::string& folder) {
            model::ModelConfig config;
            config.architecture = fixture.starts_with("hunyuan_15") ? "hunyuan_video_15" : "hunyuan_video";
            if (!fixture.ends_with("t2v")) config.task = "i2v";
            read_weights(config, folder);
          }};
}

Reader original_hunyuan() {
  return {"configuration of an original HunyuanVideo",
          [](const std::string& folder) {
            fs::copy(kModels + "hunyuan_t2v_original.safetensors", folder + "/model.safetensors");
            write_text(folder + "/config.json",
                       R"({"_class_name": "HYVideoDiffusionTransformer", "heads_num": 2, "hidden_size": 16,
                           "mm_double_blocks_depth": 2, "mm_single_blocks_depth": 3, "mlp_width_ratio": 4,
                           "rope_dim_list": [4, 2, 2], "rope_theta": 256, "guidance_embed": true})");
          },
          {"config.json"},
          [](const std::string& folder) {
            model::ModelConfig config;
            config.architecture = "hunyuan_video";
            read_weights(config, folder);
          }};
}

Reader vae(const std::string& type, const std::string& fixture) {
  return {"VAE " + type,
          [=](const std::string& folder) { copy_all(kModels + fixture, folder); },
          {"config.json", "diffusion_pytorch_model.safetensors"},
          [=](const std::string& folder) {
            model::CodecConfig config;
            config.type = type;
            config.weights = folder;
            model::codec_shape(config);
            model::make_codec(config, at::kCPU);
          }};
}

// One file without a configuration.
Reader codec_file(const std::string& type, const std::function<void(const std::string& path)>& write) {
  return {"codec " + type,
          [=](const std::string& folder) { write(folder + "/codec.safetensors"); },
          {"codec.safetensors"},
          [=](const std::string& folder) {
            model::CodecConfig config;
            config.type = type;
            config.weights = folder + "/codec.safetensors";
            model::codec_shape(config);
            model::make_codec(config, at::kCPU);
          }};
}

void write_patch_codec(const std::string& path) {
  model::PatchCodecConfig config;
  config.encoder_width = config.decoder_width = config.fine_width = 2;
  std::vector<model::NamedTensor> tensors;
  for (const model::ParameterSpec& spec : model::patch_codec_specs(config))
    tensors.push_back({spec.name, at::zeros(spec.shape, at::kHalf)});
  model::write_safetensors(path, tensors, {});
}

Reader siglip() {
  return {"SigLIP",
          [](const std::string& folder) { copy_all(kModels + "siglip/image_encoder", folder); },
          {"config.json", "model.safetensors"},
          [](const std::string& folder) {
            model::ImageEncoderConfig config;
            config.type = "siglip";
            config.weights = folder;
            model::make_image_encoder(config, at::kCPU);
          }};
}

// Both encoders of a type, each with its tokenizer.
Reader hunyuan_text(const std::string& type, const std::string& language, const std::string& second,
                    std::vector<std::string> files) {
  const bool clip = type == "hunyuan";
  return {"text encoder " + type,
          [=](const std::string& folder) {
            for (const char* part : {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
              fs::create_directories(folder + "/" + part);
            copy_all(kModels + "hunyuan_text/" + language, folder + "/text_encoder");
            copy_all(kModels + "hunyuan_text/" + second, folder + "/text_encoder_2");
            copy_all(kModels + "bpe/" + (clip ? "llama" : "qwen"), folder + "/tokenizer");
            if (clip) copy_all(kModels + "bpe/clip", folder + "/tokenizer_2");
          },
          std::move(files),
          [=](const std::string& folder) {
            model::TextEncoderConfig config;
            config.type = type;
            config.weights = folder;
            config.dtype = "fp32";
            model::make_text_encoder(config, at::kCPU)->encode({"a gold mirror \u4e2d <|eot_id|>", ""});
            model::count_long_captions(config, {std::string(300, 'y')});
          }};
}

// The files alone, without the weights that the text encoders read.
Reader bpe(const std::string& name, const std::string& family, const model::BpeRules& rules,
           std::vector<std::string> files) {
  return {"tokenizer " + name,
          [=](const std::string& folder) {
            for (const std::string& file : files) fs::copy(kModels + "bpe/" + family + "/" + file, folder + "/" + file);
          },
          files,
          [=](const std::string& folder) {
            model::BpeTokenizer::load(folder, "tokenizer", rules, "text.tokenizer").encode("a gold mirror \u4e2d");
          }};
}

Reader tokenizer() {
  return {"tokenizer",
          [](const std::string& folder) {
            fs::copy(kModels + "umt5/spiece.model", folder + "/spiece.model");
            fs::copy(kModels + "umt5/tokenizer_config.json", folder + "/tokenizer_config.json");
          },
          {"spiece.model", "tokenizer_config.json"},
          [](const std::string& folder) {
            model::SentencePieceTokenizer::load(folder).encode("a gold mirror <extra_id_0> \u4e2d", 16);
          }};
}

}  // namespace

std::vector<Reader> model_readers() {
  return {gguf(),
          index(),
          model_config(),
          original_config(),
          vae_config(),
          clip_config(),
          model_folder("hunyuan_t2v"),
          model_folder("hunyuan_replace"),
          model_folder("hunyuan_15_i2v"),
          original_hunyuan(),
          vae("hunyuan_vae", "hunyuan_vae"),
          vae("hunyuan_15_vae", "hunyuan15_vae"),
          codec_file("taehv", [](const std::string& path) { fs::copy(kModels + "taehv.safetensors", path); }),
          codec_file("patch_codec", write_patch_codec),
          siglip(),
          hunyuan_text("hunyuan", "text_encoder", "text_encoder_2",
                       {"text_encoder/config.json", "text_encoder/model.safetensors.index.json",
                        "text_encoder/model-00001-of-00002.safetensors", "text_encoder_2/config.json",
                        "text_encoder_2/model.safetensors"}),
          hunyuan_text("hunyuan_15", "qwen", "byt5",
                       {"text_encoder/config.json", "text_encoder_2/model.safetensors"}),  // ByT5 needs no config.json
          bpe("tokenizer.json", "llama", model::llama3_rules(), {"tokenizer.json"}),
          bpe("tiktoken", "llama", model::llama3_rules(), {"tokenizer.model"}),
          bpe("CLIP", "clip", model::clip_rules(), {"vocab.json", "merges.txt"}),
          bpe("Qwen", "qwen", model::qwen2_rules(), {"vocab.json", "merges.txt", "tokenizer_config.json"}),
          tokenizer()};
}

}  // namespace vmoba::test
