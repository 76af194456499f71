// vmoba-sample: text (and an image) -> video, from a checkpoint of vmoba-train or from pretrained weights as they are
// (docs/running.md).
#include "apps/main_guard.h"
#include "apps/sample/write_samples.h"

int main(int argc, char** argv) {
  using namespace vmoba;
  CLI::App app{"Samples a video from a checkpoint of vmoba-train, or from the pretrained weights of a configuration."};
  apps::SampleArguments a;
  app.add_option("--checkpoint", a.checkpoint, "checkpoint-<step> folder of a run, or the run's folder: its newest");
  app.add_option("--config", a.config, "Configuration whose model.weights are sampled from, untrained");
  app.add_option("--prompt", a.prompt, "What to show");
  app.add_option("--prompts", a.prompts,
                 "File of several videos (.txt, .json, .jsonl), each with its own prompt, size, seed, steps, image "
                 "(docs/running.md)");
  app.add_option("--negative-prompt", a.negative, "What to steer away from (default: the configuration's)");
  app.add_option("--image", a.image, "First frame: an image, or a video whose first frame is taken (model.task)");
  app.add_option("--last-image", a.last_image, "Last frame (model.task flf2v)");
  app.add_option("--out", a.out,
                 "File to write: .mp4, .webm, .gif, .mkv (lossless), or pictures %04d.png (sample.mp4; none where only "
                 "--output-latents is given). With --prompts a number is added, or it is a folder");
  app.add_option("--latents", a.latents, "safetensors file with starting noise: latents");
  app.add_option(
      "--embeds", a.embeds,
      "safetensors file with prompt_embeds, negative_prompt_embeds, image_embeds (any of them), for HunyuanVideo also "
      "pooled_prompt_embeds and prompt_attention_mask");
  app.add_option("--output-latents", a.output_latents, "safetensors file to write the final latents to");
  app.add_option("--seed", a.seed, "Seed of the noise (default: sample.seed); -1 draws one and prints it")
      ->check(apps::whole_number());
  app.add_flag("--ema,!--no-ema", a.use_ema, "Use the averaged weights where the checkpoint has them (default)");
  // One value for each: what follows is an override.
  app.add_option("--lora", a.loras,
                 "LoRA file to add, in any format of docs/pretrained.md; may be repeated. N:FILE adds to expert N (the "
                 "first is 1, where no number stands)")
      ->allow_extra_args(false);
  app.add_option("--lora-2", a.loras_2, "The last release's word for --lora 2:FILE; the next one refuses it")
      ->allow_extra_args(false);
  app.add_option("--lora-strength", a.lora_strength, "Factor of what --lora adds (1)");
  CLI::Option* rank =
      app.add_option("--rank", a.rank, "This process's number, from 0, among several that share --prompts")
          ->check(CLI::NonNegativeNumber);
  rank->needs(app.add_option("--ranks", a.ranks, "How many processes share --prompts")->check(CLI::PositiveNumber));
  app.add_option("overrides", a.overrides, "key.sub=value, for example sample.steps=20 attention.backend=full");
  return apps::guarded_main(app, argc, argv, [&] { return apps::write_samples(a); });
}
