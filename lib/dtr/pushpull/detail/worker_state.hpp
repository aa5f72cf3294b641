// What a Worker knows of its rounds and of its servers. Plain data; WorkerCore's mutex guards it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dtr/fabric/fabric.hpp"
#include "dtr/pushpull/detail/clock_offset.hpp"
#include "dtr/pushpull/detail/part_id.hpp"
#include "dtr/pushpull/detail/user_memory.hpp"
#include "dtr/pushpull/detail/wire.hpp"
#include "dtr/pushpull/round_trace.hpp"
#include "dtr/pushpull/views.hpp"

namespace dtr::inline v0 {
namespace pushpull {

class WorkerCore;
struct WorkerRound;

/// The receive slots that a server gave this worker for a part.
struct Binding {
  struct Slot {
    std::uint32_t id = 0;
    const fabric::RemoteRegion* memory = nullptr;
    std::uint64_t offset = 0;
    bool busy = false;
    bool unwanted = false;  ///< the server wants it back
    bool gone = false;      ///< it has it back; the place in the vector stays, for pieces know their slot by it
  };
  std::uint64_t bytes = 0;
  std::uint32_t users = 0;  ///< pieces of open fragments
  bool asked = false;       ///< for one more slot
  bool enough = false;      ///< the server gives no more
  std::optional<Error> refused{};
  std::vector<Slot> slots{};

  [[nodiscard]] Slot* free_slot() noexcept {
    for (Slot& slot : slots) {
      if (!slot.busy && !slot.unwanted) return &slot;
    }
    return nullptr;
  }
  [[nodiscard]] std::size_t usable() const noexcept {
    return static_cast<std::size_t>(
        std::count_if(slots.begin(), slots.end(), [](const Slot& slot) { return !slot.unwanted; }));
  }
};

/// What a key is to a server. 0 = not used in this direction yet.
struct KeyInfo {
  std::uint64_t push_bytes = 0;
  std::uint64_t pull_bytes = 0;
  std::uint64_t pushed_in = 0;  ///< the call that listed it last, to find it twice in one
  std::uint64_t pulled_in = 0;
  std::uint32_t open = 0;  ///< listed in so many open rounds
};

struct PushPiece {
  const std::byte* data = nullptr;
  PushEntry entry{};
  UserMemory::Place place{};
  Binding* binding = nullptr;  ///< null: inlined, or in place
  std::uint32_t slot = 0;      ///< index in the binding, once sent
  std::uint32_t part = 0;      ///< as in RoundHandle
  bool may_stay = true;        ///< it does not lie across its pull
};

struct PullPiece {
  std::byte* data = nullptr;
  PullEntry entry{};
  UserMemory::Place place{};
  std::uint32_t part = 0;
};

struct Link;

struct WorkerFragment;

/// What is posted for a fragment, until the fabric has taken it.
struct Posting {
  std::vector<std::byte> message{};
  std::vector<fabric::WorkRequest> requests{};
};

/// The answers of a fragment that this worker copies out of the server's memory.
struct Fetch : fabric::Completion {
  explicit Fetch(Continuation then) noexcept : Completion(then) {}
  WorkerFragment* of = nullptr;
  WorkerFragment* next = nullptr;  ///< among those to be posted
  bool open = false;
  Posting* posting = nullptr;  ///< until then
};

/// The pieces of a round that go to one server in one message. Its Completion covers everything posted for it.
struct WorkerFragment : fabric::Completion {
  WorkerFragment(Continuation posted, Continuation fetched) noexcept : Completion(posted), fetch(fetched) {
    fetch.of = this;
  }

  enum class Stage : std::uint8_t {
    idle,
    queued,  ///< in its link's queue
    sent,
    ended,  ///< nothing of it is open any more, except that its slots may come back later
  };

