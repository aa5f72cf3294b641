// What pieces go in which message, and the numbers by which servers know regions.
#include <algorithm>

#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

/// A fragment with more data than this takes no further piece: the server starts on what it has. Each one costs both
/// sides a wake-up, so only tensors that are cut anyway go in small portions.
constexpr std::uint64_t kFragmentData = 8 << 20;
constexpr std::uint64_t kFragmentDataOfParts = 1 << 20;

}  // namespace

WorkerFragment& WorkerCore::fragment_for(WorkerRound& round, Link& link, std::size_t message_bytes,
                                         std::size_t reply_bytes, std::uint64_t data_bytes) {
  // The youngest of this link; older ones are full.
  const auto last = std::find_if(round.fragments.rbegin(), round.fragments.rend(),
                                 [&](const WorkerFragment* fragment) { return fragment->link == &link; });
  if (last != round.fragments.rend()) {
    WorkerFragment& open = **last;
    if (open.message_bytes + message_bytes <= max_message_ && open.reply_bytes + reply_bytes <= max_message_ &&
        open.data_bytes + data_bytes / 2 <= (options_.split_bytes == 0 ? kFragmentData : kFragmentDataOfParts)) {
      open.message_bytes += message_bytes;
      open.reply_bytes += reply_bytes;
      open.data_bytes += data_bytes;
      return open;
    }
  }
  WorkerFragment* fragment = nullptr;
  if (idle_fragments_.empty()) {
    fragment = &fragments_.emplace_back(&WorkerCore::on_posted, &WorkerCore::on_fetched);
    fragment->core = this;
    fragment->ticket = fragments_.size() - 1;
  } else {
    fragment = idle_fragments_.back();
    idle_fragments_.pop_back();
    fragment->ticket += std::uint64_t{1} << 32;  // whoever names the old one means nobody
    fragment->reset();
    fragment->fetch.reset();
    fragment->fetch.posting = nullptr;
  }
  fragment->round = &round;
  fragment->link = &link;
  fragment->given_up = false;
  fragment->cancelled = false;
  fragment->stage = WorkerFragment::Stage::idle;
  fragment->pushes.clear();
  fragment->pulls.clear();
  fragment->trace = {.server = static_cast<int>(link.peer), .request_start = round.started_ns};
  fragment->message_bytes = sizeof(Round) + kInlineAlignment + message_bytes;
  fragment->reply_bytes = sizeof(Response) + reply_bytes;
  fragment->data_bytes = data_bytes;
  round.fragments.push_back(fragment);
  return *fragment;
}

void WorkerCore::number_fragments(WorkerRound& round) {
  for (Link& link : links_) {
    std::uint32_t count = 0;
    for (WorkerFragment* fragment : round.fragments) {
      if (fragment->link == &link) fragment->index = count++;
    }
    if (count == 0) continue;
    for (WorkerFragment* fragment : round.fragments) {
      if (fragment->link != &link) continue;
      fragment->count = count;
      fragment->seq = link.next_seq;
    }
    ++link.next_seq;
  }
}

std::uint32_t WorkerCore::region_number(const Region& region) {
  const RemoteKey& key = region.key();
  const std::uint64_t name = std::uint64_t{key.slot} << 32 | key.generation;
  if (const auto known = region_numbers_.find(name); known != region_numbers_.end()) return known->second;
  auto number = static_cast<std::uint32_t>(regions_.size());
  if (idle_regions_.empty()) {
    regions_.push_back({.key = key});
  } else {
    number = idle_regions_.back();
    idle_regions_.pop_back();
    regions_[number].key = key;
  }
  region_numbers_.emplace(name, number);
  return number;
}

/// No round uses it: its number may mean another region, once that has been announced.
void WorkerCore::forget_region(const RemoteKey& key) {
  const std::lock_guard lock(mutex_);
  const auto known = region_numbers_.find(std::uint64_t{key.slot} << 32 | key.generation);
  if (known == region_numbers_.end()) return;
  const std::uint32_t number = known->second;
  region_numbers_.erase(known);
  idle_regions_.push_back(number);
  ++regions_[number].turn;
  for (Link& link : links_) {
    if (number < link.regions.size()) link.regions[number] = Link::Region::unknown;
    std::erase_if(link.refused_regions, [&](const auto& refused) { return refused.first == number; });
  }
}

}  // namespace pushpull
}  // namespace dtr::inline v0
