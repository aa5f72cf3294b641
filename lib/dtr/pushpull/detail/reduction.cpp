#include "dtr/pushpull/detail/reduction.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/pushpull/detail/sum.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr const char* kOperation = "reduce";

std::uint64_t session_of(std::uint64_t seq) noexcept { return seq >> ServerCore::kSessionShift; }
std::uint64_t round_of(std::uint64_t seq) noexcept {
  return seq & ((std::uint64_t{1} << ServerCore::kSessionShift) - 1);
}

}  // namespace

Reduction::Reduction(ServerCore& core, MetricsRegistry& metrics)
    : core_(core),
      parts_(metrics.counter("dtr_pushpull_reduced_parts_total", "Tensors, or parts of them, summed by this server.")),
      bytes_(metrics.counter("dtr_pushpull_reduced_bytes_total", "Bytes of all operands of these sums.")) {}

Result<void> Reduction::work() {
  if (broken_) {
    core_.take(arrived_);
    for (ServerFragment* fragment : arrived_) core_.finish(*fragment, *broken_);
    arrived_.clear();
    return fail(*broken_);
  }
  do {
    arrived_.clear();
    core_.take(arrived_);
    for (ServerFragment* fragment : arrived_) accept(*fragment);
    if (auto alive = check_workers(); !alive) return alive;
    end_rounds();
  } while (core_.has_news());
  return {};
}

void Reduction::accept(ServerFragment& fragment) {
  auto found = rounds_.find(fragment.seq);
  if (found == rounds_.end()) {
    if (idle_rounds_.empty()) {
      found = rounds_.emplace(fragment.seq, Round{}).first;
      found->second.seen.resize(static_cast<std::size_t>(core_.workers()));
    } else {
      auto node = std::move(idle_rounds_.back());
      idle_rounds_.pop_back();
      node.key() = fragment.seq;
      found = rounds_.insert(std::move(node)).position;
    }
  }
  Round& round = found->second;
  const auto worker = static_cast<std::size_t>(fragment.worker);
  if (++round.seen[worker] == fragment.count) ++round.complete;
  if (fragment.cancelled) {
    if (!round.spoilt) round.spoilt = gave_up(fragment.worker);
    core_.finish(fragment);
  } else {
    round.expires_ns = std::min(round.expires_ns, fragment.expires_ns);
    fragment.open_entries = static_cast<std::uint32_t>(fragment.pushes.size() + fragment.pulls.size());
    for (std::uint32_t i = 0; i < fragment.pushes.size(); ++i) {
      const PushEntry& entry = fragment.pushes[i].entry;
      Cell& cell = cell_of(fragment.seq, {entry.key, entry.offset}, round);
      Share& share = cell.shares[worker];
      share.pushed = &fragment;
      share.push = i;
      enter_share(cell, fragment, entry.both == 0 || share.pulled != nullptr);
    }
    for (std::uint32_t i = 0; i < fragment.pulls.size(); ++i) {
      const PullEntry& entry = fragment.pulls[i].entry;
      Cell& cell = cell_of(fragment.seq, {entry.key, entry.offset}, round);
      Share& share = cell.shares[worker];
      share.pulled = &fragment;
      share.pull = i;
      enter_share(cell, fragment, entry.both == 0 || share.pushed != nullptr);
    }
    // Only now: a part that is reduced may end the fragment.
    for (Cell* cell : ready_) reduce(*cell, round);
    ready_.clear();
  }
}

Reduction::Cell& Reduction::cell_of(std::uint64_t seq, const PartId& part, Round& round) {
  auto& open = parts_open_[part];
  const auto known = std::find_if(open.begin(), open.end(), [&](const Cell* cell) { return cell->seq == seq; });
  if (known != open.end()) return **known;
  Cell* cell = nullptr;
  if (idle_cells_.empty()) {
    cell = &cells_.emplace_back();
  } else {
    cell = idle_cells_.back();
    idle_cells_.pop_back();
  }
  cell->seq = seq;
  cell->part = part;
  cell->whole = 0;
  cell->shares.assign(static_cast<std::size_t>(core_.workers()), Share{});
  open.push_back(cell);
  round.cells.push_back(cell);
  return *cell;
}

void Reduction::enter_share(Cell& cell, ServerFragment& fragment, bool whole) {
  Share& share = cell.shares[static_cast<std::size_t>(fragment.worker)];
  if (!whole || std::exchange(share.whole, true)) return;
  if (++cell.whole == static_cast<std::uint32_t>(core_.workers())) ready_.push_back(&cell);
}

