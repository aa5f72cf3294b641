#include "dtr/runtime/detail/control.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <utility>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/runtime/detail/relay_tree.hpp"

namespace dtr::inline v0 {

namespace {

constexpr fabric::PeerId kRoot = 0;
/// Longest message that a peer may make us assemble.
constexpr std::uint64_t kLongestMessage = 1ULL << 30;
constexpr auto kOutcomeGrace = std::chrono::milliseconds(200);
/// Who leaves early mostly does so because of somebody's death, of which the word may take another way.
constexpr auto kCauseGrace = std::chrono::seconds(1);

/// A rank without a progress thread may compute for long after a meeting: what it passes on has left by then.
constexpr auto kPassOnBound = std::chrono::seconds(2);

/// Lives until its message has left, whatever becomes of the Control.
struct Sending : fabric::Completion {
  explicit Sending(std::shared_ptr<std::atomic<std::uint32_t>> open)
      : Completion(&Sending::over), open_(std::move(open)) {
    open_->fetch_add(1, std::memory_order_relaxed);
  }

 private:
  static void over(fabric::Completion& completion) noexcept {
    const std::unique_ptr<Sending> self(static_cast<Sending*>(&completion));
    self->open_->fetch_sub(1, std::memory_order_release);
  }

  std::shared_ptr<std::atomic<std::uint32_t>> open_;
};

std::string list_ranks(const std::vector<int>& ranks) {
  constexpr std::size_t kShown = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size() && i < kShown; ++i) text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
  if (ranks.size() > kShown) text += " and " + std::to_string(ranks.size() - kShown) + " more";
  return text;
}

}  // namespace

// --- messages ---

void Runtime::Control::send(fabric::PeerId to, std::span<const std::byte> message, Deadline deadline) noexcept {
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = next_message_++;
  }
  std::uint64_t offset = 0;
  do {
    const std::size_t bytes = std::min<std::size_t>(fragment_bytes_, message.size() - offset);
    ByteWriter out;
    out.value(Fragment{.message = number, .total = message.size(), .offset = offset});
    Bytes packet = out.take();
    packet.insert(packet.end(), message.begin() + static_cast<std::ptrdiff_t>(offset),
                  message.begin() + static_cast<std::ptrdiff_t>(offset + bytes));
    // Ends exactly once. A progress thread sees to it that everything leaves.
    fabric::Completion* const sent = has_thread() ? nullptr : std::make_unique<Sending>(sending_).release();
    const fabric::WorkRequest request = fabric::WorkRequest::send(kPort, packet, sent);
    fabric_.submit(to, std::span(&request, 1), deadline);
    offset += bytes;
  } while (offset < message.size());
}

auto Runtime::Control::tree_over(Members members) const {
  return RelayTree(members.count, options_.watch.width, [this, first = members.first](std::uint32_t place) {
    return first + place == fabric_.self() || fabric_.peer_state(first + place) == Errc::ok;
  });
}

void Runtime::Control::send_by_tree(Members members, fabric::PeerId to, std::span<const std::byte> message,
                                    Deadline deadline) noexcept {
  const fabric::PeerId self = fabric_.self();
  if (to == self || tree_over(members).next(self - members.first, to - members.first) == to - members.first) {
    return send(to, message, deadline);
  }
  ByteWriter out;
  out.value(Kind::relay).value(members).value(self).value(to).bytes(message);
  pass_on(members, to, out.view(), deadline);
}

void Runtime::Control::pass_on(Members members, fabric::PeerId to, std::span<const std::byte> message,
                               Deadline deadline) noexcept {
  const std::uint32_t next = tree_over(members).next(fabric_.self() - members.first, to - members.first);
  send(members.first + next, message, deadline);
}

void Runtime::Control::on_notify(fabric::PeerId from, std::uint32_t) noexcept {
  DTR_LOG_WARN("a notification from rank ", from, " on the control port has no meaning");
}

void Runtime::Control::on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept {
  try {
    ByteReader in(payload);
    const auto fragment = in.value<Fragment>();
    const auto piece = in.rest();
    if (!in.ok() || fragment.total > kLongestMessage || fragment.offset > fragment.total ||
        piece.size() > fragment.total - fragment.offset) {
      DTR_LOG_WARN("a malformed control message from rank ", from, " is dropped");
      return;
    }
    if (piece.size() == fragment.total) return handle(from, piece);
    Bytes whole;
    {
      const std::lock_guard lock(mutex_);
      Assembly& assembly = assemblies_[{from, fragment.message}];
      assembly.bytes.resize(fragment.total);
      std::copy(piece.begin(), piece.end(), assembly.bytes.begin() + static_cast<std::ptrdiff_t>(fragment.offset));
      assembly.received += piece.size();
      if (assembly.received < fragment.total) return;
      whole = std::move(assembly.bytes);
      assemblies_.erase({from, fragment.message});
    }
    handle(from, whole);
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("a control message from rank ", from, " is lost: ", e.what());
  }
}

