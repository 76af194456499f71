// What an adapter file does to a module, and doing it to weights: low-rank products, DoRA's magnitudes (Liu et al.
// 2402.09353), differences of whole weights and biases.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/dit.h"

namespace vmoba::model {

// fp32 tensors; undefined ones: none.
struct ModuleChange {
  std::string module;    // diffusers' name
  LowRank low_rank;      // adds scale * B A to the weight
  at::Tensor magnitude;  // DoRA: the rows (or, [1, in], columns) of weight + scale * B A get these lengths
  at::Tensor weight;     // added to the weight
  at::Tensor bias;       // added to the bias

  bool low_rank_alone() const { return !magnitude.defined() && !weight.defined() && !bias.defined(); }
};

// One change of one parameter, at a strength: parameter + strength * (changed - parameter).
struct Delta {
  ModuleChange change;
  double strength = 1;
};
// By the parameter's name ("<module>.weight", "<module>.bias", or the module's, where that is a parameter).
using Deltas = std::map<std::string, std::vector<Delta>>;

// The shape of the transformer's parameter of that name; null where there is none.
using ShapeOf = std::function<const std::vector<int64_t>*(const std::string&)>;
// Of a model; it has the shapes and does not need the parameters any more.
ShapeOf shapes_of(const std::vector<Parameter>& parameters);

// Sorts the changes by parameter. Throws Error(kInput) where the transformer, named by `transformer`, lacks one, or has
// it in another shape; `file` says where the changes come from.
void add_deltas(std::vector<ModuleChange> changes, double strength, const std::string& file, const ShapeOf& shape_of,
                const std::string& transformer, Deltas& deltas);

// Changes an fp32 parameter in place. Each delta begins at the value that the parameter came with, as adapters that are
// loaded together do.
void apply_deltas(const std::vector<Delta>& deltas, at::Tensor& parameter);

// Adapters of files for a model that will not be trained: low-rank ones are returned with their strength, to be
// attached; all else is merged into the model's parameters, rounded to the type that these are kept in.
struct AdapterFile {
  std::vector<ModuleChange> changes;
  double strength = 1;
  std::string path;
};
std::vector<Adapter> merged_adapters(std::vector<AdapterFile> files, const std::vector<Parameter>& parameters);

}  // namespace vmoba::model
