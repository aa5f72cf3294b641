// Everybody sends everybody messages of all sizes, from all kinds of memory, and gives some up on the way: what comes
// is whole, in order and once, and what a sender was told has come has come.
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <set>

#include "messaging/ways.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr int kRanks = 3;
constexpr std::uint64_t kData = 1;
constexpr std::uint64_t kEnd = 2;
constexpr std::size_t kLargest = 400'000;
constexpr std::size_t kWindow = 6;
constexpr std::uint64_t kMessages = 150;  // to each of the others

/// What begins each message; bytes that tell its sender and number follow.
struct Front {
  std::uint64_t number = 0;
  std::uint64_t bytes = 0;
};

std::uint64_t seed_of(int from, int to, std::uint64_t number) {
  return (number * kRanks + static_cast<std::uint64_t>(from)) * kRanks + static_cast<std::uint64_t>(to);
}

void write_message(std::span<std::byte> place, int from, int to, std::uint64_t number) {
  const Front front{.number = number, .bytes = place.size()};
  std::memcpy(place.data(), &front, sizeof front);
  const Bytes rest = data_of(place.size() - sizeof front, seed_of(from, to, number));
  if (!rest.empty()) std::memcpy(place.data() + sizeof front, rest.data(), rest.size());
}

/// Its number, if it is what its sender wrote.
std::optional<std::uint64_t> number_of(std::span<const std::byte> message, int from, int to) {
  Front front;
  if (message.size() < sizeof front) return std::nullopt;
  std::memcpy(&front, message.data(), sizeof front);
  const Bytes right = data_of(message.size() - sizeof front, seed_of(from, to, front.number));
  const bool good =
      front.bytes == message.size() && std::equal(right.begin(), right.end(), message.begin() + sizeof front);
  return good ? std::optional(front.number) : std::nullopt;
}

/// A place for one message.
struct Place {
  Memory memory;
  MessageHandle handle{};
  std::uint64_t number = 0;
  bool busy = false;
};

/// Of the pool and of malloc in turn.
std::deque<Place> places(Runtime& rt) {
  std::deque<Place> made;
  for (std::size_t i = 0; i < kWindow; ++i) made.push_back({.memory = Memory(rt, kLargest, i % 2 == 0)});
  return made;
}

/// One direction between two ranks, as one of them sees it.
class Stream {
 public:
  Stream(Runtime& rt, Messenger& messenger, int other, bool gives_up, unsigned seed)
      : rt_(rt), messenger_(messenger), other_(other), gives_up_(gives_up), random_(seed), places_(places(rt)) {}

  /// Begins one send if there is a place for it.
  void send_one() {
    Place* const place = next_place();
    if (place == nullptr || next_ == kMessages) return;
    place->number = next_++;
    const auto size = sizeof(Front) + size_of_next();
    write_message(place->memory.span().first(size), rt_.rank(), other_, place->number);
    place->handle = value_or_throw(messenger_.send(other_, kData, place->memory.span().first(size), deadline()));
    place->busy = true;
    maybe_cancel(*place);
  }

  void recv_one() {
    Place* const place = next_place();
    if (place == nullptr) return;
    place->handle = value_or_throw(messenger_.recv(other_, kData, place->memory.span(), deadline()));
    place->busy = true;
    maybe_cancel(*place);
  }

  /// Sends that have ended well.
  void reap_sends() {
    for (Place& place : places_) {
      if (!place.busy || !messenger_.done(place.handle)) continue;
      place.busy = false;
      const auto outcome = messenger_.wait(place.handle);
      if (outcome) {
        arrived_.insert(place.number);
      } else {
        expect_given_up(outcome.error());
      }
      // The buffer is the sender's again: what it writes now, nobody may get.
      std::fill(place.memory.span().begin(), place.memory.span().end(), std::byte{0xDD});
    }
  }

  void reap_recvs() {
    // In the order of the calls, which is that of the messages.
    while (!calls_.empty() && messenger_.done(calls_.front()->handle)) {
      Place& place = *calls_.front();
      calls_.pop_front();
      place.busy = false;
      const auto outcome = messenger_.wait(place.handle);
      if (!outcome) {
        expect_given_up(outcome.error());
        continue;
      }
      const auto number = number_of(place.memory.span().first(outcome->bytes), other_, rt_.rank());
      ASSERT_TRUE(number) << "a message from rank " << other_ << " with bytes that it never sent";
      EXPECT_TRUE(arrived_.empty() || *number > *arrived_.rbegin()) << *number << " after " << *arrived_.rbegin();
      arrived_.insert(*number);
    }
  }

  void recv_in_order() {
    Place* const place = next_place();
    if (place == nullptr) return;
    recv_one();
    calls_.push_back(place);
  }

  [[nodiscard]] bool idle() const {
    return std::none_of(places_.begin(), places_.end(), [](const Place& place) { return place.busy; });
  }
  [[nodiscard]] bool all_sent() const { return next_ == kMessages && idle(); }
  void cancel_all() {
    for (const Place& place : places_) {
      if (place.busy) static_cast<void>(messenger_.cancel(place.handle));
    }
  }
  [[nodiscard]] const std::set<std::uint64_t>& arrived() const { return arrived_; }

