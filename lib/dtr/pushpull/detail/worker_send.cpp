// From fragments to the fabric: each link sends its fragments in order, as soon as the server has told all that the
// first one needs: slots to push into, and that it knows the memory to answer into.
#include <algorithm>

#include "dtr/base/clock.hpp"
#include "dtr/pushpull/detail/no_throw.hpp"
#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

/// The server reads the tensor itself.
bool stays(const Link& link, const PushPiece& piece) noexcept { return link.in_place && piece.may_stay; }

}  // namespace

void WorkerCore::enqueue(WorkerFragment& fragment, Outgoing& out) {
  Link& link = *fragment.link;
  fragment.stage = WorkerFragment::Stage::queued;
  fragment.next = nullptr;
  (link.queue_back == nullptr ? link.queue_front : link.queue_back->next) = &fragment;
  link.queue_back = &fragment;
  if (link.state == Link::State::open) ask_for_needs(fragment, out);
}

void WorkerCore::ask_for_slot(Link& link, const PartId& part, Binding& binding, Outgoing& out) {
  if (binding.asked || binding.refused || binding.enough || binding.usable() >= link.slots) return;
  out.add(link.peer, Bind{.head = {.kind = Kind::bind, .epoch = epoch_},
                          .key = part.key,
                          .offset = part.offset,
                          .bytes = binding.bytes});
  binding.asked = true;
}

/// Early, so that a queue of new keys costs one round trip and not one each.
void WorkerCore::ask_for_needs(WorkerFragment& fragment, Outgoing& out) {
  Link& link = *fragment.link;
  for (PushPiece& piece : fragment.pushes) {
    if (piece.binding == nullptr || stays(link, piece) || piece.binding->usable() > 0) continue;
    ask_for_slot(link, {piece.entry.key, piece.entry.offset}, *piece.binding, out);
  }
  for (PullPiece& piece : fragment.pulls) {
    if (piece.entry.region == kInlined) continue;
    if (link.regions.size() <= piece.entry.region) link.regions.resize(regions_.size(), Link::Region::unknown);
    Link::Region& state = link.regions[piece.entry.region];
    if (state != Link::Region::unknown) continue;
    out.add(link.peer, Announce{.head = {.kind = Kind::announce, .epoch = epoch_},
                                .region = piece.entry.region,
                                .turn = regions_[piece.entry.region].turn,
                                .memory = regions_[piece.entry.region].key});
    state = Link::Region::asked;
  }
}

bool WorkerCore::ready(WorkerFragment& fragment, Outgoing& out) {
  if (fragment.given_up) return true;
  Link& link = *fragment.link;
  bool all = true;
  for (PushPiece& piece : fragment.pushes) {
    if (piece.binding == nullptr || stays(link, piece)) continue;
    if (piece.binding->refused) {
      give_up(fragment, *piece.binding->refused);
      return true;
    }
    if (piece.binding->free_slot() != nullptr) continue;
    all = false;
    ask_for_slot(link, {piece.entry.key, piece.entry.offset}, *piece.binding, out);
  }
  for (const PullPiece& piece : fragment.pulls) {
    if (piece.entry.region == kInlined) continue;
    if (link.regions.size() <= piece.entry.region || link.regions[piece.entry.region] == Link::Region::unknown) {
      ask_for_needs(fragment, out);
    }
    if (link.regions[piece.entry.region] == Link::Region::known) continue;
    for (const auto& [region, error] : link.refused_regions) {
      if (region != piece.entry.region) continue;
      give_up(fragment, error);
      return true;
    }
    all = false;
  }
  return all;
}

