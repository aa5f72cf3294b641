// Larger messages within a host, read by the receiver where they lie: once copied, by one core.
#include <algorithm>
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
  Region* region = nullptr;
  if (row.mapped == MessageWay::read) region = fabric_.regions().covering({send.memory, send.bytes});
  const bool mappable =
      region != nullptr && region->segment() != nullptr && allows(region->options().access, Access::read);
  if (!mappable && row.way != MessageWay::read) return false;
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
const fabric::RemoteRegion* Messenger::Core::mapped_here(Peer& from, const RemoteKey& key) {
  const auto region = fabric_.import(from.id, key);
  const bool mapped = region && (*region)->mapped.load(std::memory_order_acquire) != nullptr;
  return mapped ? *region : nullptr;
}

bool Messenger::Core::begin_reading(Peer& from, Operation& recv, const Offer& offer, const Source& source) {
  if (!from.shares_memory) return false;
  const ThresholdRow& row = row_for(*from.rows, offer.bytes);
  if (row.mapped != MessageWay::read && row.way != MessageWay::read) return false;
  if (from.channel == nullptr) {
    auto channel = fabric_.channel(from.id);
    if (!channel) return false;
    from.channel = *channel;
  }
  const fabric::RemoteRegion* const memory = source.mappable != 0 ? mapped_here(from, source.memory) : nullptr;
  const bool reads =
      memory != nullptr ? row.mapped == MessageWay::read : row.way == MessageWay::read && from.channel->reads_process();
  const fabric::RemoteRegion* const lease = reads ? mapped_here(from, source.lease) : nullptr;
  if (lease == nullptr) return false;  // the next one, once it is mapped
  readings_.push_back({.operation = id_of(recv),
                       .offer = offer.id,
                       .peer = &from,
                       .bytes = offer.bytes,
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

/// After everything has been read.
bool Messenger::Core::still_lent(const Reading& reading) noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::uint64_t word = 0;
  Region local(std::as_writable_bytes(std::span(&word, 1)));
  const auto get = fabric::WorkRequest::get({reading.lease, reading.lease_offset}, {&local, 0}, sizeof word, nullptr);
  const fabric::PostResult got = reading.peer->channel->post({&get, 1}, Deadline(std::chrono::hours(24)));
  return got.accepted == 1 && word == reading.offer;
}

int Messenger::Core::read_on(Lock& lock) noexcept {
  if (readings_.empty()) return 0;
  Reading reading = readings_.front();
  readings_.pop_front();
  Operation* const recv = operations_->find(handle_of(reading.operation));
  if (recv == nullptr || recv->stage == Stage::ended) return 1;  // its sender has been told
  const std::uint64_t bytes = std::min(kReadAtOnce, reading.bytes - reading.moved);
  const std::span to(recv->memory + reading.moved, bytes);
  ++recv->pins;
  lock.unlock();
  const fabric::Status got = read_piece(reading, to);
  reading.moved += bytes;
  const bool last = reading.moved == reading.bytes;
  const bool good = got.ok() && (!last || still_lent(reading));
  lock.lock();
  --recv->pins;
  if (recv->stage == Stage::ended) return 1;
  if (last || !good) {
    end_reading(reading, *recv, got, good);
  } else {
    readings_.push_back(reading);
  }
  return 1;
}

void Messenger::Core::end_reading(Reading& reading, Operation& recv, fabric::Status status, bool good) noexcept {
  if (good) {
    finish(recv);
    return tell_done(*reading.peer, reading.offer, Errc::ok);
  }
  if (!status.ok()) return end(recv, status.code, {});
  recv.partner = 0;  // the sender knows
  end(recv, Errc::cancelled, "the sender has given up");
}

}  // namespace dtr::inline v0
