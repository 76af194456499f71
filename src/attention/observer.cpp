#include "attention/observer.h"

#include "core/check.h"

namespace vmoba::attention {
namespace {

thread_local AttentionObserver* observer_of_thread = nullptr;

}  // namespace

ObservedAttention::ObservedAttention(AttentionObserver& observer) {
  VMOBA_CHECK(observer_of_thread == nullptr, "attention: expected one observer of a thread, found two");
  observer_of_thread = &observer;
}

ObservedAttention::~ObservedAttention() {
  observer_of_thread = nullptr;
}

AttentionObserver* attention_observer() {
  return observer_of_thread;
}

}  // namespace vmoba::attention
