#include "support/software_nic/faults.hpp"

namespace dtr::software_nic {

void CallLedger::arm(const CallFault& fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(fault);
  armed_.store(true, std::memory_order_release);
}

void CallLedger::disarm() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
  armed_.store(false, std::memory_order_release);
}

int CallLedger::next_fault(Call call) noexcept {
  const std::lock_guard lock(mutex_);
  int error = 0;
  for (auto fault = faults_.begin(); fault != faults_.end();) {
    if (fault->call != call) {
      ++fault;
    } else if (fault->nth > 1) {
      --fault->nth;
      ++fault;
    } else {
      if (error == 0) error = fault->error;
      fault = --fault->times == 0 ? faults_.erase(fault) : fault + 1;
    }
  }
  armed_.store(!faults_.empty(), std::memory_order_release);
  return error;
}

void RequestLedger::arm(const RequestFault& fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(fault);
  armed_.store(true, std::memory_order_release);
}

void RequestLedger::disarm() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
  armed_.store(false, std::memory_order_release);
}

bool RequestLedger::take(std::uint32_t qp_num, RequestFault& fault) noexcept {
  const std::lock_guard lock(mutex_);
  bool found = false;
  for (auto each = faults_.begin(); each != faults_.end();) {
    if (each->qp_num != 0 && each->qp_num != qp_num) {
      ++each;
    } else if (each->nth > 1) {
      --each->nth;
      ++each;
    } else {
      fault = *each;
      found = true;
      each = faults_.erase(each);
    }
  }
  armed_.store(!faults_.empty(), std::memory_order_release);
  return found;
}

}  // namespace dtr::software_nic
