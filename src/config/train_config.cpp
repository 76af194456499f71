#include "config/train_config.h"

namespace vmoba {

void OptimizerConfig::visit(ConfigVisitor& v) {
  v.field("type", type,
          "What changes the weights. `adamw`; `adamw_8bit`: its moments in blocks of 8-bit codes, 2 bytes a weight "
          "instead of 8; `muon`: the matrices of the blocks by orthogonalised momentum, everything else by AdamW.",
          one_of({"adamw", "adamw_8bit", "muon"}));
  v.kind_fields("type", type, {{"muon", [this](ConfigVisitor& of) { visit_muon(of); }}});
  v.field("lr", lr, "Peak learning rate.", at_least(0));
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

void OptimizerConfig::visit_muon(ConfigVisitor& v) {
  v.field("momentum", momentum, "Decay of the matrices' momentum.", between(0, 1));
  v.field("newton_schulz_steps", newton_schulz_steps, "Iterations that orthogonalise the momentum.", between(1, 20));
  v.field("matrix_lr", matrix_lr,
          "Learning rate of the matrices. `match_rms`: `lr` times 0.2 sqrt(max(rows, columns)), steps as large as "
          "AdamW's; `original`: `lr` times sqrt(max(1, rows / columns)).",
          one_of({"match_rms", "original"}));
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
  v.field(
      "embedded_guidance", embedded_guidance,
      "Guidance scale that a model with model.guidance_embed is told in training (HunyuanVideo 1.0, whose published "
      "weights are distilled for it): 1 keeps what it makes of other values, 6 trains it as it is sampled.",
      at_least(0));
}

void EmaConfig::visit(ConfigVisitor& v) {
  v.field("enabled", enabled, "Keep an exponential moving average of the weights (saved as `transformer_ema/`).");
  v.field("decay", decay, "Its decay per step, reached as min(decay, (1+step)/(10+step)).", between(0, 1));
}

void RewindConfig::visit(ConfigVisitor& v) {
  v.field(
      "times", times,
      "How often a run may go back to its last good checkpoint where the loss spikes or is not finite, and past the "
      "samples since; 0: never.",
      at_least(0));
  v.field("factor", factor, "A loss above this many times the median of the last 64 is a spike.", above(1));
}

void DistillConfig::visit(ConfigVisitor& v) {
  v.field("weight", weight,
          "Share of the loss that compares the velocity with that of a frozen teacher with full attention; the rest is "
          "the loss on the data. 0: no teacher.",
          between(0, 1));
  v.field(
      "weights", weights,
      "Weights of the teacher, a folder or file as model.weights; empty: model.weights itself. With LoRA the teacher "
      "is the base model, which needs no memory of its own.");
}

void TrainConfig::visit(ConfigVisitor& v) {
  v.field("steps", steps, "Optimiser steps of the whole run.", at_least(0));
  v.field(
      "epochs", epochs,
      "Length of the run in passes over the data, in place of `steps`, which then follows from it; 0: `steps` counts.",
      at_least(0));
  v.field("global_batch", global_batch, "Samples per optimiser step over all ranks; accumulation follows from it.",
          at_least(1));
  v.field("micro_batch", micro_batch,
          "Samples of one forward pass; `global_batch` must be a multiple. Less where a rank's share is.", at_least(1));
  v.field("checkpoint_every", checkpoint_every, "Steps between checkpoints; 0: only at the end and on a signal.",
          at_least(0));
  v.field("checkpoint_every_epochs", checkpoint_every_epochs,
          "Epochs between checkpoints, beside those of `checkpoint_every`; 0: none.", at_least(0));
  v.field("keep_checkpoints", keep_checkpoints, "Newest checkpoints that are kept; 0 keeps all.", at_least(0));
  v.field("keep_every", keep_every, "Checkpoints of steps that this divides are kept as well; 0: none.", at_least(0));
  v.field("keep_best", keep_best,
          "So many checkpoints with the lowest validation loss (`val_loss` of their step) are kept as well.",
          at_least(0));
  v.field("checkpoint_async", checkpoint_async,
          "Train on while a checkpoint is written from a copy in the host's memory; off: wait until it is on disk.");
  v.field("validate_every", validate_every, "Steps between validation samples (group `sample`); 0: none.", at_least(0));
  v.field("validate_every_epochs", validate_every_epochs,
          "Epochs between validation samples, beside those of `validate_every`; 0: none.", at_least(0));
  v.field("tensorboard", tensorboard, "Write TensorBoard event files to `<run.dir>/tensorboard`.");
  v.field("report", report,
          "Rewrite `<run.dir>/report.html` at every checkpoint: curves, samples, clips as trained on, configuration.");
  v.group("optimizer", "The optimiser and its learning rate.", optimizer);
  v.group("flow", "Flow matching: timesteps, loss weights, caption dropout.", flow);
  v.group("ema", "Moving average of the weights.", ema);
  v.group("distill", "A dense teacher, for the conversion of a model to sparse attention.", distill);
  v.group("rewind", "Going back past a spike of the loss (docs/running.md).", rewind);
}

}  // namespace vmoba