void Runtime::Control::handle(fabric::PeerId from, std::span<const std::byte> message) {
  ByteReader in(message);
  switch (in.value<Kind>()) {
    case Kind::hello:
      return adopt(from);
    case Kind::relay: {
      const auto members = in.value<Members>();
      const auto origin = in.value<fabric::PeerId>();
      const auto to = in.value<fabric::PeerId>();
      const auto inner = in.bytes();
      const bool fits = has(members, origin) && has(members, to) && has(members, fabric_.self());
      if (!in.ok() || !fits || inner.empty() || static_cast<Kind>(inner.front()) == Kind::relay) break;
      if (to != fabric_.self()) return pass_on(members, to, message, options_.message_timeout);
      return handle(origin, inner);
    }
    case Kind::contribution: {
      std::string topic = in.text();
      const auto round = in.value<std::uint64_t>();
      const auto members = in.value<Members>();
      const auto bytes = in.bytes();
      if (!in.ok() || !has(members, from)) break;
      return contribute({std::move(topic), round}, members, static_cast<int>(from), Bytes(bytes.begin(), bytes.end()));
    }
    case Kind::arrival: {
      std::string topic = in.text();
      const auto round = in.value<std::uint64_t>();
      std::vector<fabric::PeerId> ranks;
      while (in.ok() && !in.at_end()) ranks.push_back(in.value<fabric::PeerId>());
      const bool known = std::all_of(ranks.begin(), ranks.end(), [&](auto rank) { return rank < fabric_.size(); });
      if (!in.ok() || !known) break;
      return note_arrivals({std::move(topic), round}, ranks);
    }
    case Kind::outcome: {
      std::string topic = in.text();
      const auto round = in.value<std::uint64_t>();
      const auto members = in.value<Members>();
      if (!in.ok() || !has(members, fabric_.self())) break;
      std::vector<Bytes> all(members.count);
      for (Bytes& bytes : all) {
        const auto view = in.bytes();
        bytes.assign(view.begin(), view.end());
        if (!in.ok()) break;
      }
      if (!in.ok()) break;
      // First to those who wait for it to come by here.
      tree_over(members).for_each_below(fabric_.self() - members.first, [&](std::uint32_t place) {
        send(members.first + place, message, options_.message_timeout);
      });
      const Meeting meeting{std::move(topic), round};
      const std::lock_guard lock(mutex_);
      if (given_up_.erase(meeting) == 0) outcomes_[meeting] = std::move(all);
      return;
    }
    case Kind::question: {
      const auto number = in.value<std::uint64_t>();
      std::string topic = in.text();
      const auto round = in.value<std::uint64_t>();
      const auto expected = in.value<Members>();
      if (!in.ok() || !has(expected, from)) break;
      const std::string text = missing_at_root({std::move(topic), round}, expected);
      return send_by_tree(tree_towards(fabric_.self(), expected), from,
                          ByteWriter().value(Kind::answer).value(number).text(text).take(), options_.message_timeout);
    }
    case Kind::answer: {
      const auto number = in.value<std::uint64_t>();
      std::string text = in.text();
      if (!in.ok()) break;
      const std::lock_guard lock(mutex_);
      answers_[number] = std::move(text);
      return;
    }
    case Kind::down: {
      const auto dead = in.value<fabric::PeerId>();
      const auto code = in.value<Errc>();
      const std::string why = in.text();
      if (!in.ok() || dead >= fabric_.size()) break;
      return take_news(from, dead, code, why);
    }
    case Kind::beat: {
      const auto speaks = in.value<std::uint8_t>();
      if (!in.ok()) break;
      beats_heard_.add();
      if (speaks != 0) silence_.promises(from);
      return;
    }
  }
  DTR_LOG_WARN("a malformed control message from rank ", from, " is dropped");
}

// --- meetings ---

void Runtime::Control::contribute(const Meeting& meeting, Members members, int rank, Bytes bytes) {
  std::map<int, Bytes> all;
  {
    const std::lock_guard lock(mutex_);
    auto& contributions = contributions_[meeting];
    contributions[rank] = std::move(bytes);
    if (contributions.size() < members.count) return;
    all = std::move(contributions);
    contributions_.erase(meeting);
  }
  ByteWriter out;
  out.value(Kind::outcome).text(meeting.first).value(meeting.second).value(members);
  for (const auto& [from, part] : all) out.bytes(part);
  handle(fabric_.self(), out.view());
}

