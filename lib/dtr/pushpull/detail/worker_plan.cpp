// From lists of tensors to fragments: checks first, so that a bad call changes nothing.
#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/pushpull/detail/route.hpp"
#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr const char* kOperation = "push_pull";
constexpr auto kReleaseBound = std::chrono::seconds(2);
constexpr std::uint64_t kSmallestPart = 64 << 10;  ///< to give every server a part

std::string key_text(std::uint64_t key) { return "key " + std::to_string(key); }

}  // namespace

Link& WorkerCore::home(std::uint64_t key, std::uint64_t part) {
  return links_[server_of(key, part, static_cast<std::uint32_t>(links_.size()))];
}

Result<RoundHandle> WorkerCore::push_pull(std::span<const PushPull> tensors, std::optional<Deadline> deadline) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check(kOperation); !good) return dtr::fail(std::move(good.error()));
  if (auto good = enter(kOperation); !good) return dtr::fail(std::move(good.error()));
  items_.clear();
  std::uint32_t pushes = 0;
  std::uint32_t pulls = 0;
  for (const PushPull& tensor : tensors) {
    Item& item = items_.emplace_back();
    item.push_key = item.pull_key = tensor.key;
    item.push = tensor.push;
    item.pull = tensor.pull;
    if (tensor.push.data != nullptr || tensor.push.bytes > 0) item.push_part = ++pushes;
    if (tensor.pull.data != nullptr || tensor.pull.bytes > 0) item.pull_part = ++pulls;
    if (item.push_part == 0 && item.pull_part == 0) {
      return fail(Errc::invalid_argument, key_text(tensor.key) + " has nothing to push and nothing to pull",
                  kOperation);
    }
  }
  if (auto good = number_parts(pushes, pulls); !good) return dtr::fail(std::move(good.error()));
  return start_round(deadline.value_or(Deadline(runtime_.operation_timeout())));
}

Result<RoundHandle> WorkerCore::push_pull(std::span<const PushView> pushes, std::span<const std::uint64_t> push_keys,
                                          std::span<const PullView> pulls, std::span<const std::uint64_t> pull_keys,
                                          std::optional<Deadline> deadline) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check(kOperation); !good) return dtr::fail(std::move(good.error()));
  if (auto good = enter(kOperation); !good) return dtr::fail(std::move(good.error()));
  if (pushes.size() != push_keys.size() || pulls.size() != pull_keys.size()) {
    return fail(Errc::invalid_argument,
                std::to_string(pushes.size()) + " tensors with " + std::to_string(push_keys.size()) +
                    " keys to push, " + std::to_string(pulls.size()) + " with " + std::to_string(pull_keys.size()) +
                    " to pull",
                kOperation);
  }
  items_.clear();
  items_.resize(std::max(pushes.size(), pulls.size()));
  for (std::size_t i = 0; i < items_.size(); ++i) {
    if (i < pushes.size()) {
      items_[i].push_key = push_keys[i];
      items_[i].push = pushes[i];
      items_[i].push_part = static_cast<std::uint32_t>(i + 1);
    }
    if (i < pulls.size()) {
      items_[i].pull_key = pull_keys[i];
      items_[i].pull = pulls[i];
      items_[i].pull_part = static_cast<std::uint32_t>(i + 1);
    }
  }
  if (auto good = number_parts(static_cast<std::uint32_t>(pushes.size()), static_cast<std::uint32_t>(pulls.size()));
      !good) {
    return dtr::fail(std::move(good.error()));
  }
  return start_round(deadline.value_or(Deadline(runtime_.operation_timeout())));
}

/// Pulls count on from the pushes; route broadcast deals them to the servers in the list's order.
Result<void> WorkerCore::number_parts(std::uint32_t pushes, std::uint32_t pulls) {
  const auto servers = static_cast<std::uint32_t>(links_.size());
  const bool broadcast = options_.route == Route::broadcast;
  if (broadcast && pulls % servers != 0) {
    return fail(Errc::invalid_argument,
                std::to_string(pulls) + " pull tensors cannot be shared by " + std::to_string(servers) +
                    " servers: route broadcast wants as many for each",
                kOperation);
  }
  for (Item& item : items_) {
    if (item.pull_part == 0) continue;
    item.pull_from = broadcast ? &links_[(item.pull_part - 1) / (pulls / servers)] : &home(item.pull_key);
    item.pull_part += pushes;
  }
  return {};
}