 private:
  [[nodiscard]] Place* next_place() {
    const auto free = std::find_if(places_.begin(), places_.end(), [](const Place& place) { return !place.busy; });
    return free == places_.end() ? nullptr : &*free;
  }
  [[nodiscard]] std::size_t size_of_next() {
    constexpr std::size_t kMost[] = {100, 4000, 9000, 70'000, kLargest - sizeof(Front)};
    return std::uniform_int_distribution<std::size_t>(0, kMost[random_() % 5])(random_);
  }
  [[nodiscard]] Deadline deadline() {
    return gives_up_ && random_() % 8 == 0 ? Deadline(std::chrono::microseconds(random_() % 2000)) : soon();
  }
  void maybe_cancel(const Place& place) {
    if (gives_up_ && random_() % 8 == 0) static_cast<void>(messenger_.cancel(place.handle));
  }
  void expect_given_up(const Error& error) {
    EXPECT_TRUE(error.code == Errc::cancelled || error.code == Errc::timed_out) << error.to_string();
  }

  Runtime& rt_;
  Messenger& messenger_;
  const int other_;
  const bool gives_up_;
  std::mt19937 random_;
  std::deque<Place> places_;
  std::deque<Place*> calls_;
  std::uint64_t next_ = 0;
  std::set<std::uint64_t> arrived_;
};

struct Who {
  bool senders = false;
  bool receivers = false;
};

void exchange(Runtime& rt, Who gives_up) {
  Messenger messenger(rt);
  std::vector<int> others;
  std::deque<Stream> out;
  std::deque<Stream> in;
  for (int other = 0; other < kRanks; ++other) {
    if (other == rt.rank()) continue;
    const auto seed = static_cast<unsigned>(rt.rank() * kRanks + other);
    others.push_back(other);
    out.emplace_back(rt, messenger, other, gives_up.senders, seed);
    in.emplace_back(rt, messenger, other, gives_up.receivers, seed + 100);
  }
  const auto turn = [&] {
    for (Stream& each : in) {
      each.recv_in_order();
      each.reap_recvs();
    }
    for (Stream& each : out) {
      each.send_one();
      each.reap_sends();
    }
    rt.progress();
  };
  const Deadline patience(scaled(120s));
  const auto all = [](const std::deque<Stream>& streams, auto what) {
    return std::all_of(streams.begin(), streams.end(), what);
  };
  while (!all(out, [](const Stream& each) { return each.all_sent(); }) && !patience.passed()) turn();
  ASSERT_FALSE(patience.passed()) << "some sends never ended";
  // Others may still send; what was sent to us is here once their word of it is.
  std::vector<MessageHandle> ends;
  std::vector<std::vector<std::uint64_t>> told;
  told.resize(others.size());
  for (std::size_t i = 0; i < others.size(); ++i) {
    const std::vector<std::uint64_t> mine(out[i].arrived().begin(), out[i].arrived().end());
    told[i].resize(kMessages);
    const auto came =
        value_or_throw(messenger.recv(others[i], kEnd, std::as_writable_bytes(std::span(told[i])), scaled(120s)));
    const auto sent = value_or_throw(messenger.send(others[i], kEnd, std::as_bytes(std::span(mine)), scaled(120s)));
    while (!messenger.done(sent) && !patience.passed()) turn();
    DTR_ASSERT_OK(messenger.wait(sent));
    ends.push_back(came);
  }
  for (std::size_t i = 0; i < others.size(); ++i) {
    while (!messenger.done(ends[i]) && !patience.passed()) turn();
    const auto end = messenger.wait(ends[i]);
    DTR_ASSERT_OK(end);
    told[i].resize(end->bytes / sizeof(std::uint64_t));
  }
  // What is here already ends recvs at once.
  for (int i = 0; i < 200; ++i) turn();
  for (Stream& each : in) each.cancel_all();
  for (Stream& each : in) each.reap_recvs();
  for (std::size_t i = 0; i < others.size() && !gives_up.receivers; ++i) {
    for (const std::uint64_t number : told[i]) {
      EXPECT_TRUE(in[i].arrived().contains(number)) << number << " from rank " << others[i] << " is lost";
    }
    if (!gives_up.senders) {
      EXPECT_EQ(in[i].arrived().size(), kMessages);
    }
  }
  if (!rt.config().text("messages.thresholds").empty()) {
    EXPECT_GT(messages_read(rt), 0U);
  }
  value_or_throw(rt.allgather("end", {}, scaled(60s)));
}

class MessageStressTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, MessageStressTest, ::testing::ValuesIn(message_ways(kRanks)), way_name);

TEST_P(MessageStressTest, EverythingComesOnceInOrderAndWhole) {
  run(GetParam(), [](Runtime& rt) { exchange(rt, {}); });
}

TEST_P(MessageStressTest, WhatSendersGiveUpComesWholeOrNotAtAllAndTheRestComes) {
  run(GetParam(), [](Runtime& rt) { exchange(rt, {.senders = true}); });
}

TEST_P(MessageStressTest, WhatBothSidesGiveUpDisturbsNothingElse) {
  run(GetParam(), [](Runtime& rt) { exchange(rt, {.senders = true, .receivers = true}); });
}

}  // namespace
}  // namespace dtr