/// What stands against summing these shares.
std::optional<Error> Reduction::why_not(const Cell& cell) const {
  const std::string key = "key " + std::to_string(cell.part.key);
  const auto complain = [&](Errc code, std::string words, int worker) {
    return Error{
        .code = code, .message = key + ": " + std::move(words), .operation = kOperation, .peer = core_.rank_of(worker)};
  };
  const PushEntry* first = nullptr;
  int first_worker = 0;
  for (int worker = 0; worker < core_.workers(); ++worker) {
    const Share& share = cell.shares[static_cast<std::size_t>(worker)];
    if (share.pushed == nullptr) continue;
    const PushEntry& entry = share.pushed->pushes[share.push].entry;
    const auto dtype = static_cast<DType>(entry.dtype);
    if (!can_sum(dtype)) {
      return complain(Errc::unsupported, "a Reducer cannot sum " + std::string(to_string(dtype)), worker);
    }
    if (entry.bytes % size_of(dtype) != 0) {
      return complain(Errc::invalid_argument,
                      std::to_string(entry.bytes) + " bytes are no whole number of " + std::string(to_string(dtype)),
                      worker);
    }
    if (first == nullptr) {
      first = &entry;
      first_worker = worker;
    } else if (entry.total != first->total || entry.bytes != first->bytes || entry.dtype != first->dtype) {
      return complain(Errc::invalid_argument,
                      "rank " + std::to_string(core_.rank_of(worker)) + " pushes " + std::to_string(entry.total) +
                          " bytes of " + std::string(to_string(dtype)) + ", rank " +
                          std::to_string(core_.rank_of(first_worker)) + " " + std::to_string(first->total) +
                          " bytes of " + std::string(to_string(static_cast<DType>(first->dtype))),
                      worker);
    }
  }
  for (int worker = 0; worker < core_.workers(); ++worker) {
    const Share& share = cell.shares[static_cast<std::size_t>(worker)];
    if (share.pulled == nullptr) continue;
    const PullEntry& entry = share.pulled->pulls[share.pull].entry;
    if (first == nullptr) return complain(Errc::not_found, "no worker pushes it in this round", worker);
    if (entry.total != first->total || entry.bytes != first->bytes) {
      return complain(Errc::invalid_argument,
                      "rank " + std::to_string(core_.rank_of(worker)) + " pulls " + std::to_string(entry.total) +
                          " bytes, rank " + std::to_string(core_.rank_of(first_worker)) + " pushes " +
                          std::to_string(first->total),
                      worker);
    }
  }
  return std::nullopt;
}

void Reduction::reduce(Cell& cell, Round& round) {
  if (const auto reason = why_not(cell)) return fail_cell(cell, round, *reason);
  // The sum goes where the first push lies that is not a worker's tensor, for others to read; and into the tensor of
  // the worker of this process.
  Share* holder = nullptr;
  Share* own = nullptr;
  bool wanted = false;
  for (Share& share : cell.shares) {
    if (share.pushed != nullptr) {
      Share*& found = share.pushed->pushes[share.push].in_place ? own : holder;
      if (found == nullptr) found = &share;
    }
    wanted = wanted || (share.pulled != nullptr && share.pulled->pulls[share.pull].direct == nullptr);
  }
  if (own != nullptr && !core_.readable(*own->pushed)) {
    return fail_cell(cell, round, gave_up(own->pushed->worker));
  }
  if (holder == nullptr && wanted) {
    if (auto kept = core_.keep(*own->pushed, own->pushed->pushes[own->push]); !kept) {
      return fail_cell(cell, round, kept.error());
    }
    holder = own;
  }
  operands_.clear();
  const PushEntry* entry = nullptr;
  for (const Share& share : cell.shares) {
    if (share.pushed == nullptr) continue;
    const ServerFragment::Push& push = share.pushed->pushes[share.push];
    entry = &push.entry;
    operands_.push_back(push.data);
  }
  places_.clear();
  if (wanted) places_.push_back(holder->pushed->pushes[holder->push].data);
  for (const Share& share : cell.shares) {
    if (share.pulled == nullptr || share.pulled->pulls[share.pull].direct == nullptr) continue;
    if (std::byte* place = core_.direct(*share.pulled, share.pull)) places_.push_back(place);
  }
  if (entry != nullptr) {
    sum(operands_, places_, entry->bytes, static_cast<DType>(entry->dtype));
    parts_.add();
    bytes_.add(entry->bytes * operands_.size());
  }
  // The holder's own answer last: its slots go back with it if the others have been read by then.
  const auto answer = [&](const Share& share) {
    if (share.pulled == nullptr || share.pulled->pulls[share.pull].direct != nullptr) return;
    core_.offer(*share.pulled, share.pull, holder->pushed->pushes[holder->push], *holder->pushed);
  };
  for (const Share& share : cell.shares) {
    if (&share != holder) answer(share);
  }
  if (holder != nullptr) answer(*holder);
  const auto settle_share = [&](const Share& share) {
    if (share.pushed != nullptr) settle(*share.pushed);
    if (share.pulled != nullptr) settle(*share.pulled);
  };
  for (const Share& share : cell.shares) {
    if (&share != holder) settle_share(share);
  }
  if (holder != nullptr) settle_share(*holder);
  retire(cell, round);
}

void Reduction::fail_cell(Cell& cell, Round& round, const Error& error) {
  for (const Share& share : cell.shares) {
    for (ServerFragment* fragment : {share.pushed, share.pulled}) {
      if (fragment == nullptr) continue;
      core_.set_failure(*fragment, error);
      settle(*fragment);
    }
  }
  retire(cell, round);
}