Result<void> WorkerCore::check_size(KeyInfo& info, std::uint64_t key, std::uint64_t bytes, bool pull,
                                    std::uint64_t call) {
  const std::uint64_t known = pull ? info.pull_bytes : info.push_bytes;
  const std::string what = pull ? "pulled" : "pushed";
  if (known != 0 && known != bytes) {
    return fail(Errc::invalid_argument,
                key_text(key) + " is " + what + " with " + std::to_string(known) + " bytes, this tensor has " +
                    std::to_string(bytes) + "; unbind the key on every worker to change its size",
                kOperation);
  }
  std::uint64_t& listed = pull ? info.pulled_in : info.pushed_in;
  if (std::exchange(listed, call) == call) {
    return fail(Errc::invalid_argument, key_text(key) + " is " + what + " twice in one round", kOperation);
  }
  return {};
}

Result<void> WorkerCore::check_item(const Item& item) {
  if (item.push_part != 0) {
    if (item.push.data == nullptr || item.push.bytes == 0) {
      return fail(Errc::invalid_argument, key_text(item.push_key) + ": the tensor to push is empty", kOperation);
    }
    Link& link = options_.route == Route::broadcast ? links_.front() : home(item.push_key);
    if (auto good = check_size(link.keys[item.push_key], item.push_key, item.push.bytes, false, call_); !good) {
      return good;
    }
  }
  if (item.pull_part != 0) {
    if (item.pull.data == nullptr || item.pull.bytes == 0) {
      return fail(Errc::invalid_argument, key_text(item.pull_key) + ": the tensor to pull is empty", kOperation);
    }
    KeyInfo& info = item.pull_from->keys[item.pull_key];
    if (auto good = check_size(info, item.pull_key, item.pull.bytes, true, call_); !good) return good;
  }
  return {};
}

/// A pulled tensor may share memory with nothing but its own push.
Result<void> WorkerCore::check_overlaps() {
  if (items_.size() == 1) return {};
  auto& ranges = ranges_;
  ranges.clear();
  for (const Item& item : items_) {
    const auto add = [&](const void* data, std::uint64_t bytes, bool pull) {
      const auto begin = reinterpret_cast<std::uintptr_t>(data);
      ranges.push_back({begin, begin + bytes, &item, pull});
    };
    if (item.push_part != 0) add(item.push.data, item.push.bytes, false);
    if (item.pull_part != 0) add(item.pull.data, item.pull.bytes, true);
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  // The furthest reach so far of all, and of the pulls; each from another item than the one looked at if possible.
  const Range* reach = &ranges.front();
  const Range* pull_reach = ranges.front().pull ? &ranges.front() : nullptr;
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    const Range& now = ranges[i];
    const Range* clash = nullptr;
    if (now.pull && reach->end > now.begin && reach->item != now.item) clash = reach;
    if (pull_reach != nullptr && pull_reach->end > now.begin && pull_reach->item != now.item) clash = pull_reach;
    if (clash != nullptr) {
      return fail(Errc::overlap,
                  "the memory of " + key_text(now.pull ? now.item->pull_key : now.item->push_key) + " and of " +
                      key_text(clash->pull ? clash->item->pull_key : clash->item->push_key) + " overlaps",
                  kOperation);
    }
    if (now.end > reach->end) reach = &now;
    if (now.pull && (pull_reach == nullptr || now.end > pull_reach->end)) pull_reach = &now;
  }
  return {};
}

Result<void> WorkerCore::locate(Item& item) {
  const bool pushes = item.push_part != 0 && !inlined(item.push.bytes);
  const bool pulls = item.pull_part != 0 && !inlined(item.pull.bytes);
  const bool in_place = pushes && pulls && item.push.data == item.pull.data;
  // The pull first: if both are one, it asks for the right to write.
  if (pulls) {
    auto place = memory_.locate({item.pull.data, item.pull.bytes}, Access::write);
    if (!place) return dtr::fail(std::move(place.error()));
    item.pull_place = *place;
    item.pull_place.hold();
  }
  if (pushes) {
    auto place = in_place && item.push.bytes == item.pull.bytes
                     ? Result<UserMemory::Place>(item.pull_place)
                     : memory_.locate({item.push.data, item.push.bytes}, Access::none);
    if (!place) return dtr::fail(std::move(place.error()));
    item.push_place = *place;
    item.push_place.hold();
  }
  return {};
}

/// Its place is wanted. It may be over here while others still read its sum in this worker's slots.
void WorkerCore::make_room(WorkerRound& oldest) {
  expire(oldest);
  const auto free = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    return oldest.open > 0 || oldest.unreleased == 0;
  };
  if (!free()) static_cast<void>(fabric_.progress().wait(free, kReleaseBound));
}

