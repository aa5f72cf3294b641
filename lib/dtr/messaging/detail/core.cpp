// What callers do: begin, look, wait, cancel.
#include "dtr/messaging/detail/core.hpp"

#include <algorithm>
#include <thread>

#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

const char* name_of(bool is_send) noexcept { return is_send ? "send" : "recv"; }

}  // namespace

// --- begin ---

Result<void> Messenger::Core::check(int rank, const void* memory, std::size_t bytes, bool any_allowed,
                                    const char* name) const {
  if (fork_guard_.in_forked_child()) return fork_guard_.check(name);
  if (memory == nullptr && bytes > 0) return fail(Errc::invalid_argument, "null memory", name, rank);
  if (rank == kAnyRank && any_allowed) return {};
  if (rank < 0 || static_cast<std::uint32_t>(rank) >= fabric_.size()) {
    return fail(Errc::not_found, "there are " + std::to_string(fabric_.size()) + " ranks", name, rank);
  }
  return {};
}

Messenger::Core::Peer& Messenger::Core::peer(fabric::PeerId id) {
  auto& place = peers_[id];
  if (place == nullptr) {
    place = std::make_unique<Peer>(id);
    const std::string transport = fabric_.path(id).transport;
    place->rows = &thresholds_.rows(transport);
    place->shares_memory = transport == "shm";
  }
  return *place;
}

Result<Messenger::Core::Operation*> Messenger::Core::make(bool is_send, int rank, std::uint64_t tag,
                                                          Deadline deadline) {
  if (closing_) return fail(Errc::closed, "the messenger has ended", name_of(is_send), rank);
  reuse_zombies();
  Operation* operation = operations_->make();
  zombies_.reserve(operations_->size());
  if (operation == nullptr) {
    return fail(Errc::resource_exhausted, "too many operations are open; wait for some", name_of(is_send), rank);
  }
  operation->is_send = is_send;
  operation->any_rank = rank == kAnyRank;
  operation->peer = operation->any_rank ? 0 : static_cast<fabric::PeerId>(rank);
  operation->tag = tag;
  operation->deadline = deadline.at();
  operation->carried.store(false, std::memory_order_relaxed);
  operation->code = Errc::ok;
  operation->partner = 0;
  operation->unwanted = false;
  operation->lease = 0;
  operation->message = {.source = is_send ? static_cast<int>(fabric_.self()) : rank, .tag = tag, .bytes = 0};
  earliest_ = std::min(earliest_, operation->deadline);
  return operation;
}

Result<MessageHandle> Messenger::Core::send(int rank, std::uint64_t tag, std::span<const std::byte> data,
                                            Deadline deadline) {
  if (auto good = check(rank, data.data(), data.size(), false, "send"); !good) return fail(std::move(good.error()));
  const Lock lock(mutex_);
  const auto id = static_cast<fabric::PeerId>(rank);
  Peer& to = peer(id);
  if (fabric_.peer_state(id) != Errc::ok) return fail(fabric_.peer_error(id, "send"));
  auto made = make(true, rank, tag, deadline);
  if (!made) return fail(std::move(made.error()));
  Operation& operation = **made;
  operation.memory = const_cast<std::byte*>(data.data());
  operation.bytes = data.size();
  operation.message.bytes = data.size();
  if (!to.waiting.empty() || !transmit(to, operation)) {
    operation.stage = Stage::queued;
    to.waiting.push(operation);
  }
  return handle_of(operation);
}

Result<MessageHandle> Messenger::Core::recv(int rank, std::uint64_t tag, std::uint64_t mask,
                                            std::span<std::byte> buffer, Deadline deadline) {
  if (auto good = check(rank, buffer.data(), buffer.size(), true, "recv"); !good) return fail(std::move(good.error()));
  Lock lock(mutex_);
  auto made = make(false, rank, tag, deadline);
  if (!made) return fail(std::move(made.error()));
  Operation& operation = **made;
  const MessageHandle handle = handle_of(operation);
  operation.mask = mask;
  operation.memory = buffer.data();
  operation.bytes = buffer.size();
  operation.order = orders_++;
  operation.stage = Stage::posted;
  Peer* from = operation.any_rank ? nullptr : &peer(operation.peer);
  (from == nullptr ? posted_for_any_ : from->posted).push(operation);
  if (try_receive(lock, operation)) {
    const bool copied_here = operation.peer == fabric_.self();
    lock.unlock();
    if (copied_here) fabric_.progress().announce();  // its send has ended, and somebody may sleep until then
    return handle;
  }
  if (from != nullptr && fabric_.peer_state(from->id) != Errc::ok) {
    from->posted.remove(operation);
    OperationTable::outdate(operation);
    operations_->free(operation);
    return fail(fabric_.peer_error(from->id, "recv"));
  }
  return handle;
}

