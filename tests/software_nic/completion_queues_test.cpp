// Completion queues, channels and the slots of send queues.
#include <atomic>
#include <thread>

#include <fcntl.h>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

TEST(CompletionQueuesTest, OverflowBreaksTheQueueAndTellsSo) {
  Pair pair({}, {}, {.completion_queue = 4});
  for (std::uint64_t i = 0; i < 4; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 8}), 0);
  EXPECT_FALSE(readable(pair.a->context->async_fd, 30ms));  // exactly full is no error
  for (std::uint64_t i = 4; i < 8; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 8}), 0);
  EXPECT_EQ(pair.a->event(), IBV_EVENT_CQ_ERR);
  EXPECT_EQ(pair.a->event(), IBV_EVENT_QP_FATAL);
  EXPECT_EQ(pair.a->event(), IBV_EVENT_QP_LAST_WQE_REACHED);
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(pair.a->completion().wr_id, i);
  EXPECT_TRUE(pair.a->quiet());  // nothing comes through it any more
}

TEST(CompletionQueuesTest, AFullReceiveSideBreaksTheReceiver) {
  Pair pair({}, {}, {.completion_queue = 2});
  for (std::uint64_t i = 0; i < 3; ++i) pair.b->receive(i, 4096);
  for (std::uint64_t i = 0; i < 3; ++i) {
    ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .length = 8, .flags = 0}), 0);
  }
  EXPECT_EQ(pair.b->event(), IBV_EVENT_CQ_ERR);
  EXPECT_EQ(pair.b->event(), IBV_EVENT_QP_FATAL);
}

TEST(CompletionQueuesTest, AnArmedQueueTellsOnceThroughItsChannel) {
  Pair pair;
  End& a = *pair.a;
  ASSERT_EQ(a.api.req_notify_cq(a.cq, 0), 0);
  EXPECT_FALSE(readable(a.channel->fd, 10ms));
  for (int i = 0; i < 3; ++i) ASSERT_EQ(a.post(*pair.b, {.length = 8}), 0);
  ASSERT_TRUE(readable(a.channel->fd, testing::scaled(10s)));
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  ASSERT_EQ(a.api.get_cq_event(a.channel, &cq, &user), 0);
  EXPECT_EQ(cq, a.cq);
  EXPECT_EQ(user, &a);
  EXPECT_EQ(cq->channel, a.channel);
  EXPECT_FALSE(readable(a.channel->fd, 30ms));
  a.api.ack_cq_events(a.cq, 1);
  static_cast<void>(a.completions(3));
  ASSERT_EQ(a.post(*pair.b, {.length = 8}), 0);
  static_cast<void>(a.completion());
  EXPECT_FALSE(readable(a.channel->fd, 10ms));  // not armed
}

TEST(CompletionQueuesTest, ArmingIsNotAnsweredForWhatIsThereAlready) {
  Pair pair;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  std::this_thread::sleep_for(10ms);
  ASSERT_EQ(pair.a->api.req_notify_cq(pair.a->cq, 0), 0);
  const ibv_wc done = pair.a->completion();
  EXPECT_EQ(done.status, IBV_WC_SUCCESS);
}

