#include "dtr/pushpull/detail/worker_core.hpp"

#include <algorithm>
#include <string>
#include <thread>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr int kHighestGroup = 31;
constexpr auto kDrainBound = std::chrono::seconds(2);
constexpr auto kGoodbyeBound = std::chrono::seconds(1);

std::size_t checked_message(const fabric::Fabric& fabric) {
  if (fabric.max_message() < kSmallestMessage) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = "fabric.eager_bytes is " + std::to_string(fabric.max_message()) +
                                "; push_pull needs at least " + std::to_string(kSmallestMessage),
                     .operation = "make Worker"});
  }
  return std::min<std::size_t>(fabric.max_message(), 16 << 10);
}

/// Both directions have to fit a message with one push and one pull.
std::size_t inline_limit(std::size_t max_message) {
  constexpr std::size_t kLargest = 1024;
  const std::size_t room = max_message - sizeof(Round) - sizeof(PushEntry) - sizeof(PullEntry) - 2 * kInlineAlignment;
  return std::min({kLargest, room, max_message - sizeof(Response) - kInlineAlignment}) / kInlineAlignment *
         kInlineAlignment;
}

}  // namespace

WorkerCore::WorkerCore(Runtime& runtime, const WorkerOptions& options)
    : runtime_(runtime),
      fabric_(runtime.fabric()),
      options_(options),
      epoch_(static_cast<std::uint32_t>(monotonic_ns()) | 1U),
      max_message_(checked_message(runtime.fabric())),
      inline_limit_(inline_limit(max_message_)),
      memory_(runtime, [this](const RemoteKey& key) { forget_region(key); }),
      rounds_total_(runtime.metrics().counter("dtr_pushpull_rounds_total", "Rounds started by this worker.")),
      failures_total_(
          runtime.metrics().counter("dtr_pushpull_failed_rounds_total", "Rounds that ended with an Error.")),
      pushed_bytes_(runtime.metrics().counter("dtr_pushpull_pushed_bytes_total", "Bytes pushed.")),
      round_ns_(
          runtime.metrics().histogram("dtr_pushpull_round_seconds", "From push_pull to the last answer.", {}, 1e-9)) {
  const auto refuse = [](std::string words) {
    throw Exception({.code = Errc::invalid_argument, .message = std::move(words), .operation = "make Worker"});
  };
  if (!runtime.is_worker()) refuse("rank " + std::to_string(runtime.rank()) + " is not a worker");
  if (runtime.servers() == 0) refuse("this job has no servers; see RuntimeOptions::servers and colocated");
  if (options.rounds == 0 || options.rounds > kMostRounds) {
    refuse("WorkerOptions::rounds is " + std::to_string(options.rounds) + ", not 1 to " + std::to_string(kMostRounds));
  }
  if (options.split_bytes % 64 != 0) refuse("WorkerOptions::split_bytes is not a multiple of 64");
  if (options.group < 0 || options.group > kHighestGroup) {
    throw Exception(
        {.code = Errc::out_of_range,
         .message = "groups are 0 to " + std::to_string(kHighestGroup) + ", not " + std::to_string(options.group),
         .operation = "make Worker"});
  }
  worker_port_ = value_or_throw(runtime.service_port("pushpull worker", options.group));
  server_port_ = value_or_throw(runtime.service_port("pushpull server", options.group));
  rounds_.resize(options.rounds);
  for (int server = 0; server < runtime.servers(); ++server) {
    Link& link = links_.emplace_back();
    link.peer = static_cast<fabric::PeerId>(runtime.server_rank(server));
    const std::string way = fabric_.path(link.peer).transport;
    link.same_clock = way == "loopback" || way == "shm";
    by_peer_[link.peer] = &link;
  }
  value_or_throw(fabric_.open_port(worker_port_, *this));
  Outgoing out;
  {
    const std::lock_guard lock(mutex_);
    for (Link& link : links_) {
      if (fabric_.peer_state(link.peer) != Errc::ok) {  // it went before the port was open
        fail_link(link, fabric_.peer_error(link.peer, "push_pull"), true);
        continue;
      }
      out.add(link.peer, Hello{.head = {.kind = Kind::hello, .epoch = epoch_},
                               .workers = static_cast<std::uint32_t>(runtime.workers())});
    }
  }
  post(out);
}

