// Who lives: the watch tree, signs of life, and the news of deaths.
//
// Both ends of each edge of the tree send each other a beat an interval and declare the other failed after the
// time-out; whoever learns of a death tells all neighbours. Edges that a death tears are made anew around the dead
// rank, and both new ends then tell each other every death they know, for the news may have been lost with it.
#include <array>
#include <cstring>
#include <string>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/runtime/detail/control.hpp"
#include "dtr/runtime/detail/watch_tree.hpp"

namespace dtr::inline v0 {

namespace {

using Clock = Deadline::Clock;

constexpr std::uint32_t kClockEvery = 64;  // looks at memory are many, and the clock costs as much as one of them
constexpr std::size_t kLongestReason = 512;

}  // namespace

Runtime::Control::Control(fabric::Fabric& fabric, MetricsRegistry& metrics, ControlOptions options)
    : fabric_(fabric),
      options_(std::move(options)),
      fragment_bytes_(fabric.max_message() - sizeof(Fragment)),
      beats_sent_(metrics.counter("dtr_heartbeats_sent_total", "Signs of life given to the ranks that watch this one")),
      beats_heard_(metrics.counter("dtr_heartbeats_received_total", "Signs of life from the ranks that are watched")),
      declared_failed_(metrics.counter("dtr_peers_declared_failed_total", "Ranks that this one found silent too long")),
      silence_(options_.watch.interval, options_.watch.timeout) {}

Runtime::Control::~Control() {
  if (fork_guard_.in_forked_child()) return;
  fabric_.progress().remove(*this);
  if (open_) fabric_.close_port(kPort);
}

Result<void> Runtime::Control::start() {
  if (auto opened = fabric_.open_port(kPort, *this); !opened) return opened;
  open_ = true;
  if (fabric_.size() == 1) return {};
  fabric_.progress().exclusively([&] { settle_in(true); });
  return fabric_.progress().add(*this);
}

// --- the tree ---

std::vector<fabric::PeerId> Runtime::Control::neighbours() const {
  const auto alive = [this](fabric::PeerId rank) { return fabric_.peer_state(rank) == Errc::ok; };
  return WatchTree(fabric_.self(), fabric_.size(), options_.watch.width, alive).neighbours();
}

void Runtime::Control::settle_in(bool first) {
  for (const fabric::PeerId peer : neighbours()) {
    if (silence_.watches(peer)) continue;
    silence_.watch(peer, fabric_.heard(peer), options_.speaks[peer]);
    // At the start one end of each edge does it: the other connects with its first beat.
    if (!first || peer < fabric_.self()) say_hello(peer);
  }
  if (first) next_tick_ = Clock::now() + options_.watch.interval;
}

void Runtime::Control::say_hello(fabric::PeerId to) {
  std::set<fabric::PeerId> gone;
  {
    const std::lock_guard lock(mutex_);
    gone = gone_;
  }
  send(to, ByteWriter().value(Kind::hello).take(), options_.message_timeout);
  for (const fabric::PeerId dead : gone) {
    const Error why = fabric_.peer_error(dead, {});
    send(to, news_of(dead, why.code, why.message), options_.message_timeout);
  }
}

/// A rank for which this one is a neighbour, perhaps because it knows of a death that has not come here yet.
void Runtime::Control::adopt(fabric::PeerId peer) {
  if (silence_.watches(peer) || peer == fabric_.self() || fabric_.peer_state(peer) != Errc::ok) return;
  silence_.watch(peer, fabric_.heard(peer), options_.speaks[peer]);
  say_hello(peer);
}

// --- signs of life ---

bool Runtime::Control::prepare_sleep() noexcept {
  look_at_clock_ = true;
  return arrivals_to_pass_on_.empty();
}

int Runtime::Control::progress(int /*budget*/) noexcept {
  if (!arrivals_to_pass_on_.empty()) {
    try {
      for (const auto& [meeting, ranks] : arrivals_to_pass_on_) send_arrivals(meeting, ranks, options_.message_timeout);
    } catch (const std::exception& e) {
      DTR_LOG_ERROR("the word of ranks that came to a barrier is lost: ", e.what());
    }
    arrivals_to_pass_on_.clear();
  }
  if (++looks_ % kClockEvery != 0 && !std::exchange(look_at_clock_, false)) return 0;
  const auto now = Clock::now();
  if (now < next_tick_) return 0;
  next_tick_ = now + options_.watch.interval;
  try {
    tick(now);
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("the watch over other ranks: ", e.what());
  }
  return 0;
}

void Runtime::Control::tick(Clock::time_point now) {
  if (over_.load(std::memory_order_relaxed) || expelled_) return;
  silence_.for_each([this](fabric::PeerId peer) { beat(peer); });
  for (const auto& [peer, silence] : silence_.tick(now, [this](fabric::PeerId rank) { return fabric_.heard(rank); })) {
    if (fabric_.peer_state(peer) != Errc::ok) continue;  // another one's end has come first
    const auto ms = [](auto span) {
      return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(span).count()) + " ms";
    };
    const std::string why = "silent: rank " + std::to_string(fabric_.self()) + " heard nothing from it for " +
                            ms(silence) + " (runtime.heartbeat_timeout_ms is " + ms(options_.watch.timeout) + ")";
    DTR_LOG_WARN("rank ", peer, " is declared failed: ", why);
    declared_failed_.add();
    send(peer, news_of(peer, Errc::peer_failed, why), options_.message_timeout);  // for when it wakes
    fabric_.declare_down(peer, Errc::peer_failed, why);
  }
}

