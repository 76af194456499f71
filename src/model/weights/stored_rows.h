// Where the rows of a parameter lie in the tensor of a weight file that holds them: such a tensor may hold several
// parameters (q, k and v as one map), or the halves of one in the other order. Values, no state.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace vmoba::model {

enum class Rows {
  kAll,
  kEqualPart,      // several parameters of one size, one behind the other
  kSquarePart,     // the same, but of all but the last it is known only that they have as many rows as columns
  kSwappedHalves,  // the second half of the rows comes first
};

// The stored tensor of a parameter.
struct StoredPlace {
  std::string name;
  Rows rows = Rows::kAll;
  size_t part = 0, parts = 1;  // with kEqualPart and kSquarePart

  bool is_part() const { return rows == Rows::kEqualPart || rows == Rows::kSquarePart; }
};

// What a stored tensor holds: parameters or modules by diffusers' names, in the order of their rows.
struct Held {
  std::vector<std::string> names;
  Rows rows = Rows::kAll;
  bool operator==(const Held&) const = default;
};

// Rows [first, first + count) of a stored tensor.
struct RowRun {
  int64_t first = 0, count = 0;
  bool operator==(const RowRun&) const = default;
};

// The runs that make up the parameter, of a stored tensor of `rows` rows; `columns`: of the matrix among the tensors
// of its module. None where such a tensor cannot hold the parameter.
std::vector<RowRun> row_runs(const StoredPlace& place, int64_t rows, int64_t columns);

// The runs of the rows of `stored`, one behind the other; a view where there is one.
at::Tensor take_rows(const at::Tensor& stored, const std::vector<RowRun>& runs);

// A stored tensor from the parameters that it holds, in their order: the way back.
at::Tensor joined_rows(const std::vector<at::Tensor>& parameters, Rows rows);

}  // namespace vmoba::model