Result<std::vector<Bytes>> Runtime::Control::allgather(std::string_view topic, std::span<const std::byte> mine,
                                                       Members members, Deadline deadline) {
  const std::string operation = "allgather " + std::string(topic);
  Meeting meeting{std::string(topic), 0};
  {
    const std::lock_guard lock(mutex_);
    meeting.second = rounds_[meeting.first]++;
  }
  send_by_tree(
      tree_towards(members.first, members), members.first,
      ByteWriter().value(Kind::contribution).text(topic).value(meeting.second).value(members).bytes(mine).take(),
      deadline);

  std::optional<std::vector<Bytes>> all;
  const auto arrived = [&]() noexcept {
    if (all) return true;  // a wait asks more than once
    const std::lock_guard lock(mutex_);
    const auto found = outcomes_.find(meeting);
    if (found == outcomes_.end()) return false;
    all = std::move(found->second);
    outcomes_.erase(found);
    return true;
  };
  const auto settled = [&]() noexcept {
    if (arrived()) return true;
    return first_gone(members).has_value();  // who is gone does not come any more
  };
  Errc outcome = fabric_.progress().wait(settled, deadline);
  const bool somebody_gone = outcome == Errc::ok && !all;
  if (somebody_gone) {
    // It may have come before it went, with the outcome still on its way.
    outcome = fabric_.progress().wait(arrived, std::min<Deadline::Clock::duration>(deadline.left(), kOutcomeGrace));
  }
  if (all) {
    const auto passed_on = [this]() noexcept { return sending_->load(std::memory_order_acquire) == 0; };
    const auto bound = std::min<Deadline::Clock::duration>(deadline.left(), kPassOnBound);
    if (!passed_on()) static_cast<void>(fabric_.progress().wait(passed_on, bound));
    return std::move(*all);
  }
  {
    const std::lock_guard lock(mutex_);
    if (outcomes_.erase(meeting) == 0) given_up_.insert(meeting);
  }
  if (outcome == Errc::would_deadlock) return dtr::fail(outcome, "called from a callback", operation);
  if (somebody_gone) return dtr::fail(why_gone(members, operation, deadline));
  return dtr::fail(Errc::timed_out, "did not come: " + missing(topic, meeting.second, members, members.first),
                   operation);
}

Result<void> Runtime::Control::barrier(Bootstrap& group, Members members, const std::string& operation,
                                       Deadline deadline, std::chrono::milliseconds to_ask) {
  const std::uint64_t round = announce(operation, deadline);
  std::optional<Deadline> patience;
  auto met = group.barrier(deadline, [&]() -> Result<void> {
    fabric_.progress().poll();
    const auto gone = first_gone(members);
    if (!gone) return {};
    // Who left in good order may have come before; then the barrier ends here too in a moment.
    if (!patience) patience = Deadline(kOutcomeGrace);
    if (fabric_.peer_state(*gone) == Errc::peer_left && !patience->passed()) return {};
    return dtr::fail(why_gone(members, operation, deadline));
  });
  if (met) return met;
  met.error().operation = operation;
  if (met.error().code == Errc::timed_out)
    met.error().message = "did not come: " + missing(operation, round, members, kRoot, to_ask);
  return met;
}

std::uint64_t Runtime::Control::announce(std::string_view topic, Deadline deadline) {
  std::uint64_t round = 0;
  {
    const std::lock_guard lock(mutex_);
    round = rounds_[std::string(topic)]++;
  }
  const std::array mine{fabric_.self()};
  Meeting meeting{std::string(topic), round};
  if (mine.front() == kRoot) {
    note_arrivals(std::move(meeting), mine);
  } else {
    send_arrivals(meeting, mine, deadline);
  }
  return round;
}

void Runtime::Control::note_arrivals(Meeting meeting, std::span<const fabric::PeerId> ranks) {
  if (fabric_.self() != kRoot) {
    auto& kept = arrivals_to_pass_on_[std::move(meeting)];
    kept.insert(kept.end(), ranks.begin(), ranks.end());
    return;
  }
  const std::lock_guard lock(mutex_);
  if (meeting.second > 0)
    arrivals_.erase({meeting.first, meeting.second - 1});  // who comes to this one has left that one
  auto& came = arrivals_[std::move(meeting)];
  came.resize(fabric_.size());
  for (const fabric::PeerId rank : ranks) came[rank] = true;
}

