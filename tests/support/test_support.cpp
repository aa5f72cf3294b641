#include "support/test_support.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include <fcntl.h>
#include <unistd.h>

#include "dtr/base/fd.hpp"

namespace dtr::testing {

std::chrono::milliseconds scaled(std::chrono::milliseconds bound) {
  const char* text = std::getenv("DTR_TEST_TIME_SCALE");
  const double scale = text != nullptr ? std::atof(text) : 1.0;
  return std::chrono::milliseconds(
      static_cast<std::int64_t>(static_cast<double>(bound.count()) * (scale > 0 ? scale : 1) * crowding()));
}

double crowding() {
  // The average over a minute comes late; how many run now (this thread is one of them) may be a moment's accident.
  // Allocates nothing: tests that count allocations ask for bounds while they count.
  double load = 0;
  int running = 0;
  char text[64] = {};
  const unsigned cores = std::thread::hardware_concurrency();
  const UniqueFd file(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC));
  if (cores == 0 || !file || ::read(file.get(), text, sizeof(text) - 1) <= 0) return 1;
  if (std::sscanf(text, "%lf %*f %*f %d", &load, &running) != 2) return 1;
  return std::clamp(std::max(load, running - 1.0) / cores, 1.0, 4.0);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "dtr-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed: " + pattern);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count - 1;  // the iterator's own
}

}  // namespace dtr::testing

#if defined(__SANITIZE_THREAD__)
// Both sides of a shared-memory link live in one test process, each with a mapping of its own. The rings order their
// accesses by atomics in that memory, which the sanitizer takes for two unrelated places. So it sees no order between
// a put that the target copies on behalf of its peer and what the peer does before and after.
// The reads of sendmsg it notes after the call, when a peer in the same process may already have got the bytes, and the
// memory may rightly have another use.
extern "C" const char* __tsan_default_suppressions() {  // NOLINT: the sanitizer's own name
  // Debian's libspdlog is not instrumented: the atomic count of a sink's owners is not seen.
  return "race:spdlog::logger::~logger\n"
         "race:dtr::v0::fabric::shm::InLink::take_put\n"
         "race:dtr::v0::fabric::shm::InLink::serve_gets\n"
         "race:dtr::v0::fabric::shm::InLink::take_atomic\n"
         "race:dtr::v0::fabric::shm::OutLink::take_answer\n"
         "race:dtr::v0::fabric::tcp::send_from\n";
}
#endif