Result<WorkerRound*> WorkerCore::claim_round() {
  WorkerRound& round = rounds_[next_round_ % rounds_.size()];
  if (round.open > 0 || round.unreleased > 0) {
    return fail(Errc::busy,
                "round " + std::to_string(round.number) + " is still open, " + std::to_string(rounds_.size()) +
                    " rounds ago: wait for it, or make WorkerOptions::rounds larger",
                kOperation);
  }
  for (WorkerFragment* fragment : round.fragments) idle_fragments_.push_back(fragment);
  round.fragments.clear();
  round.part_open.clear();
  round.keys.clear();
  round.error.reset();
  round.number = next_round_++;
  round.done.store(false, std::memory_order_relaxed);
  return &round;
}

Result<RoundHandle> WorkerCore::start_round(const Deadline& deadline) {
  if (items_.empty()) return fail(Errc::invalid_argument, "no tensors", kOperation);
  const std::int64_t started = monotonic_ns();
  {
    const std::lock_guard lock(mutex_);
    ++call_;
    for (const Item& item : items_) {
      if (auto good = check_item(item); !good) return dtr::fail(std::move(good.error()));
    }
  }
  if (auto good = check_overlaps(); !good) return dtr::fail(std::move(good.error()));
  if (WorkerRound& oldest = rounds_[next_round_ % rounds_.size()]; oldest.number != 0) make_room(oldest);
  const auto let_go = [&] {
    for (const Item& item : items_) {
      item.push_place.release();
      item.pull_place.release();
    }
  };
  for (Item& item : items_) {
    if (auto found = locate(item); !found) {
      let_go();
      return dtr::fail(std::move(found.error()));
    }
  }

  Outgoing out;
  RoundHandle handle;
  {
    const std::lock_guard lock(mutex_);
    for (const Link& link : links_) {  // a round that cannot end well is not started
      if (link.state != Link::State::failed) continue;
      const bool needed = std::any_of(items_.begin(), items_.end(), [&](const Item& item) {
        if (item.pull_from == &link) return true;
        if (options_.route == Route::broadcast || options_.split_bytes != 0) return true;
        return item.push_part != 0 && &home(item.push_key) == &link;
      });
      if (!needed) continue;
      let_go();
      return dtr::fail(*link.error);
    }
    auto round = claim_round();
    if (!round) {
      let_go();
      return dtr::fail(std::move(round.error()));
    }
    WorkerRound& made = **round;
    made.started_ns = started;
    made.deadline = deadline;
    for (const Item& item : items_) {
      made.part_open.resize(std::max<std::size_t>({made.part_open.size(), item.push_part, item.pull_part}), 0);
      use_keys(made, item);
    }
    for (const Item& item : items_) plan(made, item);
    number_fragments(made);
    handle.round = made.number;
    made.open = static_cast<std::uint32_t>(made.fragments.size());
    for (WorkerFragment* fragment : made.fragments) enqueue(*fragment, out);
  }
  let_go();  // each piece holds for itself now
  rounds_total_.add();
  post(out);
  for (Link& link : links_) pump(link);
  return handle;
}

void WorkerCore::use_key(WorkerRound& round, Link& link, std::uint64_t key, std::uint64_t bytes, bool pull) {
  KeyInfo& info = link.keys[key];
  (pull ? info.pull_bytes : info.push_bytes) = bytes;
  ++info.open;
  round.keys.emplace_back(&link, key);
}

void WorkerCore::use_keys(WorkerRound& round, const Item& item) {
  if (item.push_part != 0 && options_.route == Route::broadcast) {
    for (Link& link : links_) use_key(round, link, item.push_key, item.push.bytes, false);
  } else if (item.push_part != 0) {
    use_key(round, home(item.push_key), item.push_key, item.push.bytes, false);
  }
  if (item.pull_part != 0) use_key(round, *item.pull_from, item.pull_key, item.pull.bytes, true);
}

/// Of what a tensor is cut into: the same at all workers.
std::uint64_t WorkerCore::part_bytes(std::uint64_t tensor) const noexcept {
  if (options_.split_bytes == 0) return tensor;
  const std::uint64_t least = (tensor + options_.split_bytes - 1) / options_.split_bytes;
  const std::uint64_t parts =
      std::max({least, std::min<std::uint64_t>(links_.size(), tensor / kSmallestPart), std::uint64_t{1}});
  return ((tensor + parts - 1) / parts + 63) / 64 * 64;
}

