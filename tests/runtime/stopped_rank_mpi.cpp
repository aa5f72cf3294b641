// A rank that stands still: what ends at its deadline, what may succeed, and that nothing corrupts when it goes on.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/dtr.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/mpi_test.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {
namespace {

using namespace std::chrono_literals;
using fabric::Completion;
using fabric::WorkRequest;

constexpr fabric::PeerId kOwner = 0;
constexpr fabric::PeerId kOther = 1;

/// MPI outlives the Runtimes of all cases.
class Mpi final : public ::testing::Environment {
 public:
  void SetUp() override {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  }
  void TearDown() override { MPI_Finalize(); }
};
const auto* const mpi = ::testing::AddGlobalTestEnvironment(new Mpi);

/// Both ranks' keys and process numbers.
struct Card {
  RemoteKey key{};
  pid_t process = 0;
};

Card swap_cards(Runtime& rt, const std::string& topic, const Card& mine) {
  const auto all = value_or_throw(rt.allgather(topic, std::as_bytes(std::span(&mine, 1)), scaled(60s)));
  Card theirs;
  std::memcpy(&theirs, all.at(static_cast<std::size_t>(1 - rt.rank())).data(), sizeof theirs);
  return theirs;
}

void stop(pid_t process) {
  ASSERT_EQ(::kill(process, SIGSTOP), 0);
  std::this_thread::sleep_for(100ms);  // the signal is on its way
}

Result<void> run(Runtime& rt, fabric::PeerId to, WorkRequest request, Deadline deadline) {
  Completion done;
  request.completion = &done;
  rt.fabric().submit(to, {&request, 1}, deadline);
  return rt.fabric().wait(done, to, "request", Deadline(deadline.at() + scaled(30s)));
}

/// Rank 1 writes to rank 0 without end; rank 0 stops it inside a copy and wants its memory back.
TEST(StoppedRankTest, MemoryThatAStoppedWriterIsInsideOfStaysQuarantinedUntilItGoesOn) {
  Runtime rt;
  constexpr std::size_t kBytes = 32 << 20;
  bool caught = false;
  for (int attempt = 0; attempt < 20 && !caught; ++attempt) {
    const std::string round = std::to_string(attempt);
    std::vector<std::byte> plain(rt.rank() == 1 ? kBytes : 1, std::byte{0x11});
    Region* region = rt.rank() == 0 ? value_or_throw(rt.fabric().allocate_segment(kBytes))
                                    : value_or_throw(rt.fabric().register_memory(plain));
    const Card theirs = swap_cards(rt, "keys" + round, {.key = region->key(), .process = ::getpid()});
    if (rt.rank() == 1) {
      const auto* remote = value_or_throw(rt.fabric().import(kOwner, theirs.key));
      put_sign("writing" + round);
      Result<void> put;
      while ((put = run(rt, kOwner, WorkRequest::put({region, 0}, {remote, 0}, kBytes, nullptr), scaled(60s)))) {
      }
      EXPECT_EQ(put.error().code, Errc::revoked) << put.error().to_string();
      put_sign("refused" + round);
      ASSERT_TRUE(wait_for_sign("judged" + round, scaled(60s)));
      caught = read_sign("judged" + round) == "caught";
      value_or_throw(rt.fabric().unregister_memory(*region, scaled(20s)));
      continue;
    }
    ASSERT_TRUE(wait_for_sign("writing" + round, scaled(60s)));
    std::this_thread::sleep_for(20ms + attempt * 700us);  // another moment of a copy each time
    stop(theirs.process);
    const auto taken_back = rt.fabric().unregister_memory(*region, 300ms);
    caught = !taken_back;
    if (caught) {
      EXPECT_EQ(taken_back.error().code, Errc::busy) << taken_back.error().to_string();
      EXPECT_THAT(taken_back.error().message, ::testing::HasSubstr("quarantined"));
    }
    ::kill(theirs.process, SIGCONT);
    if (caught) {
      std::byte* data = region->data();
      const std::shared_ptr<Segment> keeps_it = region->segment();
      EXPECT_TRUE(rt.fabric().unregister_memory(*region, scaled(20s)));
      std::memset(data, 0x33, kBytes);
      EXPECT_TRUE(wait_for_sign("refused" + round, scaled(60s)));
      EXPECT_EQ(std::count(data, data + kBytes, std::byte{0x33}), static_cast<std::ptrdiff_t>(kBytes));
    }
    put_sign("judged" + round, caught ? "caught" : "again");
  }
  EXPECT_TRUE(caught) << "the writer was never stopped inside a copy";
  EXPECT_TRUE(rt.finalize(scaled(30s)));
}

/// Rank 0 stops rank 1 and asks it for everything.
void ask_a_stopped_rank(RuntimeOptions options, bool managed, bool one_sided) {
  Runtime rt(std::move(options));
  constexpr std::size_t kBytes = 1 << 20;
  std::vector<std::byte> plain(kBytes, std::byte{0x22});
  Region* region = managed ? value_or_throw(rt.fabric().allocate_segment(kBytes))
                           : value_or_throw(rt.fabric().register_memory(plain));
  std::memset(region->data(), rt.rank() == 0 ? 0x44 : 0x22, kBytes);
  const Card theirs = swap_cards(rt, "keys", {.key = region->key(), .process = ::getpid()});
  const auto* remote = value_or_throw(rt.fabric().import(1 - static_cast<fabric::PeerId>(rt.rank()), theirs.key));
  // The connection stands before anybody stops.
  value_or_throw(run(rt, 1 - static_cast<fabric::PeerId>(rt.rank()),
                     WorkRequest::get({remote, 0}, {region, 0}, 8, nullptr), scaled(30s)));
  value_or_throw(rt.barrier({}, scaled(60s)));
  if (rt.rank() == 0) {
    std::memset(region->data(), 0x44, kBytes);
    stop(theirs.process);
    const auto bound = scaled(10s);
    const auto asks = [&](const WorkRequest& request, bool needs_cpu) {
      const auto from = std::chrono::steady_clock::now();
      const auto result = run(rt, kOther, request, needs_cpu ? Deadline(500ms) : Deadline(bound));
      EXPECT_LT(std::chrono::steady_clock::now() - from, bound);
      if (needs_cpu) {
        ASSERT_FALSE(result);
        EXPECT_EQ(result.error().code, Errc::timed_out) << result.error().to_string();
        EXPECT_EQ(result.error().peer, 1);
      } else {
        EXPECT_TRUE(result) << result.error().to_string();
      }
    };
    asks(WorkRequest::put({region, 0}, {remote, 0}, kBytes, nullptr), !one_sided);
    asks(WorkRequest::get({remote, 64}, {region, 64}, 64, nullptr), !one_sided);
    ::kill(theirs.process, SIGCONT);
    EXPECT_TRUE(rt.fabric().quiesce(kOther, scaled(30s)));
  }
  // It goes on: what was under way has landed where it should or not at all, and everything works.
  value_or_throw(rt.barrier({}, scaled(60s)));
  if (rt.rank() == 0) {
    std::memset(region->data(), 0x55, kBytes);
    EXPECT_TRUE(run(rt, kOther, WorkRequest::put({region, 0}, {remote, 0}, kBytes, nullptr), scaled(30s)));
    EXPECT_TRUE(run(rt, kOther, WorkRequest::flush(nullptr), scaled(30s)));
  }
  value_or_throw(rt.barrier({}, scaled(60s)));
  EXPECT_EQ(std::count(region->data(), region->data() + kBytes, std::byte{0x55}), static_cast<std::ptrdiff_t>(kBytes));
  value_or_throw(rt.barrier({}, scaled(60s)));
  EXPECT_TRUE(rt.fabric().unregister_memory(*region, scaled(20s)));
  EXPECT_TRUE(rt.finalize(scaled(30s)));
}

RuntimeOptions with(ConfigPairs settings) { return {.config = {.overrides = std::move(settings)}}; }

TEST(StoppedRankTest, MappedMemoryOfAStoppedRankIsReadAndWritten) {
  ask_a_stopped_rank(with({{"transport.allow", "shm"}}), true, true);
}

TEST(StoppedRankTest, ForeignMemoryOfAStoppedRankIsReadAndWritten) {
  ask_a_stopped_rank(with({{"transport.allow", "shm"}, {"shm.cma", "on"}}), false, true);
}

TEST(StoppedRankTest, TransfersThroughTheRingEndAtTheirDeadline) {
  ask_a_stopped_rank(with({{"transport.allow", "shm"}, {"shm.cma", "off"}}), false, false);
}

TEST(StoppedRankTest, TransfersOverTcpEndAtTheirDeadline) {
  ask_a_stopped_rank(with({{"transport.allow", "tcp"}}), true, false);
}

}  // namespace
}  // namespace dtr::testing
