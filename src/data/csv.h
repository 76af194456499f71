// RFC 4180 records from text: quoted fields, doubled quotes, line breaks inside quotes, LF or CRLF.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vmoba::data {

struct CsvRow {
  std::vector<std::string> fields;
  int64_t line = 0;     // on which the record starts, from 1
  std::string problem;  // what is wrong with its quotes, or ""; reading goes on at the next line break outside quotes
};

class CsvReader {
 public:
  explicit CsvReader(std::string_view text) : text_(text) {}
  // False at the end. Empty lines are skipped.
  bool next(CsvRow& row);

 private:
  void read_quoted(CsvRow& row, std::string& field);
  std::string_view text_;
  size_t position_ = 0;
  int64_t line_ = 1;
};

}  // namespace vmoba::data
