// RFC 4180 records from text: quoted fields, doubled quotes, line breaks inside quotes, LF or CRLF. Between tabs, where
// many writers know no quotes, a field that only begins like a quoted one is taken as it is.
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
  explicit CsvReader(std::string_view text, char separator = ',') : text_(text), separator_(separator) {}
  // False at the end. Empty lines are skipped.
  bool next(CsvRow& row);

 private:
  void read_quoted(CsvRow& row, std::string& field);
  bool at_end_of_field() const;
  std::string_view text_;
  char separator_;
  size_t position_ = 0;
  int64_t line_ = 1;
};

}  // namespace vmoba::data
