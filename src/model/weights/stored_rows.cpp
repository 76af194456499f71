#include "model/weights/stored_rows.h"

#include <ATen/ops/cat.h>

namespace vmoba::model {

std::vector<RowRun> row_runs(const StoredPlace& place, int64_t rows, int64_t columns) {
  const auto part = int64_t(place.part), parts = int64_t(place.parts), square = (parts - 1) * columns;
  switch (place.rows) {
    case Rows::kAll:
      break;
    case Rows::kEqualPart:
      if (rows % parts != 0) return {};
      return {{part * (rows / parts), rows / parts}};
    case Rows::kSquarePart:
      if (columns <= 0 || rows <= square) return {};
      if (part + 1 < parts) return {{part * columns, columns}};
      return {{square, rows - square}};
    case Rows::kSwappedHalves:
      if (rows % 2 != 0) return {};
      return {{rows / 2, rows / 2}, {0, rows / 2}};
  }
  return {{0, rows}};
}

at::Tensor take_rows(const at::Tensor& stored, const std::vector<RowRun>& runs) {
  std::vector<at::Tensor> out;
  for (const RowRun& run : runs) out.push_back(stored.narrow(0, run.first, run.count));
  return out.size() == 1 ? out.front() : at::cat(out);
}

at::Tensor joined_rows(const std::vector<at::Tensor>& parameters, Rows rows) {
  if (rows != Rows::kSwappedHalves) return parameters.size() == 1 ? parameters.front() : at::cat(parameters);
  const at::Tensor& only = parameters.front();
  return take_rows(only, row_runs({"", rows}, only.size(0), 0));
}

}  // namespace vmoba::model
