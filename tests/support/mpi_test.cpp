#include "support/mpi_test.hpp"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include <unistd.h>

namespace dtr::testing {

std::filesystem::path verdict_folder() {
  const char* folder = std::getenv("DTR_TEST_VERDICT_FOLDER");
  if (folder == nullptr) {
    std::fputs("DTR_TEST_VERDICT_FOLDER is not set: start this program with tests/support/mpirun-test.sh\n", stderr);
    std::_Exit(2);
  }
  return folder;
}

void die_now() {
  std::raise(SIGKILL);
  std::abort();  // not reached; tells the compiler so
}

void put_sign(const std::string& name, const std::string& text) {
  const auto final_name = verdict_folder() / ("sign." + name);
  // A draft for each caller: several ranks may put up the same sign, and may have equal process numbers on two nodes.
  std::string draft = (verdict_folder() / "draft.XXXXXX").string();
  ::close(::mkstemp(draft.data()));
  std::ofstream(draft) << text;
  std::filesystem::rename(draft, final_name);
}

bool wait_for_sign(const std::string& name, const Deadline& deadline) {
  while (!std::filesystem::exists(verdict_folder() / ("sign." + name))) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::string read_sign(const std::string& name) {
  std::ifstream file(verdict_folder() / ("sign." + name));
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace dtr::testing