WorkerCore::~WorkerCore() {
  if (fork_guard_.in_forked_child()) return;
  const auto open = [this]() noexcept {
    const std::lock_guard lock(mutex_);
    return std::any_of(rounds_.begin(), rounds_.end(), [](const WorkerRound& round) { return round.open > 0; });
  };
  const auto drained = [&] {
    const EndWait wait(runtime_, kDrainBound);
    return fabric_.progress().wait([&]() noexcept { return !open(); }, wait.deadline());
  };
  if (drained() == Errc::timed_out) {
    {
      const std::lock_guard lock(mutex_);
      had_failure_ = true;
    }
    cancel_all();
    if (drained() != Errc::ok) DTR_LOG_WARN("push_pull: the Worker ends with rounds that servers have not let go of");
  }
  say_goodbye();
  fabric_.close_port(worker_port_);
  // What still hangs on the fabric ends now; its Completions live here.
  for (WorkerFragment& fragment : fragments_) {
    if (!fragment.Completion::done()) fabric_.cancel(fragment.link->peer, fragment);
    if (!fragment.fetch.done()) fabric_.cancel(fragment.link->peer, fragment.fetch);
  }
  while (open_posts_.load(std::memory_order_acquire) > 0) {
    if (!fabric_.progress().poll()) std::this_thread::yield();
  }
}

void WorkerCore::say_goodbye() {
  std::deque<fabric::Completion> sent;
  bool clean = true;
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    failed = had_failure_;
    clean = std::none_of(fragments_.begin(), fragments_.end(),
                         [](const WorkerFragment& fragment) { return fragment.posted_open || fragment.fetch.open; });
  }
  std::vector<fabric::PeerId> told;
  for (const Link& link : links_) {
    {
      const std::lock_guard lock(mutex_);
      if (link.state == Link::State::failed) continue;
    }
    told.push_back(link.peer);
    const auto flags = static_cast<std::uint8_t>((clean ? 0 : Bye::kUnclean) | (failed ? Bye::kFailed : 0));
    const Bye bye{.head = {.kind = Kind::bye, .flags = flags, .epoch = epoch_}, .rounds = link.next_seq};
    const std::span<const std::byte> bytes = std::as_bytes(std::span(&bye, 1));
    const auto request = fabric::WorkRequest::send(server_port_, bytes, &sent.emplace_back()).fenced();
    fabric_.submit(link.peer, {&request, 1}, kGoodbyeBound);
  }
  const auto all_sent = [&]() noexcept {
    return std::all_of(sent.begin(), sent.end(), [](const fabric::Completion& one) { return one.done(); });
  };
  const auto all_parted = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    return std::all_of(links_.begin(), links_.end(),
                       [](const Link& link) { return link.fenced || link.state == Link::State::greeting; });
  };
  {
    const EndWait wait(runtime_, kGoodbyeBound);
    static_cast<void>(fabric_.progress().wait([&]() noexcept { return all_sent() && all_parted(); }, wait.deadline()));
  }
  for (std::size_t i = 0; i < told.size(); ++i) {
    if (!sent[i].done()) fabric_.cancel(told[i], sent[i]);
  }
  while (!all_sent()) {
    if (!fabric_.progress().poll()) std::this_thread::yield();
  }
}

void WorkerCore::cancel_all() {
  const std::uint64_t oldest = next_round_ > rounds_.size() ? next_round_ - rounds_.size() : 1;
  for (std::uint64_t number = oldest; number < next_round_; ++number) static_cast<void>(cancel({.round = number}));
}

Result<void> WorkerCore::enter(const char* operation) const { return fork_guard_.check(operation); }

Link* WorkerCore::link_of(fabric::PeerId peer) noexcept {
  const auto found = by_peer_.find(peer);
  return found == by_peer_.end() ? nullptr : found->second;
}

Result<WorkerRound*> WorkerCore::find(RoundHandle handle, const char* operation) {
  WorkerRound& round = rounds_[handle.round % rounds_.size()];
  if (handle.round == 0 || handle.round >= next_round_ || round.number != handle.round) {
    return fail(Errc::stale_handle,
                "round " + std::to_string(handle.round) + " is not known; the last " + std::to_string(rounds_.size()) +
                    " of " + std::to_string(next_round_ - 1) + " are",
                operation);
  }
  if (handle.part > round.part_open.size()) {
    return fail(Errc::invalid_argument, "round " + std::to_string(handle.round) + " has no tensor of that number",
                operation);
  }
  return &round;
}

bool WorkerCore::part_done(const WorkerRound& round, std::uint32_t part) const noexcept {
  return round.done.load(std::memory_order_acquire) || (part > 0 && round.part_open[part - 1] == 0);
}

