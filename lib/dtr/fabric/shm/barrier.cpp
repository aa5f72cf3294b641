#include "dtr/fabric/shm/barrier.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

long membarrier(int command) noexcept { return ::syscall(SYS_membarrier, command, 0, 0); }

}  // namespace

bool has_barriers() noexcept {
  constexpr long kNeeded = MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED | MEMBARRIER_CMD_GLOBAL_EXPEDITED;
  const long commands = membarrier(MEMBARRIER_CMD_QUERY);
  return commands > 0 && (commands & kNeeded) == kNeeded && membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) == 0;
}

void BarrierRegistration::begin() {
  try {
    thread_ = Thread([this](const std::stop_token&) { run(); }, {.name = "dtr-shm-start"});
    running_ = true;
  } catch (const Exception&) {  // there are no more threads to be had
    run();
  }
}

void BarrierRegistration::run() noexcept {
  reached_.store(membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0, std::memory_order_release);
  over_.store(true, std::memory_order_release);
}

void BarrierRegistration::end() noexcept {
  thread_ = Thread();  // joins
  running_ = false;
}

void heavy_barrier() noexcept { static_cast<void>(membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)); }

}  // namespace fabric::shm
}  // namespace dtr::inline v0
