// Receive buffers: memory of the caller in which pushes land, a chunk for each worker and key.
#include <algorithm>

#include "dtr/pushpull/detail/server_state.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kRegister = "register_recv_buffer";
constexpr const char* kUnregister = "unregister_recv_buffer";

}  // namespace

using pushpull::ReceiveBuffer;
using pushpull::UserMemory;

Result<void> Server::State::register_buffer(std::span<std::byte> buffer, std::span<const int> ranks,
                                            std::span<const std::uint64_t> keys) {
  const auto refuse = [](Errc code, std::string words) { return fail(code, std::move(words), kRegister); };
  if (ranks.empty() || ranks.size() != keys.size()) {
    return refuse(Errc::invalid_argument,
                  std::to_string(ranks.size()) + " worker ranks with " + std::to_string(keys.size()) + " keys");
  }
  if (buffer.empty() || buffer.size() % ranks.size() != 0) {
    return refuse(Errc::invalid_argument, std::to_string(buffer.size()) + " bytes cannot be cut into " +
                                              std::to_string(ranks.size()) + " equal chunks");
  }
  ReceiveBuffer made{.memory = buffer};
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    int worker = 0;
    while (worker < core.workers() && core.rank_of(worker) != ranks[i]) ++worker;
    if (worker == core.workers()) {
      return refuse(Errc::not_found, "rank " + std::to_string(ranks[i]) + " is no worker");
    }
    const std::pair chunk(worker, keys[i]);
    const auto has = [&](const ReceiveBuffer& other) {
      return std::find(other.chunks.begin(), other.chunks.end(), chunk) != other.chunks.end();
    };
    if (has(made) || std::any_of(buffers.begin(), buffers.end(), has)) {
      return refuse(Errc::already_exists, "key " + std::to_string(keys[i]) + " of rank " + std::to_string(ranks[i]) +
                                              " has a receive buffer");
    }
    made.chunks.push_back(chunk);
  }
  for (const ReceiveBuffer& other : buffers) {
    const bool apart = other.memory.data() + other.memory.size() <= buffer.data() ||
                       buffer.data() + buffer.size() <= other.memory.data();
    if (!apart) return refuse(Errc::overlap, "a part of the memory is a receive buffer already");
  }
  auto place = memory.locate(buffer, Access::write);
  if (!place) {
    place.error().operation = kRegister;
    return fail(std::move(place.error()));
  }
  made.place = *place;
  made.place.hold();
  const std::size_t each = buffer.size() / ranks.size();
  for (std::size_t i = 0; i < made.chunks.size(); ++i) {
    core.set_landing(made.chunks[i].first, made.chunks[i].second,
                     {.region = place->region, .offset = place->offset + i * each, .bytes = each});
  }
  buffers.push_back(std::move(made));
  return {};
}

Result<void> Server::State::unregister_buffer(std::span<const std::byte> buffer, Deadline deadline) {
  const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const ReceiveBuffer& one) {
    return one.memory.data() == buffer.data() && one.memory.size() == buffer.size();
  });
  if (found == buffers.end()) return fail(Errc::not_found, "the memory is no receive buffer", kUnregister);
  const UserMemory::Place place = found->place;
  for (const auto& [worker, key] : found->chunks) core.clear_landing(worker, key);
  const auto empty = [&]() noexcept { return !core.landed(place.region, place.offset, buffer.size()); };
  const Errc waited = core.fabric().progress().wait(empty, deadline);
  if (waited == Errc::would_deadlock) return fail(waited, "called from a callback", kUnregister);
  if (waited != Errc::ok) {
    return fail(Errc::busy, "a worker still has a place in the buffer, or a request of it is not answered",
                kUnregister);
  }
  place.release();
  buffers.erase(found);
  return place.owner == nullptr ? Result<void>() : memory.forget(buffer, deadline);
}

}  // namespace dtr::inline v0