Result<void> WorkerCore::wait(RoundHandle handle, Deadline deadline) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check("push_pull"); !good) return good;
  if (auto good = enter("push_pull"); !good) return good;
  auto round = find(handle, "push_pull");
  if (!round) return dtr::fail(std::move(round.error()));
  WorkerRound& waited = **round;
  const auto ended = [&]() noexcept {
    if (handle.part == 0 || waited.done.load(std::memory_order_acquire)) {
      return waited.done.load(std::memory_order_acquire);
    }
    const std::lock_guard lock(mutex_);
    return part_done(waited, handle.part);
  };
  const Errc outcome = fabric_.progress().wait(ended, std::min(deadline, waited.deadline));
  expire(waited);
  const std::lock_guard lock(mutex_);
  if (waited.error) return dtr::fail(*waited.error);
  if (outcome == Errc::timed_out) {
    if (part_done(waited, handle.part)) return {};
    Error error = late(waited);
    error.message += "; the round goes on";
    return dtr::fail(std::move(error));
  }
  if (outcome != Errc::ok) return fail(outcome, "called from a callback", "push_pull");
  return {};
}

/// With the lock: who has not answered, and what each waits for.
Error WorkerCore::late(const WorkerRound& round) {
  Error error{.code = Errc::timed_out, .operation = "push_pull"};
  std::string words;
  const Link* named = nullptr;
  for (const WorkerFragment* fragment : round.fragments) {
    if (fragment->stage == WorkerFragment::Stage::ended || fragment->link == named) continue;
    named = fragment->link;
    if (error.peer < 0) {
      error.peer = static_cast<int>(named->peer);
      error.path = fabric_.path(named->peer).transport;
    }
    words += words.empty() ? "no answer from rank " : ", rank ";
    words += std::to_string(named->peer);
    if (named->state == Link::State::greeting) {
      words += " (it has no Server in this group yet)";
    } else if (fragment->stage == WorkerFragment::Stage::queued) {
      words += " (the round waits here for receive slots, which earlier rounds hold)";
    } else if (fragment->posted_open) {
      words += " (the data is still on its way)";
    } else if (fragment->fetch.open) {
      words += " (its answer is being fetched)";
    } else {
      words += " (it has the data)";
    }
  }
  error.message = std::move(words);
  return error;
}

/// A round whose time is over ends, whoever looks at it. True if it did now.
bool WorkerCore::expire(WorkerRound& round) {
  if (!round.deadline.passed()) return false;
  Outgoing out;
  {
    const std::lock_guard lock(mutex_);
    if (round.open == 0 || round.done.load(std::memory_order_relaxed)) return false;
    Error error = late(round);
    error.message += " until the deadline of the round; quiesce before its tensors are used again";
    give_up_round(round, std::move(error), out);
  }
  post(out);
  for (Link& link : links_) pump(link);
  return true;
}

/// With the lock. The round ends for the caller; what has not left goes empty, and servers need not answer the rest.
void WorkerCore::give_up_round(WorkerRound& round, Error error, Outgoing& out) {
  fail_round(round, std::move(error));
  const Link* told = nullptr;
  for (WorkerFragment* fragment : round.fragments) {
    if (std::exchange(fragment->cancelled, true)) continue;
    if (fragment->stage == WorkerFragment::Stage::queued) {
      fragment->given_up = true;
    } else if (fragment->stage == WorkerFragment::Stage::sent && fragment->answer_open && fragment->link != told) {
      told = fragment->link;
      out.add(told->peer, Cancel{.head = {.kind = Kind::cancel, .epoch = epoch_}, .seq = fragment->seq});
    }
  }
}

Result<bool> WorkerCore::done(RoundHandle handle) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check("push_pull"); !good) return dtr::fail(std::move(good.error()));
  if (auto good = enter("push_pull"); !good) return dtr::fail(std::move(good.error()));
  auto round = find(handle, "push_pull");
  if (!round) return dtr::fail(std::move(round.error()));
  expire(**round);
  const std::lock_guard lock(mutex_);
  return part_done(**round, handle.part);
}

Result<void> WorkerCore::cancel(RoundHandle handle) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check("cancel"); !good) return good;
  if (auto good = enter("cancel"); !good) return good;
  auto round = find(handle, "cancel");
  if (!round) return dtr::fail(std::move(round.error()));
  Outgoing out;
  {
    const std::lock_guard lock(mutex_);
    if ((*round)->open == 0) return {};
    give_up_round(**round, {.code = Errc::cancelled, .message = "cancelled by its caller", .operation = "push_pull"},
                  out);
  }
  post(out);
  for (Link& link : links_) pump(link);
  return {};
}

