#include "data/csv.h"

namespace vmoba::data {

void CsvReader::read_quoted(CsvRow& row, std::string& field) {
  for (++position_; position_ < text_.size(); ++position_) {
    const char c = text_[position_];
    if (c == '\n') ++line_;
    if (c != '"') {
      field += c;
    } else if (position_ + 1 < text_.size() && text_[position_ + 1] == '"') {
      field += c;
      ++position_;
    } else {
      ++position_;
      return;
    }
  }
  row.problem = "expected a closing quote, found the end of the file";
}

bool CsvReader::at_end_of_field() const {
  if (position_ >= text_.size()) return true;
  const char c = text_[position_];
  return c == separator_ || c == '\n' || c == '\r';
}

bool CsvReader::next(CsvRow& row) {
  const auto at_break = [&] {
    return position_ < text_.size() && (text_[position_] == '\n' || text_[position_] == '\r');
  };
  while (at_break()) line_ += text_[position_++] == '\n' ? 1 : 0;
  if (position_ >= text_.size()) return false;
  row.fields.clear();
  row.problem.clear();
  row.line = line_;
  std::string field;
  bool quoted = false;
  for (; position_ < text_.size() && !at_break();) {
    const char c = text_[position_];
    if (c == separator_) {
      row.fields.push_back(std::move(field));
      field.clear();
      quoted = false;
      ++position_;
    } else if (c == '"' && field.empty() && !quoted) {
      const size_t start = position_;
      const int64_t line = line_;
      quoted = true;
      read_quoted(row, field);
      if (separator_ == '\t' && (!at_end_of_field() || !row.problem.empty())) {
        position_ = start;
        line_ = line;
        quoted = false;
        row.problem.clear();
        for (field.clear(); !at_end_of_field(); ++position_) field += text_[position_];
      }
    } else {
      if (quoted || (c == '"' && separator_ != '\t'))
        row.problem = "expected a comma after a closing quote and doubled quotes inside a field, found other text";
      field += c;
      ++position_;
    }
  }
  row.fields.push_back(std::move(field));
  return true;
}

}  // namespace vmoba::data