/// Takes slots and makes the message and the requests.
void WorkerCore::prepare(WorkerFragment& fragment) {
  fragment.posting = &fresh_posting();  // what needs memory comes first: from here on nothing fails
  auto& requests = fragment.posting->requests;
  requests.reserve(fragment.pushes.size() + 1);
  fragment.stage = WorkerFragment::Stage::sent;
  fragment.posted_open = true;
  fragment.answer_open = !fragment.given_up;
  fragment.slots_out = false;
  fragment.trace.request_posted = monotonic_ns();
  if (!fragment.given_up) {
    for (PushPiece& piece : fragment.pushes) {
      if (piece.binding == nullptr) continue;
      if (stays(*fragment.link, piece)) {
        --std::exchange(piece.binding, nullptr)->users;
        piece.entry.slot = kInPlace;
        piece.entry.address = reinterpret_cast<std::uint64_t>(piece.data);
        continue;
      }
      Binding::Slot& slot = *piece.binding->free_slot();
      slot.busy = true;
      piece.slot = static_cast<std::uint32_t>(&slot - piece.binding->slots.data());
      piece.entry.slot = slot.id;
      fragment.slots_out = true;
      requests.push_back(fabric::WorkRequest::put({piece.place.region, piece.place.offset}, {slot.memory, slot.offset},
                                                  piece.entry.bytes, &fragment));
    }
    if (fragment.slots_out) ++fragment.round->unreleased;
  }
  encode(fragment);
  const auto message = fabric::WorkRequest::send(server_port_, fragment.posting->message, &fragment);
  requests.push_back(requests.empty() ? message : message.fenced());
}

void WorkerCore::encode(WorkerFragment& fragment) {
  const bool empty = fragment.given_up;
  const Round head{.head = {.kind = Kind::round, .flags = empty ? Round::kCancelled : std::uint8_t{0}, .epoch = epoch_},
                   .seq = fragment.seq,
                   .ticket = fragment.ticket,
                   .fragment = fragment.index,
                   .fragments = fragment.count,
                   .pushes = static_cast<std::uint16_t>(empty ? 0 : fragment.pushes.size()),
                   .pulls = static_cast<std::uint16_t>(empty ? 0 : fragment.pulls.size()),
                   .started_ns = fragment.trace.request_start,
                   .posted_ns = fragment.trace.request_posted,
                   .patience_ns = std::chrono::nanoseconds(fragment.round->deadline.left()).count()};
  auto& message = fragment.posting->message;
  const auto append = [&](const auto& value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    message.insert(message.end(), bytes, bytes + sizeof value);
  };
  append(head);
  if (empty) return;
  for (const PushPiece& piece : fragment.pushes) append(piece.entry);
  for (const PullPiece& piece : fragment.pulls) append(piece.entry);
  for (const PushPiece& piece : fragment.pushes) {
    if (piece.entry.slot != kInlined) continue;
    message.resize(inline_size(message.size()));
    message.insert(message.end(), piece.data, piece.data + piece.entry.bytes);
  }
}

/// Any thread, without the lock.
void WorkerCore::pump(Link& link) noexcept {
  Outgoing out;
  try {
    const std::lock_guard lock(mutex_);
    if (link.state != Link::State::open) return;
    while (link.queue_front != nullptr && ready(*link.queue_front, out)) {
      WorkerFragment& fragment = *link.queue_front;
      prepare(fragment);
      link.queue_front = fragment.next;
      if (link.queue_front == nullptr) link.queue_back = nullptr;
      out.add(fragment);
    }
  } catch (const std::exception&) {
    bail_out(link, {.code = Errc::resource_exhausted, .peer = static_cast<int>(link.peer)});
  }
  post(out);
}

void WorkerCore::post(Outgoing& out) noexcept {
  for (const auto& small : out.messages) {
    auto request = fabric::WorkRequest::send(server_port_, {small.bytes.data(), small.size}, nullptr);
    if (front<Head>(small.bytes)->kind == Kind::bind) request = request.fenced();  // not before an unbind of the key
    fabric_.submit(small.peer, {&request, 1}, never());
  }
  out.messages.clear();
  for (WorkerFragment* fragment = out.first; fragment != nullptr;) {
    WorkerFragment* const next = fragment->next;  // once posted, it may be over and used again
    // The round ends at its deadline. A server that has not even taken the data some time later is given up.
    post(*fragment->link, *std::exchange(fragment->posting, nullptr), fragment->round->deadline);
    fragment = next;
  }
  out.first = out.last = nullptr;
  for (WorkerFragment* fragment = std::exchange(out.fetches, nullptr); fragment != nullptr;) {
    WorkerFragment* const next = fragment->fetch.next;
    post(*fragment->link, *std::exchange(fragment->fetch.posting, nullptr), fragment->round->deadline);
    fragment = next;
  }
}

