// The peer's regions as one link knows them. A key is used directly only if the peer's own table vouches for it: a
// mistaken one must not lead a copy astray in the peer's memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/shm/flag_lines.hpp"
#include "dtr/fabric/shm/messages.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

struct Imported : RemoteRegion {
  std::atomic<Errc> verdict{Errc::again};     ///< again = the link does not stand yet; ok = may be used
  std::atomic<bool> mapping_expected{false};  ///< its segment has been asked for
};

class Imports {
 public:
  // --- any thread ---

  /// The same object for the same key. Errors: unsupported (GPU memory).
  [[nodiscard]] Result<const Imported*> get(const RemoteKey& key);
  [[nodiscard]] bool has_questions() const noexcept { return has_questions_.load(std::memory_order_acquire); }

  // --- progress ---

  /// The link stands: the peer's validity words are here.
  void open(std::shared_ptr<Segment> validity);
  /// Asks for segments, a limited number at one time. False: the socket is broken.
  [[nodiscard]] bool ask(int socket);
  [[nodiscard]] Result<void> answer(const Message& message, std::vector<UniqueFd>& fds);
  /// Nothing is registered in this segment any more.
  void unmap(std::uint64_t segment);
  /// Gives back what was unmapped, once no thread of this process is inside the peer's memory. To be called now and
  /// then.
  void release_unmapped(const FlagLines& lines, PeerId peer) noexcept;

 private:
  using KeyBytes = std::array<std::byte, sizeof(RemoteKey)>;
  enum class Stage : std::uint8_t { wanted, asked, mapped, refused };
  struct PeerSegment {
    Stage stage = Stage::wanted;
    std::shared_ptr<Segment> mapping{};
  };

  void judge(Imported& region);
  void want(Imported& region);
  static void attach(Imported& region, const Segment& mapping) noexcept;

  std::mutex mutex_;
  std::map<KeyBytes, std::unique_ptr<Imported>> regions_;
  std::map<std::uint64_t, PeerSegment> segments_;
  std::size_t asked_ = 0;
  std::atomic<bool> has_questions_{false};
  std::shared_ptr<Segment> validity_;

  std::vector<std::shared_ptr<Segment>> dying_{};  ///< progress only, as the next
  bool dying_are_unseen_ = true;                   ///< who looks at a region now does not find these
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
