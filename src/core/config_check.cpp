#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/config.h"
#include "core/config_text.h"
#include "core/dtype.h"

namespace vmoba {

const Choices<Dtype>& choices_of(Dtype) {
  static const Choices<Dtype> table("a type of numbers", {{Dtype::kFp32, "fp32"},
                                                          {Dtype::kBf16, "bf16"},
                                                          {Dtype::kFp16, "fp16"},
                                                          {Dtype::kFp64, "fp64"},
                                                          {Dtype::kFp8, "fp8"}});
  return table;
}

std::string shown(const std::string& text) {
  std::string out;
  for (const char c : text.substr(0, 80))
    out += static_cast<unsigned char>(c) < 0x20 ? fmt::format("\\x{:02x}", c) : std::string(1, c);
  return text.size() <= 80 ? out : out + "...";
}

void check_number(double value, const Constraint& c, const std::string& where) {
  const bool low = c.exclusive_min ? value > c.min : value >= c.min;
  VMOBA_CHECK_INPUT(std::isfinite(value) && low && value <= c.max, "{}: expected {}, found {}", where,
                    allowed_text(c).empty() ? "a finite number" : allowed_text(c), value);
}

void check_word(const std::string& value, const Constraint& c, const std::string& where) {
  if (c.choices.empty() || std::find(c.choices.begin(), c.choices.end(), value) != c.choices.end()) return;
  const std::string nearest = nearest_name(value, c.choices);
  throw_input("{}: expected one of {}, found '{}'{}", where, join(c.choices), shown(value),
              nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest));
}

void check_size(int64_t size, const Constraint& c, const std::string& where) {
  VMOBA_CHECK_INPUT(c.size < 0 || size == c.size, "{}: expected {} values, found {}", where, c.size, size);
}

namespace {

class Validator : public ConfigVisitor {
 public:
  explicit Validator(const std::string& group) : path_(group) {}

  void field(const std::string&, bool&, const std::string&) override {}
  void field(const std::string& name, int64_t& value, const std::string&, const Constraint& c) override {
    check_number(double(value), c, path_of(name));
  }
  void field(const std::string& name, double& value, const std::string&, const Constraint& c) override {
    check_number(value, c, path_of(name));
  }
  void field(const std::string& name, std::string& value, const std::string&, const Constraint& c) override {
    check_word(value, c, path_of(name));
  }
  void field(const std::string& name, std::vector<int64_t>& value, const std::string&, const Constraint& c) override {
    list(name, value, c, [&](int64_t v, const std::string& where) { check_number(double(v), c, where); });
  }
  void field(const std::string& name, std::vector<double>& value, const std::string&, const Constraint& c) override {
    list(name, value, c, [&](double v, const std::string& where) { check_number(v, c, where); });
  }
  void field(const std::string& name, std::vector<std::string>& value, const std::string&,
             const Constraint& c) override {
    list(name, value, c, [&](const std::string& v, const std::string& where) { check_word(v, c, where); });
  }

 protected:
  void begin_group(const std::string& name, const std::string&) override { enter(name); }
  void end_group() override { leave(); }
  void list_of_groups(const std::string& name, const std::string&, size_t count, const std::function<void(size_t)>&,
                      const std::function<void(size_t)>& visit) override {
    for (size_t i = 0; i < count; ++i) {
      enter(fmt::format("{}[{}]", name, i));
      visit(i);
      leave();
    }
  }

 private:
  std::string path_of(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  void enter(const std::string& name) {
    outer_.push_back(path_);
    path_ = path_of(name);
  }
  void leave() {
    path_ = outer_.back();
    outer_.pop_back();
  }
  template <typename T, typename Check>
  void list(const std::string& name, const std::vector<T>& values, const Constraint& c, const Check& check) {
    const std::string where = path_of(name);
    check_size(int64_t(values.size()), c, where);
    for (size_t i = 0; i < values.size(); ++i) check(values[i], fmt::format("{}[{}]", where, i));
  }

  std::string path_;
  std::vector<std::string> outer_;
};

}  // namespace

void check_values(const std::string& group, const VisitFunction& visit) {
  Validator validator(group);
  visit(validator);
}

}  // namespace vmoba
