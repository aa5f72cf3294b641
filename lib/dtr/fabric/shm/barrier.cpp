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

bool register_for_barriers() noexcept { return membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0; }

void heavy_barrier() noexcept { static_cast<void>(membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)); }

}  // namespace fabric::shm
}  // namespace dtr::inline v0