/// Has it come already?
bool Messenger::Core::try_receive(Lock& lock, Operation& recv) {
  const auto fits = [&](const Unexpected& one) { return (one.tag & recv.mask) == (recv.tag & recv.mask); };
  Peer* source = nullptr;
  std::deque<Unexpected>::iterator found;
  const auto look_at = [&](Peer& from) {
    const auto at = std::find_if(from.unexpected.begin(), from.unexpected.end(), fits);
    if (at == from.unexpected.end() || (source != nullptr && found->arrival < at->arrival)) return;
    source = &from;
    found = at;
  };
  if (!recv.any_rank) {
    look_at(*peers_[recv.peer]);
  } else {
    for (const auto& each : peers_) {
      if (each != nullptr && !each->unexpected.empty()) look_at(*each);
    }
  }
  if (source == nullptr) return false;
  (recv.any_rank ? posted_for_any_ : source->posted).remove(recv);
  const Unexpected message = std::move(*found);
  source->unexpected.erase(found);
  if (message.offer != 0) {
    --source->offers_held;
    const Offer offer{.tag = message.tag, .bytes = message.bytes, .id = message.offer};
    accept(lock, *source, recv, offer, message.source.get());
    return true;
  }
  source->held -= message.cost;
  source->left -= message.left;
  deliver(recv, *source, message.tag, message.payload, message.cost);
  return true;
}

// --- look, wait, cancel ---

bool Messenger::Core::noticed(const Operation& operation) const noexcept {
  if (operation.ended.load(std::memory_order_acquire)) return true;
  if (!operation.completion.done()) return false;
  return operation.carried.load(std::memory_order_acquire) || !operation.completion.status().ok();
}

bool Messenger::Core::done(MessageHandle handle) const noexcept {
  const Operation* operation = operations_->find(handle);
  return operation == nullptr || noticed(*operation);
}

/// What the fabric says of the request that carries it.
void Messenger::Core::settle(Operation& operation) noexcept {
  if (operation.stage != Stage::flying && operation.stage != Stage::offered) return;
  if (!operation.completion.done()) return;
  const fabric::Status status = operation.completion.status();
  if (status.ok()) {
    if (operation.stage == Stage::flying) finish(operation);
    return;
  }
  end(operation, status.code, {});
}

Result<Message> Messenger::Core::outcome_of(Operation& operation) {
  if (operation.code == Errc::ok) return operation.message;
  const char* const name = name_of(operation.is_send);
  const bool known = !operation.any_rank || operation.message.source != kAnyRank;
  if (known && operation.words.empty()) return fail(fabric_.explain(operation.peer, {.code = operation.code}, name));
  return fail(operation.code, operation.words, name, known ? static_cast<int>(operation.peer) : -1,
              known ? fabric_.path(operation.peer).transport : std::string());
}

Result<Message> Messenger::Core::wait(MessageHandle handle) {
  if (fork_guard_.in_forked_child()) return fail(std::move(fork_guard_.check("wait").error()));
  const auto stale = [] { return fail(Errc::stale_handle, "its outcome has been told, or it never was", "wait"); };
  const Operation* const seen = operations_->find(handle);
  if (seen == nullptr) return stale();
  const auto over = [&]() noexcept {
    return seen->generation.load(std::memory_order_acquire) != handle.generation || noticed(*seen);
  };
  while (true) {
    Deadline deadline(Deadline::Clock::time_point{});
    {
      const Lock lock(mutex_);
      Operation* const operation = operations_->find(handle);
      if (operation == nullptr) return stale();
      settle(*operation);
      deadline = Deadline(operation->deadline);
      if (operation->stage != Stage::ended && operation->pins == 0 && deadline.passed()) {
        end(*operation, Errc::timed_out, late_words(*operation));
      }
      if (operation->stage == Stage::ended) {
        auto outcome = outcome_of(*operation);
        OperationTable::outdate(*operation);
        zombies_.push_back(operation);  // there is room for all
        reuse_zombies();
        return outcome;
      }
    }
    switch (fabric_.progress().wait(over, deadline)) {
      case Errc::would_deadlock:
        return fail(Errc::would_deadlock, "called from a callback", "wait");
      case Errc::timed_out:
        std::this_thread::yield();  // a piece may be on its way just now
        break;
      default:
        break;
    }
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
