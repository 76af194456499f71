#include "config/foreign_keys.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace vmoba {
namespace {

ForeignKey key(const std::string& name, const std::vector<std::string>& keys, const std::string& remark = "") {
  return {name, keys, fmt::format("{}{}{}", fmt::join(keys, " and "), remark.empty() ? "" : ", ", remark)};
}

ForeignKey remark(const std::string& name, const std::string& words) {
  return {name, {}, words};
}

}  // namespace

const std::vector<ForeignKey>& foreign_keys() {
  static const std::vector<ForeignKey> table = {
      // LoRA
      key("network_dim", {"lora.rank"}),
      key("network_alpha", {"lora.alpha"}),
      key("network_module", {"lora.rank"}, "above 0 for a LoRA"),
      key("network_weights", {"lora.init_from"}),
      key("network_args", {"lora.targets"}),
      remark("adapter", "the group lora: lora.rank, lora.alpha, lora.init_from"),
      key("lora_rank", {"lora.rank"}),
      key("lora_alpha", {"lora.alpha"}),
      key("lora_dim", {"lora.rank"}),
      key("lora_target_modules", {"lora.targets"}),
      key("loraplus_lr_ratio", {"lora.plus_ratio"}),
      key("target_modules", {"lora.targets"}),
      key("lora_target", {"lora.targets"}),
      key("lora_training", {"lora.rank"}, "above 0 for a LoRA"),
      key("dim_from_weights", {"lora.rank"}),
      key("init_from_existing", {"lora.init_from"}),
      key("lora_path", {"lora.init_from"}),
      key("save_precision", {"lora.save_dtype"}),
      // Optimiser and schedule
      key("learning_rate", {"train.optimizer.lr"}),
      key("lr_scheduler", {"train.optimizer.schedule"}),
      key("lr_warmup_steps", {"train.optimizer.warmup_steps"}),
      key("lr_warmup_ratio", {"train.optimizer.warmup_steps"}, "counted in steps"),
      key("lr_scheduler_type", {"train.optimizer.schedule"}),
      key("adam_beta1", {"train.optimizer.betas"}),
      key("adam_beta2", {"train.optimizer.betas"}),
      key("adam_epsilon", {"train.optimizer.eps"}),
      key("adam_weight_decay", {"train.optimizer.weight_decay"}),
      key("clip_grad_norm", {"train.optimizer.max_grad_norm"}),
      key("gradient_clipping", {"train.optimizer.max_grad_norm"}),
      key("optimizer_type", {"train.optimizer.type"}, "adamw, adamw_8bit or muon"),
      // Length, batch, saving
      key("max_train_steps", {"train.steps"}),
      key("max_steps", {"train.steps"}),
      key("epochs", {"train.epochs"}),
      key("num_train_epochs", {"train.epochs"}),
      key("max_train_epochs", {"train.epochs"}),
      key("train_batch_size", {"train.global_batch"}),
      key("batch_size", {"train.global_batch", "train.micro_batch"}),
      key("micro_batch_size_per_gpu", {"train.micro_batch"}),
      key("gradient_accumulation_steps", {"train.global_batch"},
          "what is above ranks times train.micro_batch accumulates"),
      key("save_every_n_steps", {"train.checkpoint_every"}),
      key("checkpoint_every_n_minutes", {"train.checkpoint_every"}, "counted in steps"),
      key("checkpointing_steps", {"train.checkpoint_every"}),
      key("save_every_n_epochs", {"train.checkpoint_every_epochs"}),
      key("sample_every_n_epochs", {"train.validate_every_epochs"}),
      key("checkpoints_total_limit", {"train.keep_checkpoints"}),
      key("save_last_n_steps", {"train.keep_checkpoints"}, "counted in checkpoints"),
      key("sample_every_n_steps", {"train.validate_every"}),
      key("validation_steps", {"train.validate_every"}),
      key("log_validation", {"train.validate_every"}, "above 0"),
      key("training_state_checkpointing_steps", {"train.checkpoint_every"}),
      key("weight_only_checkpointing_steps", {"train.checkpoint_every"}),
      key("per_device_train_batch_size", {"train.micro_batch"}),
      key("eval_every_n_steps", {"train.validate_every"}),
      key("output_dir", {"run.dir"}),
      key("output_path", {"run.dir"}),
      key("output_name", {"run.dir"}),
      key("logging_dir", {"run.dir"}),
      key("log_with", {"train.tensorboard"}),
      key("report_to", {"train.tensorboard"}),
      remark("resume_from_checkpoint", "the option --resume of vmoba-train"),
      key("use_ema", {"train.ema.enabled"}),
      key("ema_decay", {"train.ema.decay"}),
      // Flow matching
      key("discrete_flow_shift", {"train.flow.shift"}),
      key("flow_shift", {"train.flow.shift"}, "and sample.shift while sampling"),
      key("timestep_sample_method", {"train.flow.timestep_sampling"}),
      key("weighting_scheme", {"train.flow.timestep_sampling"}, "and train.flow.loss_weighting for the loss"),
      key("training_cfg_rate", {"train.flow.caption_dropout"}),
      key("sigmoid_scale", {"train.flow.logit_std"}),
      key("text_drop_ratio", {"train.flow.caption_dropout"}),
      key("caption_dropout_rate", {"train.flow.caption_dropout"}),
      key("timestep_boundary", {"experts[].until_timestep"}),
      // Model and memory
      key("ckpt_path", {"model.weights"}),
      key("transformer_path", {"model.weights"}),
      key("dit_path", {"model.weights"}),
      key("model_path", {"model.weights"}),
      key("unet_path", {"model.weights"}),
      key("llm_path", {"text.weights"}),
      key("vae_path", {"codec.weights"}),
      key("text_encoder", {"text.weights"}),
      key("text_encoder1", {"text.weights"}),
      key("dit", {"model.weights"}),
      key("pretrained_model_name_or_path", {"model.weights"}, "and codec.weights, text.weights"),
      key("dit_high_noise", {"experts[].weights"}),
      key("vae", {"codec.weights"}),
      key("t5", {"text.weights"}),
      key("clip", {"image_encoder.weights"}),
      key("gradient_checkpointing", {"model.recompute"}),
      key("use_gradient_checkpointing", {"model.recompute"}),
      key("enable_gradient_checkpointing_type", {"model.recompute"}),
      key("activation_checkpointing_mode", {"model.recompute"}),
      key("use_gradient_checkpointing_offload", {"model.offload"}),
      key("vae_tiling", {"codec.tile_size"}),
      key("vae_spatial_tile_sample_min_size", {"codec.tile_size"}),
      key("mixed_precision", {"model.compute_dtype"}),
      key("transformer_dtype", {"model.weights_dtype"}),
      key("fp8_base", {"model.weights_dtype"}, "fp8"),
      key("fp8_scaled", {"model.weights_dtype"}, "fp8"),
      key("blocks_to_swap", {"model.offload"}, "weights streams all blocks; auto does where they do not fit"),
      key("sdpa", {"attention.backend"}),
      key("flash_attn", {"attention.backend"}),
      key("attn_mode", {"attention.backend"}),
      key("VSA_sparsity", {"attention.tau"}, "lower is sparser"),
      key("sp_size", {"parallel.sequence"}),
      key("num_gpus", {"parallel.data"}, "which mpirun -n sets by itself"),
      key("hsdp_shard_dim", {"parallel.shard"}),
      key("pipeline_stages", {"parallel.shard"}, "which shares the model's memory in another way"),
      // Data
      key("dataset_config", {"data.path"}),
      key("dataset", {"data.path"}),
      key("video_directory", {"data.path"}),
      key("image_directory", {"data.path"}),
      key("data_root", {"data.path"}),
      key("data_path", {"data.path"}),
      key("dataset_path", {"data.path"}),
      key("dataset_base_path", {"data.path"}),
      key("dataset_metadata_path", {"data.path"}),
      key("train_data_dir", {"data.path"}),
      key("train_data_meta", {"data.path"}),
      remark("caption_extension", "the folder itself: captions are .txt, .caption or .json files beside the media"),
      key("dataset_repeat", {"data.num_repeats"}),
      key("video_clip_mode", {"data.frame_extraction"}),
      key("frame_sample", {"data.frame_extraction"}),
      key("video_length_drop_start", {"data.frame_extraction"}),
      key("num_height", {"data.height"}),
      key("num_width", {"data.width"}),
      key("max_data_loader_n_workers", {"data.decode_threads"}),
      key("dataloader_num_workers", {"data.decode_threads"}),
      key("validation_dataset_file", {"validate.path"}),
      key("cache_directory", {"cache.dir"}),
      key("resolution", {"data.height", "data.width"}),
      key("resolutions", {"data.height", "data.width"}),
      key("target_frames", {"data.frames"}),
      key("num_frames", {"data.frames"}),
      key("num_latent_t", {"data.frames"}, "counted in frames of the video: 1 + 4 (num_latent_t - 1)"),
      key("frame_buckets", {"data.frames"}),
      key("source_fps", {"data.fps"}),
      key("enable_ar_bucket", {"data.aspect_buckets"}),
      key("enable_bucket", {"data.aspect_buckets"}),
      key("num_ar_buckets", {"data.aspect_buckets"}),
      key("min_ar", {"data.min_aspect"}),
      key("max_ar", {"data.max_aspect"}),
      // Sampling
      key("sample_prompts", {"sample.prompts"}),
      key("validation_prompts", {"sample.prompts"}),
      key("num_inference_steps", {"sample.steps"}),
      key("validation_sampling_steps", {"sample.steps"}),
      key("guidance_scale", {"sample.guidance"}),
      key("validation_guidance_scale", {"sample.guidance"}),
  };
  return table;
}

std::string home_of_foreign_key(const std::string& key) {
  std::string word = key.substr(key.rfind('.') + 1);
  std::replace(word.begin(), word.end(), '-', '_');
  for (const ForeignKey& foreign : foreign_keys())
    if (foreign.name == word) return foreign.words;
  return "";
}

}  // namespace vmoba