Result<std::vector<RoundHandle>> WorkerCore::handles(RoundHandle handle) {
  if (auto good = enter("handles"); !good) return dtr::fail(std::move(good.error()));
  const std::lock_guard lock(mutex_);
  auto round = find(handle, "handles");
  if (!round) return dtr::fail(std::move(round.error()));
  std::vector<RoundHandle> all;
  for (std::uint32_t part = 1; part <= (*round)->part_open.size(); ++part) all.push_back({handle.round, part});
  return all;
}

Result<std::vector<RoundTrace>> WorkerCore::trace(RoundHandle handle) {
  if (auto good = enter("trace"); !good) return dtr::fail(std::move(good.error()));
  const std::lock_guard lock(mutex_);
  auto round = find(handle, "trace");
  if (!round) return dtr::fail(std::move(round.error()));
  if ((*round)->open > 0) return fail(Errc::again, "the round has not ended", "trace");
  std::vector<RoundTrace> rows;
  for (const WorkerFragment* fragment : (*round)->fragments) {
    RoundTrace row = fragment->trace;
    const ClockOffset& clock = fragment->link->clock;
    if (row.response_posted != 0 && !fragment->link->same_clock) {
      for (std::int64_t* stamp :
           {&row.request_received, &row.request_processed, &row.response_start, &row.response_posted}) {
        *stamp -= clock.lead();
      }
      row.clock_error_ns = clock.error();
    }
    rows.push_back(row);
  }
  return rows;
}

Result<void> WorkerCore::unbind(std::span<const std::uint64_t> keys) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check("unbind"); !good) return good;
  if (auto good = enter("unbind"); !good) return good;
  const auto held = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    return std::any_of(links_.begin(), links_.end(), [&](const Link& link) {
      return std::any_of(link.bindings.begin(), link.bindings.end(), [&](const auto& known) {
        const auto& [part, binding] = known;
        return (binding.users > 0 || binding.asked) && std::find(keys.begin(), keys.end(), part.key) != keys.end();
      });
    });
  };
  // The round may be over here while others still read its sum in this worker's slots.
  static_cast<void>(fabric_.progress().wait([&]() noexcept { return open_somewhere(keys) || !held(); }, kDrainBound));
  Outgoing out;
  {
    const std::lock_guard lock(mutex_);
    for (const std::uint64_t key : keys) {
      bool known = false;
      for (Link& link : links_) {
        const auto info = link.keys.find(key);
        if (info != link.keys.end()) {
          known = known || info->second.push_bytes + info->second.pull_bytes > 0;
          if (info->second.open > 0) {
            return fail(Errc::busy, "key " + std::to_string(key) + " is used by an open round", "unbind");
          }
        }
        for (const auto& [part, binding] : link.bindings) {
          if (part.key == key && (binding.users > 0 || binding.asked)) {
            return fail(Errc::busy, "the server still holds key " + std::to_string(key), "unbind");
          }
        }
      }
      if (!known) return fail(Errc::not_found, "key " + std::to_string(key) + " is not known", "unbind");
    }
    for (const std::uint64_t key : keys) {
      for (Link& link : links_) {
        link.keys.erase(key);
        for (auto at = link.bindings.begin(); at != link.bindings.end();) {
          if (at->first.key != key) {
            ++at;
            continue;
          }
          out.add(link.peer,
                  Unbind{.head = {.kind = Kind::unbind, .epoch = epoch_}, .key = key, .offset = at->first.offset});
          at = link.bindings.erase(at);
        }
      }
    }
  }
  post(out);
  return {};
}

/// An open round uses one of the keys.
bool WorkerCore::open_somewhere(std::span<const std::uint64_t> keys) noexcept {
  const std::lock_guard lock(mutex_);
  return std::any_of(links_.begin(), links_.end(), [&](const Link& link) {
    return std::any_of(keys.begin(), keys.end(), [&](std::uint64_t key) {
      const auto info = link.keys.find(key);
      return info != link.keys.end() && info->second.open > 0;
    });
  });
}

Result<void> WorkerCore::forget(std::span<const std::byte> memory) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check("forget"); !good) return good;
  if (auto good = enter("forget"); !good) return good;
  return memory_.forget(memory, kDrainBound);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