  WorkerCore* core = nullptr;
  std::uint64_t ticket = 0;  ///< index and generation
  WorkerRound* round = nullptr;
  Link* link = nullptr;
  WorkerFragment* next = nullptr;  ///< in the link's queue
  std::uint64_t seq = 0;
  std::uint32_t index = 0;
  std::uint32_t count = 0;
  Stage stage = Stage::idle;
  bool given_up = false;     ///< goes as an empty fragment
  bool cancelled = false;    ///< its tensors are the caller's again, the answer is dropped
  bool posted_open = false;  ///< the Completion is not done
  bool answer_open = false;  ///< the response has not come
  bool slots_out = false;    ///< the server holds slots of it
  std::vector<PushPiece> pushes{};
  std::vector<PullPiece> pulls{};
  std::size_t message_bytes = 0;  ///< of its message when sent
  std::size_t reply_bytes = 0;    ///< of the answer, with inlined pulls
  std::uint64_t data_bytes = 0;
  Posting* posting = nullptr;  ///< between prepare and post
  Fetch fetch;
  RoundTrace trace{};
};

/// One call of push_pull.
struct WorkerRound {
  std::uint64_t number = 0;
  std::atomic<bool> done{true};  ///< for the caller: ended well, or an Error is known
  std::uint32_t open = 0;        ///< fragments that have not ended
  std::uint32_t unreleased = 0;  ///< fragments whose slots are out
  std::optional<Error> error{};
  std::vector<WorkerFragment*> fragments{};
  std::vector<std::uint32_t> part_open{};  ///< pieces of each push and pull tensor that have not ended
  std::vector<std::pair<Link*, std::uint64_t>> keys{};
  std::int64_t started_ns = 0;
  Deadline deadline{Deadline::Clock::time_point::max()};
};

/// One server.
struct Link {
  enum class State : std::uint8_t {
    greeting,  ///< no Server there yet
    open,
    failed,  ///< for good
  };
  enum class Region : std::uint8_t { unknown, asked, known };

  fabric::PeerId peer = 0;
  State state = State::greeting;
  bool fenced = false;   ///< failed, and nothing of an answer can still be written
  bool unquiet = false;  ///< failed, and the tensors of a round may still be read
  bool same_clock = false;
  bool in_place = false;  ///< of this process, and takes tensors where they are
  std::optional<Error> error{};
  std::uint32_t slots = 0;  ///< a binding may have
  std::uint64_t next_seq = 0;
  WorkerFragment* queue_front = nullptr;
  WorkerFragment* queue_back = nullptr;
  std::unordered_map<PartId, Binding, PartIdHash> bindings{};
  std::unordered_map<std::uint64_t, KeyInfo> keys{};
  std::vector<Region> regions{};                    ///< by the worker's number
  std::vector<const fabric::RemoteRegion*> lent{};  ///< by the server's number
  std::vector<std::pair<std::uint32_t, Error>> refused_regions{};
  ClockOffset clock{};
};

/// Small messages and fragments decided on with the lock held, posted without it.
struct Outgoing {
  struct Small {
    fabric::PeerId peer = 0;
    std::array<std::byte, 160> bytes;
    std::size_t size = 0;
  };
  std::vector<Small> messages{};
  WorkerFragment* first = nullptr;
  WorkerFragment* last = nullptr;
  WorkerFragment* fetches = nullptr;

  template <class T>
  void add(fabric::PeerId peer, const T& message) {
    static_assert(sizeof(T) <= sizeof(Small::bytes));
    Small& small = messages.emplace_back();
    small.peer = peer;
    std::memcpy(small.bytes.data(), &message, sizeof message);
    small.size = sizeof message;
  }
  void add_fetch(WorkerFragment& fragment) noexcept { fragment.fetch.next = std::exchange(fetches, &fragment); }
  void add(WorkerFragment& fragment) noexcept {
    fragment.next = nullptr;
    (last == nullptr ? first : last->next) = &fragment;
    last = &fragment;
  }
};

}  // namespace pushpull
}  // namespace dtr::inline v0
