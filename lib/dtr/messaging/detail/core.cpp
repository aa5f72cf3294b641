// What callers do: begin, look, wait, cancel.
#include "dtr/messaging/detail/core.hpp"

#include <algorithm>
#include <thread>

#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

// --- begin ---

bool Messenger::Core::is_sound(int rank, std::span<const std::byte> memory, bool any_allowed) const noexcept {
  if (fork_guard_.in_forked_child() || (memory.data() == nullptr && !memory.empty())) return false;
  return static_cast<std::uint32_t>(rank) < peers_.size() || (any_allowed && rank == kAnyRank);
}

Error Messenger::Core::why_unsound(int rank, std::span<const std::byte> memory, const char* name) const {
  if (auto alive = fork_guard_.check(name); !alive) return std::move(alive.error());
  if (memory.data() == nullptr && !memory.empty()) {
    return {.code = Errc::invalid_argument, .message = "null memory", .operation = name, .peer = rank};
  }
  return {.code = Errc::not_found,
          .message = "there are " + std::to_string(peers_.size()) + " ranks",
          .operation = name,
          .peer = rank};
}

Messenger::Core::Peer& Messenger::Core::make_peer(fabric::PeerId id) {
  auto made = std::make_unique<Peer>(id);
  const std::string transport = fabric_.path(id).transport;
  made->rows = &thresholds_.rows(transport);
  const std::size_t largest = fabric_.max_message(id);
  if (packet_.size() < largest) packet_.resize(largest);
  const std::uint64_t wanted = largest_eager(*made->rows);
  made->eager_to_known = std::min<std::uint64_t>(wanted, largest - sizeof(Eager));
  made->eager_to_unknown = std::min<std::uint64_t>(wanted, fabric_.max_message() - sizeof(Eager));
  made->largest_eager = made->eager_to_unknown;
  made->shares_memory = transport == "shm";
  known_.push_back(made.get());
  peers_[id] = std::move(made);
  return *peers_[id];
}

Messenger::Core::Operation* Messenger::Core::make(bool is_send, int rank, std::uint64_t tag, Deadline deadline) {
  if (closing_) return nullptr;
  if (!zombies_.empty()) reuse_zombies();
  Operation* const operation = operations_->make();
  if (operation == nullptr) return nullptr;
  if (zombies_.capacity() < operations_->size()) zombies_.reserve(operations_->size());
  operation->is_send = is_send;
  operation->any_rank = rank == kAnyRank;
  operation->peer = operation->any_rank ? 0 : static_cast<fabric::PeerId>(rank);
  operation->tag = tag;
  operation->deadline.store(deadline.at(), std::memory_order_relaxed);
  operation->carried.store(false, std::memory_order_relaxed);
  operation->code = Errc::ok;
  operation->partner = 0;
  operation->unwanted = false;
  operation->lease = 0;
  operation->message = {.source = is_send ? static_cast<int>(fabric_.self()) : rank, .tag = tag, .bytes = 0};
  earliest_ = std::min(earliest_, deadline.at());
  return operation;
}

Error Messenger::Core::why_not_made(int rank, const char* name) const {
  if (closing_) return {.code = Errc::closed, .message = "the messenger has ended", .operation = name, .peer = rank};
  return {.code = Errc::resource_exhausted,
          .message = "too many operations are open; wait for some",
          .operation = name,
          .peer = rank};
}

Result<MessageHandle> Messenger::Core::recv(int rank, std::uint64_t tag, std::uint64_t mask,
                                            std::span<std::byte> buffer, Deadline deadline) {
  if (!is_sound(rank, buffer, true)) return fail(why_unsound(rank, buffer, "recv"));
  Lock lock(mutex_);
  Operation* const operation = make(false, rank, tag, deadline);
  if (operation == nullptr) return fail(why_not_made(rank, "recv"));
  const MessageHandle handle = handle_of(*operation);
  operation->mask = mask;
  operation->memory = buffer.data();
  operation->bytes = buffer.size();
  operation->order = orders_++;
  Peer* from = operation->any_rank ? nullptr : &peer(operation->peer);
  if (try_receive(lock, *operation)) {
    const bool copied_here = operation->peer == fabric_.self();
    lock.unlock();
    if (copied_here) fabric_.progress().announce();  // its send has ended, and somebody may sleep until then
    return handle;
  }
  if (from != nullptr && fabric_.peer_state(from->id) != Errc::ok) {
    OperationTable::outdate(*operation);
    operations_->free(*operation);
    return fail(fabric_.peer_error(from->id, "recv"));
  }
  operation->stage = Stage::posted;
  (from == nullptr ? posted_for_any_ : from->posted).push(*operation);
  return handle;
}

