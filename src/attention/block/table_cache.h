// Tables that follow from a call's geometry alone, kept between calls and shared. Bounded: beyond kCachedTables it
// starts afresh; runs use a few geometries per resolution bucket, far below it. Safe to call from several threads.
#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

namespace vmoba::attention {

template <typename Key, typename Tables>
class TableCache {
 public:
  // The tables of `key`, from make() where they are not kept.
  template <typename Make>
  std::shared_ptr<const Tables> get(const Key& key, const Make& make) {
    const std::lock_guard lock(mutex_);
    const auto found = tables_.find(key);
    if (found != tables_.end()) return found->second;
    if (tables_.size() >= kCachedTables) tables_.clear();
    return tables_[key] = make();
  }

 private:
  static constexpr size_t kCachedTables = 256;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const Tables>> tables_;
};

}  // namespace vmoba::attention