void Reduction::settle(ServerFragment& fragment) {
  if (--fragment.open_entries == 0) core_.finish(fragment);
}

void Reduction::retire(Cell& cell, Round& round) {
  auto& open = parts_open_[cell.part];
  open.erase(std::remove(open.begin(), open.end(), &cell), open.end());
  round.cells.erase(std::remove(round.cells.begin(), round.cells.end(), &cell), round.cells.end());
  idle_cells_.push_back(&cell);
}

Error Reduction::gave_up(int worker) const {
  const int rank = core_.rank_of(worker);
  return {.code = Errc::cancelled,
          .message = "rank " + std::to_string(rank) + " gave up its round",
          .operation = kOperation,
          .peer = rank};
}

Error Reduction::left_out(const Cell& cell) const {
  std::string who;
  int rank = -1;
  for (int worker = 0; worker < core_.workers(); ++worker) {
    if (cell.shares[static_cast<std::size_t>(worker)].whole) continue;
    if (rank < 0) rank = core_.rank_of(worker);
    who += (who.empty() ? "rank " : ", ") + std::to_string(core_.rank_of(worker));
  }
  return {.code = Errc::invalid_argument,
          .message = "key " + std::to_string(cell.part.key) + ": " + who + " did not list it in this round",
          .operation = kOperation,
          .peer = rank};
}

void Reduction::fail_open_cells(Round& round, const Error& error) {
  while (!round.cells.empty()) fail_cell(*round.cells.back(), round, error);
}

Error Reduction::not_come(const Round& round) const {
  std::string who;
  int rank = -1;
  for (int worker = 0; worker < core_.workers(); ++worker) {
    if (round.seen[static_cast<std::size_t>(worker)] > 0) continue;
    if (rank < 0) rank = core_.rank_of(worker);
    who += (who.empty() ? "no part of the round came from rank " : ", rank ") + std::to_string(core_.rank_of(worker));
  }
  if (rank < 0) who = "a part of the round did not come";
  return {.code = Errc::timed_out, .message = std::move(who), .operation = kOperation, .peer = rank};
}

/// Rounds that all workers have sent end here, with what could not be summed; and rounds that run out of time.
void Reduction::end_rounds() {
  const auto workers = static_cast<std::uint32_t>(core_.workers());
  const std::int64_t now = rounds_.empty() ? 0 : monotonic_ns();
  wake_ns_ = kNever;
  for (auto at = rounds_.begin(); at != rounds_.end();) {
    Round& round = at->second;
    if (!round.spoilt && round.complete < workers) {
      if (now >= round.expires_ns) {
        round.spoilt = not_come(round);
      } else {
        wake_ns_ = std::min(wake_ns_, round.expires_ns);
      }
    }
    if (round.spoilt) fail_open_cells(round, *round.spoilt);
    if (round.complete == workers) {
      while (!round.cells.empty()) {
        Cell& cell = *round.cells.back();
        fail_cell(cell, round, left_out(cell));
      }
      round.complete = 0;
      round.expires_ns = kNever;
      round.spoilt.reset();
      std::fill(round.seen.begin(), round.seen.end(), 0);
      const auto over = at++;
      idle_rounds_.push_back(rounds_.extract(over));
    } else {
      ++at;
    }
  }
}

/// The dead end everything; those that said goodbye end the rounds that they have not taken part in.
Result<void> Reduction::check_workers() {
  sessions_ = std::numeric_limits<std::uint64_t>::max();
  for (int worker = 0; worker < core_.workers(); ++worker) {
    const ServerCore::Standing standing = core_.standing(worker);
    sessions_ = std::min(sessions_, standing.sessions);
    if (standing.gone) {
      // Who has left after a failed round takes no part in the next: waiting for the others' would be in vain.
      const bool in_good_order =
          standing.gone->code == Errc::peer_left && standing.sessions > 0 && !standing.failed && rounds_.empty();
      if (in_good_order) continue;
      Error error = *standing.gone;
      error.operation = kOperation;
      error.message = "rank " + std::to_string(core_.rank_of(worker)) + ": " + error.message;
      broken_ = error;
      core_.break_all(error);
      for (auto& [seq, round] : rounds_) fail_open_cells(round, error);
      rounds_.clear();
      return fail(std::move(error));
    }
    for (auto& [seq, round] : rounds_) {
      if (standing.sessions <= session_of(seq) || round.spoilt) continue;
      const bool took_part = round.seen[static_cast<std::size_t>(worker)] > 0;
      if (took_part) continue;
      const int rank = core_.rank_of(worker);
      round.spoilt = Error{.code = Errc::peer_left,
                           .message = "rank " + std::to_string(rank) + " has ended its Worker before round " +
                                      std::to_string(round_of(seq)),
                           .operation = kOperation,
                           .peer = rank};
    }
  }
  return {};
}

}  // namespace pushpull
}  // namespace dtr::inline v0
