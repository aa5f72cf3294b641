// Larger messages within a host, read by the receiver where they lie: once copied, by one core.
#include <algorithm>
#include <cstring>
#include <utility>

#include "dtr/messaging/detail/core.hpp"
#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

constexpr std::uint64_t kReadAtOnce = 1 << 20;  ///< then deadlines and other peers have their turn

}  // namespace

// --- the sender's side ---

/// The peers read the words long before the memory could be given back, so they are made once.
bool Messenger::Core::open_leases() {
  if (leases_) return true;
  auto memory = runtime_.allocate(kLeases * sizeof(std::uint64_t));
  if (!memory) return false;
  free_leases_.resize(kLeases);
  for (std::uint32_t i = 0; i < kLeases; ++i) free_leases_[i] = kLeases - i;
  leases_ = std::move(*memory);
  return true;
}

std::atomic_ref<std::uint64_t> Messenger::Core::lease_word(std::uint32_t lease) const noexcept {
  return std::atomic_ref(leases_.as<std::uint64_t>()[lease - 1]);
}

bool Messenger::Core::lend(Peer& to, Operation& send, Source& source) noexcept try {
  if (!to.shares_memory || send.bytes == 0) return false;
  const ThresholdRow& row = row_for(*to.rows, send.bytes);
  if (row.mapped != MessageWay::read && row.way != MessageWay::read) return false;
  const Region* const region = fabric_.regions().covering({send.memory, send.bytes});
  const bool mappable =
      region != nullptr && region->segment() != nullptr && allows(region->options().access, Access::read);
  if ((mappable ? row.mapped : row.way) != MessageWay::read) return false;
  if (!open_leases() || free_leases_.empty()) return false;
  send.lease = free_leases_.back();
  free_leases_.pop_back();
  lease_word(send.lease).store(id_of(send), std::memory_order_release);
  source.address = reinterpret_cast<std::uintptr_t>(send.memory);
  if (mappable) {
    source.mappable = 1;
    source.memory = region->key();
    source.offset = static_cast<std::uint64_t>(send.memory - region->data());
  }
  source.lease = leases_.region()->key();
  source.lease_offset = leases_.offset() + (send.lease - 1) * sizeof(std::uint64_t);
  return true;
} catch (const std::exception&) {  // no memory
  return false;
}

/// Before the sender's caller hears that it has ended, and writes into the memory.
void Messenger::Core::end_lease(Operation& send) noexcept {
  if (send.lease == 0) return;
  lease_word(send.lease).store(0, std::memory_order_seq_cst);
  free_leases_.push_back(std::exchange(send.lease, 0));  // there is room for all
}

// --- the receiver's side ---

/// Null: it is not, or not yet.
const fabric::RemoteRegion* Messenger::Core::mapped_here(Peer& from, Known& known, const RemoteKey& key) {
  if (known.region == nullptr || std::memcmp(&known.key, &key, sizeof key) != 0) {
    const auto region = fabric_.import(from.id, key);
    if (!region) return nullptr;
    known = {.key = key, .region = *region};
  }
  return known.region->mapped.load(std::memory_order_acquire) != nullptr ? known.region : nullptr;
}

bool Messenger::Core::begin_reading(Peer& from, Operation& recv, const Offer& offer, const Source& source) {
  if (!from.shares_memory) return false;
  const ThresholdRow& row = row_for(*from.rows, offer.bytes);
  const bool mappable = source.mappable != 0;
  if ((mappable ? row.mapped : row.way) != MessageWay::read) return false;
  if (from.channel == nullptr) {
    auto channel = fabric_.channel(from.id);
    if (!channel) return false;
    from.channel = *channel;
  }
  // What is not mapped yet will be when the next message comes.
  const fabric::RemoteRegion* const memory = mappable ? mapped_here(from, from.read, source.memory) : nullptr;
  if (mappable ? memory == nullptr : !from.channel->reads_process()) return false;
  const fabric::RemoteRegion* const lease = mapped_here(from, from.leases, source.lease);
  if (lease == nullptr) return false;
  readings_.push_back({.operation = id_of(recv),
                       .offer = offer,
                       .peer = &from,
                       .memory = memory,
                       .offset = source.offset,
                       .address = source.address,
                       .lease = lease,
                       .lease_offset = source.lease_offset});
  recv.partner = offer.id;
  recv.carrier = Carrier::read;
  busy_.store(true, std::memory_order_release);
  if (!fabric_.progress().in_progress()) fabric_.progress().wake();
  return true;
}

fabric::Status Messenger::Core::read_piece(const Reading& reading, std::span<std::byte> to) noexcept {
  fabric::Channel& channel = *reading.peer->channel;
  if (reading.memory == nullptr) return channel.read_process(reading.address + reading.moved, to);
  Region local(to);  // what is mapped is copied inside of post
  const auto get =
      fabric::WorkRequest::get({reading.memory, reading.offset + reading.moved}, {&local, 0}, to.size(), nullptr);
  return channel.post({&get, 1}, Deadline(std::chrono::hours(24))).status;
}

/// After the piece has been read.
bool Messenger::Core::still_lent(const Reading& reading) noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::uint64_t word = 0;
  Region local(std::as_writable_bytes(std::span(&word, 1)));
  const auto get = fabric::WorkRequest::get({reading.lease, reading.lease_offset}, {&local, 0}, sizeof word, nullptr);
  const fabric::PostResult got = reading.peer->channel->post({&get, 1}, Deadline(std::chrono::hours(24)));
  return got.accepted == 1 && word == reading.offer.id;
}

int Messenger::Core::read_on(Lock& lock) {
  if (closing_) readings_.clear();
  if (readings_.empty()) return 0;
  Reading reading = readings_.front();
  readings_.pop_front();
  Operation* const recv = operations_->find(handle_of(reading.operation));
  if (recv == nullptr || recv->stage == Stage::ended) return 1;  // its sender has been told
  const std::uint64_t bytes = std::min(kReadAtOnce, reading.offer.bytes - reading.moved);
  const std::span to(recv->memory + reading.moved, bytes);
  ++recv->pins;
  lock.unlock();
  const fabric::Status got = read_piece(reading, to);
  const bool lent = still_lent(reading);
  lock.lock();
  --recv->pins;
  if (closing_ || recv->stage == Stage::ended) return 1;
  reading.moved += bytes;
  if (recv->unwanted) {
    end(*recv, Errc::cancelled, "by this rank");
  } else if (!lent) {
    recv->partner = 0;  // the sender knows
    end(*recv, Errc::cancelled, "the sender has given up");
  } else if (!got.ok()) {
    end_failed_reading(reading, *recv, got);
  } else if (reading.moved == reading.offer.bytes) {
    finish(*recv);
    tell_done(*reading.peer, reading.offer.id, Errc::ok);
  } else if (Deadline::Clock::now() >= recv->deadline.load(std::memory_order_relaxed)) {
    end(*recv, Errc::timed_out, late_words(*recv));
  } else {
    readings_.push_back(reading);
  }
  return 1;
}

/// What the kernel does not let this process read, its owner can: that goes through slots.
void Messenger::Core::end_failed_reading(const Reading& reading, Operation& recv, fabric::Status status) {
  const bool forbidden = status.code == Errc::permission_denied || status.code == Errc::out_of_range;
  if (reading.memory == nullptr && forbidden) return ask_through_slots(*reading.peer, recv, reading.offer);
  try {
    end(recv, status.code, fabric_.explain(reading.peer->id, status, "recv").message);
  } catch (const std::exception&) {  // no memory for the words
    end(recv, status.code, {});
  }
}

}  // namespace dtr::inline v0