/// Has it come already?
bool Messenger::Core::try_receive(Lock& lock, Operation& recv) {
  const auto fits = [&](const Unexpected& one) { return (one.tag & recv.mask) == (recv.tag & recv.mask); };
  Peer* source = nullptr;
  std::list<Unexpected>::iterator found;
  const auto look_at = [&](Peer& from) {
    const auto at = std::find_if(from.unexpected.begin(), from.unexpected.end(), fits);
    if (at == from.unexpected.end() || (source != nullptr && found->arrival < at->arrival)) return;
    source = &from;
    found = at;
  };
  if (!recv.any_rank) {
    look_at(*peers_[recv.peer]);
  } else {
    for (Peer* each : known_) look_at(*each);
  }
  if (source == nullptr) return false;
  if (found->offer != 0) {
    --source->offers_held;
    const Offer offer{.tag = found->tag, .bytes = found->bytes, .id = found->offer};
    const auto lies_at = std::move(found->source);
    drop(*source, found);
    accept(lock, *source, recv, offer, lies_at.get());
    return true;
  }
  source->held -= found->cost;
  source->left -= found->left;
  deliver(recv, *source, found->tag, found->payload, found->cost);
  drop(*source, found);
  return true;
}

// --- look, wait, cancel ---

bool Messenger::Core::done(MessageHandle handle) const noexcept {
  const Operation* operation = operations_->find(handle);
  return operation == nullptr || noticed(*operation);
}

/// What the fabric says of the request that carries it.
void Messenger::Core::settle_carried(Operation& operation) noexcept {
  if (!operation.completion.done()) return;
  const fabric::Status status = operation.completion.status();
  if (status.ok()) {
    if (operation.stage == Stage::flying) finish(operation);
    return;
  }
  end(operation, status.code, {});
}

Error Messenger::Core::why_failed(const Operation& operation) const {
  const char* const name = operation.is_send ? "send" : "recv";
  const bool known = !operation.any_rank || operation.message.source != kAnyRank;
  if (known && operation.words.empty()) return fabric_.explain(operation.peer, {.code = operation.code}, name);
  return {.code = operation.code,
          .message = operation.words,
          .operation = name,
          .peer = known ? static_cast<int>(operation.peer) : -1,
          .path = known ? fabric_.path(operation.peer).transport : std::string()};
}

Result<Message> Messenger::Core::wait(MessageHandle handle) {
  if (fork_guard_.in_forked_child()) return fail(std::move(fork_guard_.check("wait").error()));
  const auto stale = [] { return fail(Errc::stale_handle, "its outcome has been told, or it never was", "wait"); };
  Operation* const operation = operations_->find(handle);
  if (operation == nullptr) return stale();
  const auto over = [&]() noexcept {
    return operation->generation.load(std::memory_order_acquire) != handle.generation || noticed(*operation);
  };
  while (true) {
    // Of the next one in its place, it may be, if others wait for this one too; then it is over.
    const Deadline deadline(operation->deadline.load(std::memory_order_relaxed));
    if (fabric_.progress().wait(over, deadline) == Errc::would_deadlock) {
      return fail(Errc::would_deadlock, "called from a callback", "wait");
    }
    {
      const Lock lock(mutex_);
      if (operation->generation.load(std::memory_order_relaxed) != handle.generation) return stale();
      settle(*operation);
      if (operation->stage != Stage::ended && operation->pins == 0 && deadline.passed()) {
        end(*operation, Errc::timed_out, late_words(*operation));
      }
      if (operation->stage == Stage::ended) {
        const bool good = operation->code == Errc::ok;
        Result<Message> outcome = good ? Result<Message>(operation->message) : fail(why_failed(*operation));
        put_away(*operation);
        return outcome;
      }
    }
    std::this_thread::yield();  // a piece may be on its way just now
  }
}

bool Messenger::Core::cancel(MessageHandle handle) noexcept {
  if (fork_guard_.in_forked_child()) return false;
  {
    Lock lock(mutex_);
    while (true) {
      Operation* const operation = operations_->find(handle);
      if (operation == nullptr) return false;
      settle(*operation);
      if (operation->stage == Stage::ended) return operation->unwanted && operation->code == Errc::cancelled;
      if (operation->pins == 0) {
        end(*operation, Errc::cancelled, "by this rank");
        break;
      }
      operation->unwanted = true;
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }
  fabric_.progress().announce();
  return true;
}

void Messenger::Core::put_away(Operation& operation) noexcept {
  OperationTable::outdate(operation);
  if (operation.completion.done()) {
    operations_->free(operation);
  } else {
    zombies_.push_back(&operation);  // there is room for all
  }
}

void Messenger::Core::reuse_zombies() noexcept {
  for (std::size_t i = 0; i < zombies_.size();) {
    if (!zombies_[i]->completion.done()) {
      ++i;
      continue;
    }
    operations_->free(*zombies_[i]);
    zombies_[i] = zombies_.back();
    zombies_.pop_back();
  }
}

}  // namespace dtr::inline v0
