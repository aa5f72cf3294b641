// What workers and servers say to each other besides the data. All messages start with a Kind. Internal to pushpull/.
#pragma once

#include <cstdint>

#include "dtr/base/bytes.hpp"
#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace pushpull {

enum class Kind : std::uint8_t {
  bind = 1,  ///< worker: I am going to push this key with so many bytes
  bound,     ///< server: here are the slots for it
  region,    ///< worker: a number for a region of mine that pulls go to
  round,     ///< worker: a piece of the description of a round; its data are in the slots
  response,  ///< server: your round is answered, the pulls are in place; its slots are yours again
  failed,    ///< server: this and all later rounds end with this Error
  bye,       ///< worker: there will be no more rounds
};

struct Bind {
  std::uint64_t key = 0;
  std::uint64_t bytes = 0;
};

struct Bound {
  std::uint64_t key = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;  ///< of slot 0 in the region
  std::uint64_t stride = 0;  ///< from slot to slot
  std::uint32_t slots = 0;   ///< 0: refused, a text follows
  std::int32_t code = 0;     ///< why, an Errc
  RemoteKey region{};
};

struct RegionNumber {
  std::uint32_t number = 0;
  std::uint32_t reserved = 0;
  RemoteKey region{};
};

/// In front of each piece of a round's description.
struct RoundPiece {
  std::uint64_t sequence = 0;  ///< counts the rounds of this worker with this server
  std::uint32_t total = 0;     ///< bytes of the description
  std::uint32_t offset = 0;
};

/// The description: counts, then that many entries.
struct RoundCounts {
  std::uint32_t pushes = 0;
  std::uint32_t pulls = 0;
};
struct PushEntry {
  std::uint64_t key = 0;
  std::uint64_t bytes = 0;
  std::uint32_t slot = 0;
  std::uint32_t reserved = 0;
};
struct PullEntry {
  std::uint64_t key = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
  std::uint32_t region = 0;  ///< as announced
  std::uint32_t reserved = 0;
};

/// Time stamps of the server in its own clock, in ns.
struct ServerStamps {
  std::int64_t received = 0;   ///< the round's description was complete
  std::int64_t processed = 0;  ///< get_batch or get_any handed it out
  std::int64_t responded = 0;  ///< respond was called
};

struct Response {
  std::uint64_t sequence = 0;
  std::int32_t code = 0;  ///< an Errc; not ok: a text follows
  std::int32_t peer = -1;
  ServerStamps stamps{};
};

}  // namespace pushpull
}  // namespace dtr::inline v0
