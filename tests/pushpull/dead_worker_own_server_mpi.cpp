// A worker dies while a program's own Server waits: get_any passes over it, get_batch ends with its name.
#include <string>

#include "pushpull/job.hpp"
#include "support/mpi_test.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr int kVictim = 1;

TEST(DeadWorkerTest, GetAnyServesTheLivingAndGetBatchNamesTheDead) {
  auto made = Runtime::init({.servers = 1});
  ASSERT_TRUE(made) << made.error().to_string();
  Runtime& rt = **made;
  if (rt.is_server()) {
    const std::vector<float> answer(5000, 2.0F);
    Server server(rt);
    int of_the_living = 0;
    std::optional<RequestHandle> of_the_dead;
    while (of_the_living < 20) {
      auto request = server.get_any(scaled(30s));
      DTR_ASSERT_OK(request);
      if (request->worker == kVictim) {
        if (!of_the_dead) put_sign("the victim's request is there");
        of_the_dead = request->handle;  // answered when nobody is there any more
        continue;
      }
      ++of_the_living;
      DTR_EXPECT_OK(server.respond(request->handle, {answer}));
      DTR_EXPECT_OK(server.flush(scaled(10s)));
    }
    ASSERT_TRUE(of_the_dead);
    static_cast<void>(server.respond(*of_the_dead, {answer}));
    const auto batch = server.get_batch(scaled(30s));
    ASSERT_FALSE(batch);
    EXPECT_EQ(batch.error().code, Errc::peer_failed) << batch.error().to_string();
    EXPECT_EQ(batch.error().peer, kVictim);
    return;
  }
  std::vector<float> out(5000);
  const std::vector<float> mine(5000, 1.0F);
  Worker worker(rt);
  if (rt.rank() == kVictim) {
    static_cast<void>(worker.push_pull({{.key = 1, .push = mine, .pull = out}}));
    static_cast<void>(worker.push_pull({{.key = 1, .push = mine, .pull = out}}));
    ASSERT_TRUE(wait_for_sign("the victim's request is there", scaled(30s)));
    ASSERT_TRUE(wait_for_sign("five rounds", scaled(30s)));
    die_now();
  }
  for (int i = 0; i < 20; ++i) {
    auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
    EXPECT_EQ(out[17], 2.0F);
    if (i == 5) {
      put_sign("five rounds");
      ASSERT_TRUE(wait_for_sign("the victim's request is there", scaled(30s)));
    }
  }
  auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
  const auto ended = round ? worker.wait(*round, scaled(30s)) : Result<void>(fail(round.error()));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::peer_failed) << ended.error().to_string();
  EXPECT_EQ(ended.error().peer, kVictim) << ended.error().to_string();
}

}  // namespace
}  // namespace dtr
