// Precompiled for every target that sees torch. Sources still include what they use.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
