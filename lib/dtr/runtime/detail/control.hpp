// The control path of a Runtime: small words between ranks over the fabric. Who came to what, who lives, who is dead.
// Internal to runtime/.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/base/metrics.hpp"
#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/runtime/detail/silence_table.hpp"
#include "dtr/runtime/group.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

/// How ranks know that the others live. The same on all ranks: rank 0's.
struct WatchOptions {
  std::uint32_t width = 64;
  std::chrono::milliseconds interval{1000};
  std::chrono::milliseconds timeout{30000};
};

struct ControlOptions {
  std::chrono::milliseconds message_timeout{30000};
  WatchOptions watch{};
  /// By rank: it has a progress thread, which speaks for it whatever its application does.
  std::vector<bool> speaks{};
};

/// The first member of a meeting collects; a watch tree makes every death known to all. Words between ranks that are
/// not neighbours in a tree go by those between, so that nobody is connected with everybody. Handlers run on progress,
/// the rest on any thread.
class Runtime::Control final : public fabric::PortHandler, private fabric::ProgressSource {
 public:
  static constexpr fabric::Port kPort = 0;
  /// How long, after a time-out, one asks who is missing.
  static constexpr std::chrono::milliseconds kAnswerBound{500};

  Control(fabric::Fabric& fabric, MetricsRegistry& metrics, ControlOptions options);
  ~Control() override;

  /// Opens the port, links this rank into the watch tree, and begins to give and to want signs of life.
  [[nodiscard]] Result<void> start();

  /// Signs of life to all who watch this rank, now; and a promise of more. Error: fenced.
  [[nodiscard]] Result<void> heartbeat();

