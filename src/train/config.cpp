#include "train/config.h"

#include "core/check.h"
#include "model/conditioning.h"

namespace vmoba::train {

void RunConfig::visit(ConfigVisitor& v) {
  v.field("dir", dir, "Folder of the run: checkpoints, metrics, samples, resolved configuration.");
  v.field("device", device, "Where to compute; `auto` takes a CUDA GPU where one is present.",
          one_of({"auto", "cpu", "cuda"}));
  v.field("log_level", log_level, "Least severity that is printed.", one_of({"debug", "info", "warning", "error"}));
  v.field("deterministic", deterministic,
          "On a GPU: the same bytes in every run and after every resume, at a price (VMoBA's backward takes four times "
          "as long). A CPU always repeats its bytes.");
  v.field("threads", threads, "CPU threads of tensor operations; 0 takes every core.", between(0, 1024));
  v.field(
      "profile_step", profile_step,
      "Records what CPU and GPU do in this step (1-based) into `<run.dir>/profile-<step>-rank<rank>.json`, a Chrome "
      "trace; 0 records nothing. Take one that is not the first: there memory and kernels are set up.",
      at_least(0));
}

void OptimizerConfig::visit(ConfigVisitor& v) {
  v.field("lr", lr, "Peak learning rate of AdamW.", at_least(0));
  v.field("betas", betas, "Decay of the first and second moment.", list_of(2, 0));
  v.field("eps", eps, "Added to the root of the second moment.", above(0));
  v.field("weight_decay", weight_decay, "Decoupled weight decay.", at_least(0));
  v.field("schedule", schedule, "Learning rate after warm-up: constant, or falling to `final_lr` at the last step.",
          one_of({"constant", "linear", "cosine"}));
  v.field("warmup_steps", warmup_steps, "Steps in which the learning rate rises linearly to `lr`.", at_least(0));
  v.field("final_lr", final_lr, "Learning rate at the last step of `linear` and `cosine`.", at_least(0));
  v.field("max_grad_norm", max_grad_norm, "Gradients are scaled down to this global L2 norm; 0 leaves them alone.",
          at_least(0));
}

void FlowConfig::visit(ConfigVisitor& v) {
  v.field("timestep_sampling", timestep_sampling, "Distribution of the training timestep before `shift`.",
          one_of({"uniform", "logit_normal"}));
  v.field("logit_mean", logit_mean, "Mean of the normal whose sigmoid is the timestep (`logit_normal`).");
  v.field("logit_std", logit_std, "Its standard deviation.", above(0));
  v.field("shift", shift, "Moves timesteps toward noise: s*t / (1 + (s-1)*t). 1: none; 3 for 480p, 5 for 720p.",
          above(0));
  v.field("min_timestep", min_timestep, "Timesteps are drawn from [min, max] (rescaled, not clamped).",
          between(0, 1000));
  v.field("max_timestep", max_timestep, "Upper end of the timestep range; 1000 is pure noise.", between(0, 1000));
  v.field("loss_weighting", loss_weighting, "Weight of a sample's loss by its noise level (as in diffusers' SD3).",
          one_of({"uniform", "sigma_sqrt", "cosmap"}));
  v.field("caption_dropout", caption_dropout, "Probability that a sample is trained with an empty caption.",
          between(0, 1));
  v.field("first_frame_rate", first_frame_rate,
          "For model.task ti2v: probability that a sample is given its first frame; the others train text to video.",
          between(0, 1));
}

void EmaConfig::visit(ConfigVisitor& v) {
  v.field("enabled", enabled, "Keep an exponential moving average of the weights (saved as `transformer_ema/`).");
  v.field("decay", decay, "Its decay per step, reached as min(decay, (1+step)/(10+step)).", between(0, 1));
}

void TrainConfig::visit(ConfigVisitor& v) {
  v.field("steps", steps, "Optimiser steps of the whole run.", at_least(0));
  v.field("global_batch", global_batch, "Samples per optimiser step over all ranks; accumulation follows from it.",
          at_least(1));
  v.field("micro_batch", micro_batch,
          "Samples of one forward pass; `global_batch` must be a multiple. Less where a rank's share is.", at_least(1));
  v.field("checkpoint_every", checkpoint_every, "Steps between checkpoints; 0: only at the end and on a signal.",
          at_least(0));
  v.field("keep_checkpoints", keep_checkpoints, "Newest checkpoints that are kept; 0 keeps all.", at_least(0));
  v.field("checkpoint_async", checkpoint_async,
          "Train on while a checkpoint is written from a copy in the host's memory; off: wait until it is on disk.");
  v.field("validate_every", validate_every, "Steps between validation samples (group `sample`); 0: none.", at_least(0));
  v.field("tensorboard", tensorboard, "Write TensorBoard event files to `<run.dir>/tensorboard`.");
  v.group("optimizer", "AdamW and its learning rate.", optimizer);
  v.group("flow", "Flow matching: timesteps, loss weights, caption dropout.", flow);
  v.group("ema", "Moving average of the weights.", ema);
}

void ParallelConfig::visit(ConfigVisitor& v) {
  v.field("data", data,
          "Copies of the training state, on shard x sequence ranks each; 0 fills in what the number of ranks leaves.",
          at_least(0));
  v.field("shard", shard,
          "Ranks that hold a copy of the training state together (parameters, gradients, optimiser, average), each a "
          "part, and take samples of their own. The ranks of `sequence` hold parts as well.",
          at_least(1));
  v.field("sequence", sequence,
          "Ranks that compute each sample together (Ulysses): its tokens are split, around self attention its heads; a "
          "divisor of model.heads.",
          at_least(1));
  v.field("timeout_s", timeout_s,
          "Seconds that a rank may keep the others waiting, or be silent, before the whole job ends.",
          between(1, 86400));
  v.field("report_every", report_every, "Steps between reports of the slowest rank; 0: none.", at_least(0));
}

void RootConfig::visit(ConfigVisitor& v) {
  v.field("seed", seed, "Every random draw is a function of it and of the sample or step number.", at_least(0));
  v.group("run", "Where a run lives.", run);
  v.group("parallel", "Several ranks (docs/distributed.md).", parallel);
  v.group("data", "Clips to train on.", data);
  v.group("model", "The diffusion transformer.", model);
  v.group("lora", "Low-rank adapters beside a frozen transformer (docs/pretrained.md).", lora);
  v.group("codec", "Video to latents.", codec);
  v.group("text", "Captions to embeddings.", text);
  v.group("image_encoder", "First frames to embeddings, for models with image tokens.", image_encoder);
  v.group("cache", "Latents and embeddings made once (`vmoba-encode`, docs/running.md).", cache);
  v.group("attention", "Self attention of every layer: full or VMoBA (docs/attention.md).", attention);
  v.group("train", "The training loop.", train);
  v.group("sample", "Sampling: `vmoba-sample` and validation during training.", sample);
}

void RootConfig::validate() const {
  data.validate();
  model.validate();
  lora.validate();
  attention.validate();
  VMOBA_CHECK_INPUT(train.global_batch % train.micro_batch == 0,
                    "train.global_batch: expected a multiple of train.micro_batch ({}), found {}", train.micro_batch,
                    train.global_batch);
  VMOBA_CHECK_INPUT(train.flow.min_timestep < train.flow.max_timestep,
                    "train.flow.min_timestep: expected less than train.flow.max_timestep ({}), found {}",
                    train.flow.max_timestep, train.flow.min_timestep);
  for (double beta : train.optimizer.betas)
    VMOBA_CHECK_INPUT(beta < 1, "train.optimizer.betas: expected values below 1, found {}", beta);
  if (text.type == "hash")
    VMOBA_CHECK_INPUT(text.dim == model.text_dim,
                      "text.dim: expected model.text_dim ({}), found {}; set both to the same width", model.text_dim,
                      text.dim);
  VMOBA_CHECK_INPUT(model.boundary > 0 || lora.init_from_2.empty(),
                    "lora.init_from_2: expected none without a second expert (model.boundary 0), found '{}'",
                    lora.init_from_2);
  VMOBA_CHECK_INPUT(!run.dir.empty(), "run.dir: expected a folder, found nothing");
}

RootConfig load_root_config(const std::string& path, const std::vector<std::string>& overrides) {
  RootConfig config;
  load_config(path, overrides, [&](ConfigVisitor& v) { config.visit(v); });
  config.validate();
  return config;
}

void validate_training(const RootConfig& config) {
  VMOBA_CHECK_INPUT(
      config.lora.enabled() || config.model.weights_dtype == "fp32",
      "model.weights_dtype: expected fp32 to train all weights, found {}; set it to fp32, or lora.rank to "
      "train adapters beside a frozen base",
      config.model.weights_dtype);
  const FlowConfig& flow = config.train.flow;
  const double boundary = config.model.boundary;
  VMOBA_CHECK_INPUT(
      boundary == 0 || (flow.min_timestep < boundary && boundary < flow.max_timestep),
      "train.flow.min_timestep and max_timestep: expected a range on both sides of model.boundary ({}), so that both "
      "experts are trained, found [{}, {}]; to train one of them alone, set model.weights to it and model.boundary to "
      "0",
      boundary, flow.min_timestep, flow.max_timestep);
}

data::ClipGeometry clip_geometry(const RootConfig& config) {
  const model::CodecShape codec = model::codec_shape(config.codec);
  const int64_t condition = model::condition_channels(config.model, codec);
  VMOBA_CHECK_INPUT(
      config.model.in_channels == codec.channels + condition && config.model.out_channels == codec.channels,
      "model.in_channels and model.out_channels: expected {} and {} (codec '{}', model.task {}), found {} "
      "and {}",
      codec.channels + condition, codec.channels, config.codec.type, config.model.task, config.model.in_channels,
      config.model.out_channels);
  VMOBA_CHECK_INPUT(config.model.patch_size[0] == 1 && config.model.patch_size[1] == config.model.patch_size[2],
                    "model.patch_size: expected [1, p, p], found [{}, {}, {}]", config.model.patch_size[0],
                    config.model.patch_size[1], config.model.patch_size[2]);
  data::ClipGeometry geometry{codec.temporal_stride, codec.spatial_stride * config.model.patch_size[1]};
  if (model::needs_first_frame(config.model)) geometry.least_frames = 1 + codec.temporal_stride;
  return geometry;
}

void check_text_width(const RootConfig& config, int64_t width) {
  VMOBA_CHECK_INPUT(width == config.model.text_dim,
                    "model.text_dim: expected {} (width of the embeddings of text.type {}), found {}", width,
                    config.text.type, config.model.text_dim);
}

std::string config_reference() {
  RootConfig config;
  return "# Configuration reference\n\nGenerated by `vmoba-train --config-reference`; do not edit. Every key can be "
         "set "
         "on the command line as `key.sub=value`.\n" +
         config_to_markdown([&](ConfigVisitor& v) { config.visit(v); });
}

}  // namespace vmoba::train
