// Tagged messages into the receiver's own buffer, by a Messenger: what MPI_Send and MPI_Recv do. Memory is malloc's, or
// the pool's if asked for.
#include "common/memory.hpp"
#include "dtr/messaging/messenger.hpp"
#include "perf.hpp"
#include "ticks.hpp"

namespace dtr::perf {

namespace {

constexpr std::uint64_t kTag = 1;
constexpr std::uint64_t kEndTag = 2;
constexpr std::uint64_t kWindow = 64;  ///< messages under way
constexpr std::byte kMark{0xA5};

using common::Memory;

struct Ends {
  Ends(Pair& pair, bool managed)
      : messenger(pair.rt()), out(pair.rt(), pair.size(), managed), in(pair.rt(), pair.size(), managed) {}

  Messenger messenger;
  Memory out;
  Memory in;
};

void check(const Result<Message>& outcome) {
  if (!outcome) throw Exception(outcome.error());
}

Samples latency(Pair& pair, Ends& ends, std::uint64_t iterations, std::uint64_t warm_up) {
  const auto round = [&](std::uint64_t) {
    const auto came = value_or_throw(ends.messenger.recv(pair.other(), kTag, ends.in.span()));
    if (!pair.starts()) check(ends.messenger.wait(came));
    const auto sent = value_or_throw(ends.messenger.send(pair.other(), kTag, ends.out.span()));
    if (pair.starts()) check(ends.messenger.wait(came));
    check(ends.messenger.wait(sent));
  };
  const TickLength tick;
  std::vector<std::uint64_t> times(iterations + 1);
  for (std::uint64_t i = 0; i < warm_up; ++i) round(i);
  times[0] = ticks();
  for (std::uint64_t i = 1; i <= iterations; ++i) {
    round(i);
    times[i] = ticks();
  }
  Samples samples = make_samples(times, tick.ns() / (pair.alone() ? 1 : 2), 1);
  samples.warm_up = warm_up;
  return samples;
}

/// Sends, or receives, with kWindow under way.
template <class Begin>
void stream(Ends& ends, std::uint64_t messages, std::vector<std::uint64_t>* times, Begin&& begin) {
  std::array<MessageHandle, kWindow> handles{};
  for (std::uint64_t i = 0; i < messages + kWindow; ++i) {
    MessageHandle& mine = handles[i % kWindow];
    if (i >= kWindow && i - kWindow < messages) check(ends.messenger.wait(mine));
    if (i < messages) mine = begin();
    if (times != nullptr && i % kWindow == kWindow - 1 && i < messages) times->push_back(ticks());
  }
}

Samples bandwidth(Pair& pair, Ends& ends, std::uint64_t iterations, std::uint64_t warm_up) {
  Messenger& messenger = ends.messenger;
  Samples samples;
  const auto send = [&] { return value_or_throw(messenger.send(pair.other(), kTag, ends.out.span())); };
  const auto receive = [&] { return value_or_throw(messenger.recv(pair.other(), kTag, ends.in.span())); };
  std::byte all_came{};
  if (pair.starts()) {
    const TickLength tick;
    stream(ends, warm_up, nullptr, send);
    std::vector<std::uint64_t> times;
    times.reserve(iterations / kWindow + 2);
    times.push_back(ticks());
    stream(ends, iterations, &times, send);
    // The run ends when the target has received the last message, and says so.
    check(messenger.wait(value_or_throw(messenger.recv(pair.other(), kEndTag, {&all_came, 1}))));
    const std::uint64_t over = ticks();
    if (times.size() == 1) times.push_back(over);
    samples = make_samples(times, tick.ns(), std::min(iterations, kWindow));
    samples.total_ns = static_cast<double>(over - times.front()) * tick.ns();
    samples.operations = iterations;
    samples.warm_up = warm_up;
  } else {
    stream(ends, warm_up, nullptr, receive);
    stream(ends, iterations, nullptr, receive);
    check(messenger.wait(value_or_throw(messenger.send(pair.other(), kEndTag, {&all_came, 1}))));
  }
  return samples;
}

}  // namespace

Samples measure_messages(Pair& pair, const Plan& plan, std::uint64_t iterations) {
  if (pair.alone() && !plan.latency) {
    throw Exception({.code = Errc::unsupported, .message = "needs 2 ranks", .operation = plan.name});
  }
  Ends ends(pair, plan.managed);
  const auto out = ends.out.span();
  if (!out.empty()) out.back() = kMark;
  pair.meet("dtr_perf/messages");
  const std::uint64_t warm_up = std::max<std::uint64_t>(1, std::min<std::uint64_t>(1000, iterations / 5));
  Samples samples =
      plan.latency ? latency(pair, ends, iterations, warm_up) : bandwidth(pair, ends, iterations, warm_up);
  if ((plan.latency || !pair.starts()) && !ends.in.span().empty()) {
    pair.check_moved(static_cast<std::uint8_t>(ends.in.span().back()), static_cast<std::uint8_t>(kMark));
  }
  pair.meet("dtr_perf/messages_end");
  return samples;
}

}  // namespace dtr::perf