  /// Among the ranks [members.first, members.first + members.count), of which this is one.
  struct Members {
    fabric::PeerId first = 0;
    std::uint32_t count = 0;
  };
  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Members members, Deadline deadline);

  /// A barrier of `group`, which is made of `members`: ends early when one of them is gone, and names who is missing,
  /// for which it takes `to_ask` after the deadline.
  [[nodiscard]] Result<void> barrier(Bootstrap& group, Members members, const std::string& operation, Deadline deadline,
                                     std::chrono::milliseconds to_ask = kAnswerBound);

  /// The first peer that died, if any. Those that left in good order do not count.
  [[nodiscard]] std::optional<Error> first_failure() const;

  /// A member that is dead or has left, if any.
  [[nodiscard]] std::optional<fabric::PeerId> first_gone(Members members) const noexcept;

  /// After a member has gone: the death behind it if one becomes known soon, else that it left.
  [[nodiscard]] Error why_gone(Members members, const std::string& operation, Deadline deadline);

  /// This rank ends: it makes no new connections for the sake of the watch tree.
  void begin_end() noexcept { ending_.store(true, std::memory_order_relaxed); }
  /// All have come to the end. From here on peers leave and fall silent because the job is over.
  void all_at_end() noexcept { over_.store(true, std::memory_order_relaxed); }

  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  enum class Kind : std::uint8_t { hello = 1, contribution, arrival, outcome, question, answer, down, beat, relay };

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
  /// Up or down the tree over `members`, of which `to` is one and this rank too.
  void send_by_tree(Members members, fabric::PeerId to, std::span<const std::byte> message, Deadline deadline) noexcept;
  /// Towards its end: `message` is a whole one of Kind::relay, and this rank is not where it ends.
  void pass_on(Members members, fabric::PeerId to, std::span<const std::byte> message, Deadline deadline) noexcept;
  [[nodiscard]] auto tree_over(Members members) const;
  /// There is a progress thread.
  [[nodiscard]] bool has_thread() const noexcept { return options_.speaks[fabric_.self()]; }
  /// Everybody where rank 0 collects, whose neighbours are then those of the watch tree.
  [[nodiscard]] Members tree_towards(fabric::PeerId root, Members members) const noexcept {
    return root == 0 ? Members{.first = 0, .count = fabric_.size()} : members;
  }
  [[nodiscard]] bool has(Members members, fabric::PeerId rank) const noexcept {
    return members.first + std::uint64_t{members.count} <= fabric_.size() && rank >= members.first &&
           rank - members.first < members.count;
  }
  void handle(fabric::PeerId from, std::span<const std::byte> message);
  void contribute(const Meeting& meeting, Members members, int rank, Bytes bytes);
  /// At the top these ranks have come; elsewhere, on progress only, the word is kept for the next look.
  void note_arrivals(Meeting meeting, std::span<const fabric::PeerId> ranks);
  /// One step up the tree.
  void send_arrivals(const Meeting& meeting, std::span<const fabric::PeerId> ranks, Deadline deadline);

  // control_watch.cpp, with the turn of progress
  int progress(int budget) noexcept override;
  [[nodiscard]] int wait_descriptor() const noexcept override { return -1; }
  [[nodiscard]] bool prepare_sleep() noexcept override;
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept override { return next_tick_; }
  void tick(Deadline::Clock::time_point now);
  void beat(fabric::PeerId to) noexcept;
  void settle_in(bool first);
  void adopt(fabric::PeerId peer);
  void say_hello(fabric::PeerId to);
  void take_news(fabric::PeerId from, fabric::PeerId dead, Errc code, const std::string& why);
  void expelled_by(fabric::PeerId peer, const std::string& why);
  [[nodiscard]] std::vector<fabric::PeerId> neighbours() const;
  [[nodiscard]] static Bytes news_of(fabric::PeerId dead, Errc code, std::string_view why);
  /// Tells rank 0 that this rank came to the next meeting of a topic. Returns its number.
  std::uint64_t announce(std::string_view topic, Deadline deadline);
  /// "ranks 2, 5": those of `expected` that `root` has not seen at a meeting; asks it if it is another rank.
  [[nodiscard]] std::string missing(std::string_view topic, std::uint64_t round, Members expected,
                                    fabric::PeerId root = 0, std::chrono::milliseconds to_ask = kAnswerBound);
  [[nodiscard]] std::string missing_at_root(const Meeting& meeting, Members expected) const;

  fabric::Fabric& fabric_;
  ForkGuard fork_guard_;
  ControlOptions options_;
  std::size_t fragment_bytes_;
  bool open_ = false;
  std::atomic<bool> ending_{false};
  std::atomic<bool> over_{false};
  std::atomic<bool> failed_{false};    ///< first_failure_ is set
  std::atomic<bool> promised_{false};  ///< signs of life come although there is no progress thread

  Counter& beats_sent_;
  Counter& beats_heard_;
  Counter& declared_failed_;

  // With the turn of progress.
  SilenceTable silence_;  ///< of all neighbours in the watch tree
  Deadline::Clock::time_point next_tick_ = Deadline::Clock::time_point::max();
  std::uint32_t looks_ = 0;
  bool look_at_clock_ = false;
  bool expelled_ = false;                                               ///< the others have declared this rank failed
  std::map<Meeting, std::vector<fabric::PeerId>> arrivals_to_pass_on_;  ///< those of one look go in one message

  std::shared_ptr<std::atomic<std::uint32_t>> sending_ =
      std::make_shared<std::atomic<std::uint32_t>>(0);  ///< without a progress thread: messages that have not left
  mutable std::mutex mutex_;
  std::uint64_t next_message_ = 0;
  std::map<std::pair<fabric::PeerId, std::uint64_t>, Assembly> assemblies_;
  std::map<std::string, std::uint64_t, std::less<>> rounds_;  ///< this rank's next round of a topic
  std::map<Meeting, std::map<int, Bytes>> contributions_;     ///< at the first member
  std::map<Meeting, std::vector<bool>> arrivals_;             ///< at the first member, by rank
  std::map<Meeting, std::vector<Bytes>> outcomes_;
  std::set<Meeting> given_up_;  ///< outcomes that nobody waits for any more
  std::map<std::uint64_t, std::string> answers_;
  std::uint64_t next_question_ = 0;
  std::optional<Error> first_failure_;
  std::set<fabric::PeerId> gone_;
};

}  // namespace dtr::inline v0
