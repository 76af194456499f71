// What a changed key means to a run that goes on from a checkpoint. One table of all keys; a key that no row names
// counts as exactness, so that a new one is never passed over in silence.
#pragma once
#include <string>
#include <vector>

#include "config/root_config.h"

namespace vmoba {

enum class ResumeRule {
  kModel,      // part of the model, or of what its weights or samples mean: another value is refused
  kExactness,  // other bytes from here on: another value is said and recorded
  kFree,       // no bearing on what is trained
};

// Of a full key ("train.optimizer.lr", "experts[0].weights").
ResumeRule resume_rule(const std::string& key);

struct ChangedKey {
  std::string key, old_value, new_value;  // values as YAML writes them
  ResumeRule rule = ResumeRule::kFree;
};

// The keys whose values differ between a checkpoint's configuration, as text, and the run's, without free ones. A key
// that the text lacks (of an earlier version) has its default. `origin` names the text. Throws Error(kInput) where it
// cannot be read.
std::vector<ChangedKey> changed_keys(const std::string& checkpoint_yaml, const std::string& origin,
                                     const RootConfig& config);

// Keys of which ranks of one job may have different values.
bool may_differ_between_ranks(const std::string& key);

// What makes two runs the same one, as text: the values of all keys that are not free and not of the machine.
std::string run_identity(const RootConfig& config);

}  // namespace vmoba