void WorkerCore::plan(WorkerRound& round, const Item& item) {
  if (options_.route == Route::broadcast) {
    if (item.push_part != 0) {
      for (Link& link : links_) plan_push(round, link, item, 0, item.push.bytes);
    }
    if (item.pull_part != 0) plan_pull(round, *item.pull_from, item, 0, item.pull.bytes);
    return;
  }
  const auto each_part = [&](std::uint64_t bytes, auto&& action) {
    const std::uint64_t step = part_bytes(bytes);
    for (std::uint64_t offset = 0, part = 0; offset < bytes; offset += step, ++part) {
      action(part, offset, std::min(step, bytes - offset));
    }
  };
  const auto push = [&](std::uint64_t part, std::uint64_t offset, std::uint64_t bytes) {
    plan_push(round, home(item.push_key, part), item, offset, bytes);
  };
  const auto pull = [&](std::uint64_t part, std::uint64_t offset, std::uint64_t bytes) {
    plan_pull(round, home(item.pull_key, part), item, offset, bytes);
  };
  const bool pushes = item.push_part != 0;
  const bool pulls = item.pull_part != 0;
  // How a tensor is cut depends on nothing but its own size: others may pair it with another one.
  if (pushes && pulls && item.push.bytes == item.pull.bytes) {  // part by part, so that each is answered early
    return each_part(item.push.bytes, [&](std::uint64_t part, std::uint64_t offset, std::uint64_t bytes) {
      push(part, offset, bytes);
      pull(part, offset, bytes);
    });
  }
  if (pushes) each_part(item.push.bytes, push);
  if (pulls) each_part(item.pull.bytes, pull);
}

/// Told to the server, so that it does not take half of a part for the whole: the halves may be in two messages.
std::uint8_t WorkerCore::in_both_directions(std::uint64_t key, std::uint64_t offset) {
  if (options_.route == Route::broadcast) return 0;
  const KeyInfo& info = home(key).keys[key];
  const bool both = info.pushed_in == call_ && info.pulled_in == call_;
  return both && offset < info.push_bytes && offset < info.pull_bytes ? 1 : 0;
}

void WorkerCore::plan_push(WorkerRound& round, Link& link, const Item& item, std::uint64_t offset,
                           std::uint64_t bytes) {
  const bool small = inlined(item.push.bytes);
  WorkerFragment& fragment =
      fragment_for(round, link, sizeof(PushEntry) + (small ? inline_size(bytes) : 0), 0, small ? 0 : bytes);
  PushPiece& piece = fragment.pushes.emplace_back();
  piece.data = item.push.data + offset;
  piece.part = item.push_part;
  piece.entry = {.key = item.push_key,
                 .offset = offset,
                 .bytes = bytes,
                 .total = item.push.bytes,
                 .slot = kInlined,
                 .dtype = static_cast<std::uint8_t>(item.push.dtype),
                 .both = in_both_directions(item.push_key, offset)};
  if (!small) {
    piece.place = item.push_place;
    piece.place.offset += offset;
    piece.place.hold();
    piece.binding = &link.bindings[{item.push_key, offset}];
    piece.binding->bytes = bytes;
    ++piece.binding->users;
    const bool apart = item.pull_part == 0 || item.push.data + item.push.bytes <= item.pull.data ||
                       item.pull.data + item.pull.bytes <= item.push.data;
    const bool own_answer = item.push.data == item.pull.data && item.push.bytes == item.pull.bytes &&
                            item.push_key == item.pull_key && options_.route == Route::partition;
    piece.may_stay = apart || own_answer;
  }
  ++round.part_open[item.push_part - 1];
  pushed_bytes_.add(bytes);
}

void WorkerCore::plan_pull(WorkerRound& round, Link& link, const Item& item, std::uint64_t offset,
                           std::uint64_t bytes) {
  const bool small = inlined(item.pull.bytes);
  WorkerFragment& fragment =
      fragment_for(round, link, sizeof(PullEntry), small ? inline_size(bytes) : sizeof(Offer), small ? 0 : bytes);
  PullPiece& piece = fragment.pulls.emplace_back();
  piece.data = item.pull.data + offset;
  piece.part = item.pull_part;
  piece.entry = {.key = item.pull_key,
                 .offset = offset,
                 .bytes = bytes,
                 .total = item.pull.bytes,
                 .dtype = static_cast<std::uint8_t>(item.pull.dtype),
                 .both = in_both_directions(item.pull_key, offset)};
  if (!small) {
    piece.place = item.pull_place;
    piece.place.offset += offset;
    piece.place.hold();
    piece.entry.region = region_number(*piece.place.region);
    piece.entry.region_offset = piece.place.offset;
  }
  ++round.part_open[item.pull_part - 1];
}

}  // namespace pushpull
}  // namespace dtr::inline v0