TEST(CompletionQueuesTest, SolicitedOnlyIsDeafToOrdinaryCompletions) {
  Pair pair;
  End& b = *pair.b;
  for (std::uint64_t i = 0; i < 3; ++i) b.receive(i, 4096);
  ASSERT_EQ(b.api.req_notify_cq(b.cq, 1), 0);
  ASSERT_EQ(pair.a->post(b, {.opcode = IBV_WR_SEND, .length = 8}), 0);
  EXPECT_EQ(b.completion().status, IBV_WC_SUCCESS);
  EXPECT_FALSE(readable(b.channel->fd, 10ms));
  ASSERT_EQ(pair.a->post(b, {.opcode = IBV_WR_SEND, .length = 8, .flags = IBV_SEND_SOLICITED}), 0);
  EXPECT_EQ(b.completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(readable(b.channel->fd, testing::scaled(10s)));
  ASSERT_EQ(b.api.req_notify_cq(b.cq, 1), 0);
  ASSERT_EQ(b.to_state(IBV_QPS_ERR), 0);
  ASSERT_EQ(b.post(*pair.a, {.length = 8}), 0);  // flushed: errors are always told
  EXPECT_EQ(b.completion().status, IBV_WC_WR_FLUSH_ERR);
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  for (int i = 0; i < 2; ++i) ASSERT_EQ(b.api.get_cq_event(b.channel, &cq, &user), 0);
  b.api.ack_cq_events(b.cq, 2);
}

TEST(CompletionQueuesTest, ANonBlockingChannelSaysThatThereIsNothing) {
  Pair pair;
  End& a = *pair.a;
  ASSERT_EQ(::fcntl(a.channel->fd, F_SETFL, O_NONBLOCK), 0);
  ASSERT_EQ(::fcntl(a.context->async_fd, F_SETFL, O_NONBLOCK), 0);
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  EXPECT_EQ(a.api.get_cq_event(a.channel, &cq, &user), EAGAIN);
  ibv_async_event event{};
  EXPECT_EQ(a.api.get_async_event(a.context, &event), EAGAIN);
  EXPECT_NE(::fcntl(a.channel->fd, F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(::fcntl(a.context->async_fd, F_GETFD) & FD_CLOEXEC, 0);
}

TEST(CompletionQueuesTest, EventsOfADestroyedQueueAreForgotten) {
  Pair pair;
  End& a = *pair.a;
  ASSERT_EQ(::fcntl(a.channel->fd, F_SETFL, O_NONBLOCK), 0);
  ASSERT_EQ(a.api.req_notify_cq(a.cq, 0), 0);
  ASSERT_EQ(a.post(*pair.b, {.length = 8}), 0);
  ASSERT_TRUE(readable(a.channel->fd, testing::scaled(10s)));
  ASSERT_EQ(a.api.destroy_qp(a.qp), 0);
  ASSERT_EQ(a.api.destroy_cq(a.cq), 0);
  a.qp = nullptr;
  a.cq = nullptr;
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  EXPECT_EQ(a.api.get_cq_event(a.channel, &cq, &user), EAGAIN);
}

TEST(CompletionQueuesTest, DestroyingWaitsForAcknowledgements) {
  Pair pair;
  End& a = *pair.a;
  ASSERT_EQ(a.api.req_notify_cq(a.cq, 0), 0);
  ASSERT_EQ(a.post(*pair.b, {.length = 8}), 0);
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  ASSERT_EQ(a.api.get_cq_event(a.channel, &cq, &user), 0);
  ASSERT_EQ(a.api.destroy_qp(a.qp), 0);
  a.qp = nullptr;
  std::atomic<bool> acknowledged{false};
  std::thread late([&, queue = a.cq] {
    std::this_thread::sleep_for(30ms);
    acknowledged = true;
    a.api.ack_cq_events(queue, 1);
  });
  EXPECT_EQ(a.api.destroy_cq(a.cq), 0);
  EXPECT_TRUE(acknowledged);
  a.cq = nullptr;
  late.join();
}

TEST(CompletionQueuesTest, SendSlotsAreFreeOnceALaterCompletionIsPolled) {
  Pair pair({}, {}, {.send_queue = 4});
  End& a = *pair.a;
  for (std::uint64_t i = 0; i < 3; ++i) ASSERT_EQ(a.post(*pair.b, {.length = 8, .flags = 0}), 0);
  ASSERT_EQ(a.post(*pair.b, {.id = 9, .length = 8}), 0);
  std::this_thread::sleep_for(20ms);  // all executed, but nobody has looked
  EXPECT_EQ(a.post(*pair.b, {.length = 8}), ENOMEM);
  EXPECT_EQ(a.completion().wr_id, 9U);
  for (std::uint64_t i = 0; i < 4; ++i) ASSERT_EQ(a.post(*pair.b, {.length = 8, .flags = 0}), 0);
  EXPECT_EQ(a.post(*pair.b, {.length = 8}), ENOMEM);
}

TEST(CompletionQueuesTest, SignalAllNeedsNoFlag) {
  Pair pair({}, {}, {.signal_all = 1});
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 4, .length = 8, .flags = 0}), 0);
  EXPECT_EQ(pair.a->completion().wr_id, 4U);
}

TEST(CompletionQueuesTest, AFailedRequestCompletesThoughItIsNotSignalled) {
  Pair pair;
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8, .flags = 0}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 2, .length = 8, .flags = 0, .rkey = 1}), 0);
  const ibv_wc done = pair.a->completion();
  EXPECT_EQ(done.wr_id, 2U);
  EXPECT_EQ(done.status, IBV_WC_REM_ACCESS_ERR);
  EXPECT_EQ(done.opcode & IBV_WC_RECV, 0U);
}

}  // namespace
}  // namespace dtr::software_nic
