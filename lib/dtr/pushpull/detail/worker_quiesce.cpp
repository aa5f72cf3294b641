// After a failure: when nothing of a round touches the worker's memory any more, and how that is brought about.
#include <algorithm>
#include <string>

#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr const char* kQuiesce = "quiesce";

}  // namespace

Result<void> WorkerCore::quiesce(RoundHandle handle, Deadline deadline, bool force) {
  const OneThread::Visit visit(door_);
  if (auto good = visit.check(kQuiesce); !good) return good;
  if (auto good = enter(kQuiesce); !good) return good;
  auto round = find(handle, kQuiesce);
  if (!round) return dtr::fail(std::move(round.error()));
  WorkerRound& waited = **round;
  const auto quiet = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    return waited.open == 0;
  };
  // By force only after the servers have had half of the time.
  const Deadline polite = force ? Deadline(deadline.left() / 2) : deadline;
  const Errc outcome = fabric_.progress().wait(quiet, polite);
  if (outcome != Errc::ok && outcome != Errc::timed_out) return fail(outcome, "called from a callback", kQuiesce);
  if (outcome == Errc::timed_out && force) {
    if (auto forced = force_quiet(waited, deadline); !forced) return forced;
  } else if (outcome == Errc::timed_out) {
    const std::lock_guard lock(mutex_);
    Error error = late(waited);
    error.code = Errc::busy;
    error.operation = kQuiesce;
    return dtr::fail(std::move(error));
  }
  return end_reading(waited, deadline);
}

/// Connections over which a round's tensors may still be read, after requests that have ended, are made anew.
Result<void> WorkerCore::end_reading(WorkerRound& round, const Deadline& deadline) {
  for (const WorkerFragment* fragment : round.fragments) {
    Link& link = *fragment->link;
    {
      const std::lock_guard lock(mutex_);
      if (!link.unquiet) continue;
    }
    if (auto quiet = fabric_.quiesce(link.peer, deadline, true); !quiet) return quiet;
    const std::lock_guard lock(mutex_);
    link.unquiet = false;
  }
  return {};
}

/// Takes the tensors of a round away from the servers. What else needs them fails.
Result<void> WorkerCore::force_quiet(WorkerRound& round, const Deadline& deadline) {
  std::vector<UserMemory::Registration*> pulled;
  std::vector<WorkerFragment*> open;
  Outgoing out;
  {
    const std::lock_guard lock(mutex_);
    const auto touches = [&](const auto& pieces) {
      return std::any_of(pieces.begin(), pieces.end(), [&](const auto& piece) {
        return std::find(pulled.begin(), pulled.end(), piece.place.owner) != pulled.end();
      });
    };
    for (const WorkerFragment* fragment : round.fragments) {
      if (fragment->stage != WorkerFragment::Stage::sent || !fragment->answer_open) continue;
      for (const PullPiece& piece : fragment->pulls) {
        if (piece.entry.region == kInlined) continue;
        if (piece.place.owner == nullptr) {
          return fail(Errc::busy,
                      "key " + std::to_string(piece.entry.key) +
                          " is pulled into memory of the pool, which cannot be "
                          "taken from a server that is silent",
                      kQuiesce, static_cast<int>(fragment->link->peer));
        }
        pulled.push_back(piece.place.owner);
      }
    }
    const Error taken{.code = Errc::cancelled, .message = "its tensors were taken back", .operation = "push_pull"};
    for (WorkerFragment& fragment : fragments_) {
      if (fragment.stage != WorkerFragment::Stage::queued && fragment.stage != WorkerFragment::Stage::sent) continue;
      if (fragment.round != &round && !touches(fragment.pushes) && !touches(fragment.pulls)) continue;
      give_up_round(*fragment.round, taken, out);
      if (fragment.stage == WorkerFragment::Stage::sent) open.push_back(&fragment);
    }
  }
  post(out);
  for (Link& link : links_) pump(link);
  for (WorkerFragment* fragment : open) {
    if (fragment->round == &round) fabric_.cancel(fragment->link->peer, *fragment);
    fabric_.cancel(fragment->link->peer, fragment->fetch);
  }
  const auto all_posted = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    return std::none_of(open.begin(), open.end(), [](const WorkerFragment* one) {
      return one->posted_open || one->fetch.open || (one->link->in_place && one->answer_open);
    });
  };
  if (fabric_.progress().wait(all_posted, deadline) != Errc::ok) {
    return fail(Errc::busy, "data of the round, or of another one with its tensors, is still on its way", kQuiesce);
  }
  if (auto quiet = end_reading(round, deadline); !quiet) return quiet;
  for (UserMemory::Registration* registration : pulled) {
    if (auto back = memory_.take_back(*registration, deadline); !back) return back;
  }
  const std::lock_guard lock(mutex_);
  for (WorkerFragment* fragment : round.fragments) {
    fragment->answer_open = false;
    maybe_end(*fragment);
  }
  return {};
}

}  // namespace pushpull
}  // namespace dtr::inline v0