void WorkerCore::post(Link& link, Posting& posting, const Deadline& deadline) noexcept {
  open_posts_.fetch_add(1, std::memory_order_relaxed);
  fabric_.submit(link.peer, posting.requests, later(deadline));
  const std::lock_guard lock(mutex_);
  idle_postings_.push_back(&posting);
}

/// With the lock.
Posting& WorkerCore::fresh_posting() {
  if (idle_postings_.empty()) {
    idle_postings_.reserve(postings_.size() + 1);  // so that to give one back needs no memory
    Posting& made = postings_.emplace_back();
    made.message.reserve(max_message_);
    made.requests.reserve(max_message_ / sizeof(PullEntry));
    return made;
  }
  Posting& posting = *idle_postings_.back();
  idle_postings_.pop_back();
  posting.message.clear();
  posting.requests.clear();
  return posting;
}

void WorkerCore::on_posted(fabric::Completion& completion) noexcept {
  auto& fragment = static_cast<WorkerFragment&>(completion);
  fragment.core->posted(fragment);
}

/// When the fabric ends what is posted for a round.
Deadline WorkerCore::later(const Deadline& deadline) const noexcept {
  constexpr auto kLongest = std::chrono::hours(24 * 365);
  const auto bound = std::min<Deadline::Clock::duration>(deadline.left(), kLongest);
  return Deadline(bound + runtime_.operation_timeout());
}

/// Everything posted for the fragment has ended: its tensors are not read any more, unless the status says so.
void WorkerCore::posted(WorkerFragment& fragment) noexcept {
  const fabric::Status status = fragment.status();
  Link& link = *fragment.link;
  if (!status.ok()) {
    // A fragment is lost, and with it the count of rounds: nothing after it can be right.
    bail_out(link, error_or_bare(status.code, static_cast<int>(link.peer), [&] {
               Error error = fabric_.explain(link.peer, status, "push_pull");
               if (error.code == Errc::ok) {  // its requests ended before the fabric knew that the peer is gone
                 error.code = status.code;
                 error.message = "the connection broke";
               }
               return error;
             }));
  }
  {
    const std::lock_guard lock(mutex_);
    link.unquiet = link.unquiet || !status.quiesced;
    fragment.posted_open = false;
    maybe_end(fragment);
  }
  // After this the object may be gone.
  open_posts_.fetch_sub(1, std::memory_order_release);
}

void WorkerCore::on_fetched(fabric::Completion& completion) noexcept {
  auto& fetch = static_cast<Fetch&>(completion);
  fetch.of->core->fetched(*fetch.of);
}

/// The answers are in the tensors, or will not come any more.
void WorkerCore::fetched(WorkerFragment& fragment) noexcept {
  const fabric::Status status = fragment.fetch.status();
  Link& link = *fragment.link;
  const Fetched message{.head = {.kind = Kind::fetched, .epoch = epoch_}, .ticket = fragment.ticket};
  std::optional<Error> failure;
  if (!status.ok()) {
    failure = error_or_bare(status.code, static_cast<int>(link.peer), [&] {
      Error error = fabric_.explain(link.peer, status, "push_pull");
      if (error.code == Errc::ok) error.code = status.code;
      error.message = "the answer could not be fetched: " + error.message;
      return error;
    });
  }
  const auto request = fabric::WorkRequest::send(server_port_, std::as_bytes(std::span(&message, 1)), nullptr);
  fabric_.submit(link.peer, {&request, 1}, never());
  {
    const std::lock_guard lock(mutex_);
    fragment.fetch.open = false;
    link.unquiet = link.unquiet || !status.quiesced;
    if (failure) fail_round(*fragment.round, std::move(*failure));
    maybe_end(fragment);
  }
  // After this the object may be gone.
  open_posts_.fetch_sub(1, std::memory_order_release);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