void Runtime::Control::send_arrivals(const Meeting& meeting, std::span<const fabric::PeerId> ranks, Deadline deadline) {
  ByteWriter out;
  out.value(Kind::arrival).text(meeting.first).value(meeting.second);
  for (const fabric::PeerId rank : ranks) out.value(rank);
  pass_on(tree_towards(kRoot, {}), kRoot, out.view(), deadline);
}

std::string Runtime::Control::missing_at_root(const Meeting& meeting, Members expected) const {
  const std::lock_guard lock(mutex_);
  std::vector<bool> came(expected.count);
  const auto contributions = contributions_.find(meeting);
  const auto arrivals = arrivals_.find(meeting);
  for (std::uint32_t i = 0; i < expected.count; ++i) {
    const fabric::PeerId rank = expected.first + i;
    came[i] = (contributions != contributions_.end() && contributions->second.contains(static_cast<int>(rank))) ||
              (arrivals != arrivals_.end() && arrivals->second[rank]);
  }
  // The word of a rank may have come as far as one that does not pass it on, being stopped.
  const Members members = tree_towards(fabric_.self(), expected);
  const auto tree = tree_over(members);
  std::set<int> between;  // who has the words of the absent to pass on
  const auto may_be_held_up = [&](fabric::PeerId rank) {
    for (std::uint32_t place = rank - members.first; place != 0;) {
      place = tree.above(place);
      const fabric::PeerId above = members.first + place;
      if (place != 0 && has(expected, above) && !came[above - expected.first]) return true;
    }
    return false;
  };
  std::vector<int> absent;
  std::size_t unknown = 0;
  for (std::uint32_t i = 0; i < expected.count; ++i) {
    if (came[i]) continue;
    if (may_be_held_up(expected.first + i)) {
      ++unknown;
    } else {
      const fabric::PeerId rank = expected.first + i;
      absent.push_back(static_cast<int>(rank));
      const std::uint32_t next =
          rank == fabric_.self() ? 0 : tree.next(fabric_.self() - members.first, rank - members.first);
      if (members.first + next != rank && next != 0) between.insert(static_cast<int>(members.first + next));
    }
  }
  if (absent.empty()) return "nobody (all came too late)";
  std::string text = list_ranks(absent);
  if (!between.empty()) text += ", whose words come by " + list_ranks({between.begin(), between.end()});
  if (unknown > 0) text += " (and perhaps some of the " + std::to_string(unknown) + " whose words they pass on)";
  return text;
}

std::string Runtime::Control::missing(std::string_view topic, std::uint64_t round, Members expected,
                                      fabric::PeerId root, std::chrono::milliseconds to_ask) {
  if (fabric_.self() == root) return missing_at_root({std::string(topic), round}, expected);
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = next_question_++;
  }
  ByteWriter out;
  out.value(Kind::question).value(number).text(topic).value(round).value(expected);
  send_by_tree(tree_towards(root, expected), root, out.take(), to_ask);
  std::optional<std::string> answer;
  const auto answered = [&]() noexcept {
    if (answer) return true;
    const std::lock_guard lock(mutex_);
    const auto found = answers_.find(number);
    if (found == answers_.end()) return false;
    answer = std::move(found->second);
    answers_.erase(found);
    return true;
  };
  if (fabric_.progress().wait(answered, to_ask) != Errc::ok) {
    const Members members = tree_towards(root, expected);
    const fabric::PeerId next =
        members.first + tree_over(members).next(fabric_.self() - members.first, root - members.first);
    return "unknown, rank " + std::to_string(root) + " does not answer" +
           (next == root ? "" : " by way of rank " + std::to_string(next));
  }
  return *answer;
}

std::optional<fabric::PeerId> Runtime::Control::first_gone(Members members) const noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = gone_.lower_bound(members.first);
  if (found == gone_.end() || *found >= members.first + members.count) return std::nullopt;
  return *found;
}

Error Runtime::Control::why_gone(Members members, const std::string& operation, Deadline deadline) {
  const auto explained = [&]() noexcept { return failed_.load(std::memory_order_acquire); };
  const auto grace = std::min<Deadline::Clock::duration>(deadline.left(), kCauseGrace);
  static_cast<void>(fabric_.progress().wait(explained, grace));
  Error error = first_failure().value_or(fabric_.peer_error(first_gone(members).value_or(members.first), {}));
  error.operation = operation;
  return error;
}

std::optional<Error> Runtime::Control::first_failure() const {
  const std::lock_guard lock(mutex_);
  return first_failure_;
}

}  // namespace dtr::inline v0
