// The control path of a Runtime: small words between ranks over the fabric. Who came to what, who is dead.
// Internal to runtime/.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/runtime/group.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

/// The first member of a meeting collects; a watch tree makes every death known to all. Handlers run on progress, the
/// rest on any thread.
class Runtime::Control final : public fabric::PortHandler {
 public:
  static constexpr fabric::Port kPort = 0;
  /// A rank is watched by its parent in a tree of this width: the parent has a connection to it and tells the others.
  static constexpr std::uint32_t kWatchWidth = 64;

  Control(fabric::Fabric& fabric, std::chrono::milliseconds message_timeout);
  ~Control() override;

  /// Opens the port and links this rank into the watch tree.
  [[nodiscard]] Result<void> start();

  /// Among the ranks [members.first, members.first + members.count), of which this is one.
  struct Members {
    fabric::PeerId first = 0;
    std::uint32_t count = 0;
  };
  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Members members, Deadline deadline);

  /// A barrier of `group`, which is made of `members`: ends early when one of them is gone, and names who is missing.
  [[nodiscard]] Result<void> barrier(Bootstrap& group, Members members, const std::string& operation,
                                     Deadline deadline);

  /// The first peer that died, if any. Those that left in good order do not count.
  [[nodiscard]] std::optional<Error> first_failure() const;

  /// A member that is dead or has left, if any.
  [[nodiscard]] std::optional<fabric::PeerId> first_gone(Members members) const noexcept;

  /// After a member has gone: the death behind it if one becomes known soon, else that it left.
  [[nodiscard]] Error why_gone(Members members, const std::string& operation, Deadline deadline);

  /// From here on peers leave because the job ends.
  void expect_goodbyes() noexcept { ending_.store(true, std::memory_order_relaxed); }

  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  enum class Kind : std::uint8_t { hello = 1, contribution, arrival, outcome, question, answer, down };

  /// A message of any length goes as fragments; this is in front of each.
  struct Fragment {
    std::uint64_t message = 0;  ///< counts the sender's messages
    std::uint64_t total = 0;    ///< bytes of the whole message
    std::uint64_t offset = 0;
  };
  struct Assembly {
    Bytes bytes;
    std::uint64_t received = 0;
  };
  using Meeting = std::pair<std::string, std::uint64_t>;  ///< topic and round

  void send(fabric::PeerId to, std::span<const std::byte> message, Deadline deadline) noexcept;
  void handle(fabric::PeerId from, std::span<const std::byte> message);
  void contribute(const Meeting& meeting, Members members, int rank, Bytes bytes);
  void spread_down(fabric::PeerId dead, Errc code, std::string_view why, fabric::PeerId except) noexcept;
  [[nodiscard]] std::optional<fabric::PeerId> watcher() const noexcept;
  void say_hello() noexcept;
  /// Tells rank 0 that this rank came to the next meeting of a topic. Returns its number.
  std::uint64_t announce(std::string_view topic, Deadline deadline);
  /// "ranks 2, 5": those of `expected` that `root` has not seen at a meeting; asks it if it is another rank.
  [[nodiscard]] std::string missing(std::string_view topic, std::uint64_t round, Members expected,
                                    fabric::PeerId root = 0);
  [[nodiscard]] std::string missing_at_root(const Meeting& meeting, Members expected) const;

  fabric::Fabric& fabric_;
  std::chrono::milliseconds message_timeout_;
  std::size_t fragment_bytes_;
  bool open_ = false;
  std::atomic<bool> ending_{false};
  std::atomic<bool> failed_{false};  ///< first_failure_ is set

  mutable std::mutex mutex_;
  std::uint64_t next_message_ = 0;
  std::map<std::pair<fabric::PeerId, std::uint64_t>, Assembly> assemblies_;
  std::map<std::string, std::uint64_t, std::less<>> rounds_;  ///< this rank's next round of a topic
  std::map<Meeting, std::map<int, Bytes>> contributions_;     ///< at the first member
  std::map<Meeting, std::set<int>> arrivals_;                 ///< at the first member
  std::map<Meeting, std::vector<Bytes>> outcomes_;
  std::set<Meeting> given_up_;  ///< outcomes that nobody waits for any more
  std::map<std::uint64_t, std::string> answers_;
  std::uint64_t next_question_ = 0;
  std::optional<Error> first_failure_;
  std::set<fabric::PeerId> gone_;
};

}  // namespace dtr::inline v0