void Runtime::Control::beat(fabric::PeerId to) noexcept {
  const bool speaks = has_thread() || promised_.load(std::memory_order_relaxed);
  try {
    auto channel = fabric_.channel(to);
    if (!channel) return;
    // Without memory of its own: it goes out while others make progress, who are promised that nothing is allocated.
    const Fragment head{.message = 0, .total = sizeof(Kind) + sizeof(std::uint8_t), .offset = 0};
    const Kind kind = Kind::beat;
    const std::uint8_t promise = speaks ? 1 : 0;
    std::array<std::byte, sizeof head + sizeof kind + sizeof promise> words{};
    std::memcpy(words.data(), &head, sizeof head);
    std::memcpy(words.data() + sizeof head, &kind, sizeof kind);
    std::memcpy(words.data() + sizeof head + sizeof kind, &promise, sizeof promise);
    const auto request = fabric::WorkRequest::send(kPort, words, nullptr);
    if ((*channel)->state() == fabric::ChannelState::connecting) {
      fabric_.submit(to, std::span(&request, 1), options_.watch.timeout);
    } else if ((*channel)->post(std::span(&request, 1), options_.watch.timeout).accepted == 0) {
      return;  // no room: the next one may pass. It does not queue behind the data that wait for room.
    }
    beats_sent_.add();
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("no sign of life for rank ", to, ": ", e.what());
  }
}

Result<void> Runtime::Control::heartbeat() {
  if (auto alive = fork_guard_.check("heartbeat"); !alive) return alive;
  promised_.store(true, std::memory_order_relaxed);
  bool expelled = false;
  const auto beat_all = [&] {
    expelled = expelled_;
    if (!expelled) silence_.for_each([this](fabric::PeerId peer) { beat(peer); });
  };
  if (fabric_.progress().in_progress()) {
    beat_all();
  } else {
    fabric_.progress().exclusively(beat_all);
  }
  if (!expelled) return {};
  Error error = first_failure().value_or(Error{.code = Errc::fenced});
  error.operation = "heartbeat";
  return dtr::fail(std::move(error));
}

// --- news ---

Bytes Runtime::Control::news_of(fabric::PeerId dead, Errc code, std::string_view why) {
  return ByteWriter().value(Kind::down).value(dead).value(code).text(why.substr(0, kLongestReason)).take();
}

void Runtime::Control::take_news(fabric::PeerId from, fabric::PeerId dead, Errc code, const std::string& why) {
  if (dead == fabric_.self()) return expelled_by(from, why);
  if (fabric_.peer_state(dead) != Errc::ok || code == Errc::fenced || code == Errc::ok) return;
  fabric_.declare_down(dead, code, why);  // comes back through on_peer_down and is passed on from there
}

void Runtime::Control::on_peer_down(fabric::PeerId peer, const Error& error) noexcept {
  try {
    {
      const std::lock_guard lock(mutex_);
      gone_.insert(peer);
    }
    const bool was_neighbour = silence_.forget(peer);
    if (expelled_) return;
    if (error.code == Errc::fenced) return expelled_by(peer, error.message);
    if (error.code == Errc::peer_left && over_.load(std::memory_order_relaxed)) return;
    if (error.code != Errc::peer_left) {
      const std::lock_guard lock(mutex_);
      if (!first_failure_) first_failure_ = error;
      failed_.store(true, std::memory_order_release);
    }
    const Bytes news = news_of(peer, error.code, error.message);
    silence_.for_each([&](fabric::PeerId to) { send(to, news, options_.message_timeout); });
    if (was_neighbour && !ending_.load(std::memory_order_relaxed)) settle_in(false);
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("the news that rank ", peer, " is down is lost: ", e.what());
  }
}

void Runtime::Control::expelled_by(fabric::PeerId peer, const std::string& why) {
  if (std::exchange(expelled_, true)) return;
  const std::string words =
      "the others have declared this rank failed (rank " + std::to_string(peer) + ": " + why + ")";
  DTR_LOG_WARN(words);
  {
    const std::lock_guard lock(mutex_);
    if (!first_failure_ || first_failure_->code != Errc::fenced) {
      first_failure_ = Error{.code = Errc::fenced, .message = words, .peer = static_cast<int>(peer)};
    }
    failed_.store(true, std::memory_order_release);
  }
  // What this rank still does or believes does not concern them any more, and does not spread.
  for (fabric::PeerId rank = 0; rank < fabric_.size(); ++rank) {
    if (rank != fabric_.self()) fabric_.declare_down(rank, Errc::fenced, words);
  }
}

}  // namespace dtr::inline v0
