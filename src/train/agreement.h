// Whether the ranks of a job do the same run: before the first step the same configuration, program, files and clips;
// at every checkpoint the same values wherever several ranks hold a copy. All functions are collective over the world
// and throw Error(kInput), or Error(kRuntime) where a copy went wrong, on all ranks, naming rank, host and the first
// difference.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/dist/mesh_sizes.h"
#include "train/dist/world.h"
#include "train/expert.h"

namespace vmoba::train {

// What a rank has of something, in an order that all ranks share: name ("train.optimizer.lr", "clip 17") and value.
using Facts = std::vector<std::pair<std::string, std::string>>;

// The ranks that are in the majority, the first rank's side where there is none, are taken as right. `remedy`: what to
// do ("start every rank with one command").
void require_same_facts(dist::World& world, const Facts& facts, const std::string& remedy);

std::string program_version();

// Every key but those of the ranks' own (config/resume_rules.h); program and libraries. Returns `config`.
const RootConfig& require_same_config(dist::World& world, const RootConfig& config);
void require_same_clips(dist::World& world, const data::ClipPlan& plan, const std::string& data_path);
// Files of pretrained encoders, by size and samples of their bytes.
void require_same_encoders(dist::World& world, const RootConfig& config);

// Every clip with all that a sample depends on, paths from `data_path`.
Facts clip_facts(const data::ClipPlan& plan, const std::string& data_path);
// The clips' files when they were planned, by size or by some of their bytes: what a plan of clips does not say and
// another file of the same name shows.
enum class FileFact { kBytes, kSample };
Facts clip_file_facts(const data::ClipPlan& plan, FileFact fact);
// Of either, in their order.
std::string clips_hash(const Facts& clips);
// Between the hashes of clips, sizes and samples in a checkpoint's record; earlier versions wrote fewer of them.
constexpr char kFilesMark = '+';

// Compares what ranks hold several times: all trained values, average and optimiser state, and with `frozen` all other
// parameters too. `step`: optimiser steps done, for the message.
void require_same_copies(dist::World& world, const dist::MeshSizes& sizes, const std::vector<Expert>& experts,
                         bool frozen, int64_t step);

// Of all parameters of the models, those of adapters left out; the same whatever ranks hold them, on any device.
std::string base_hash(dist::World& world, const dist::MeshSizes& sizes, const std::vector<Expert>& experts);

}  // namespace vmoba::train
