// One active port of one device, and what all queue pairs on it share: protection domain, completion queues, the
// shared receive queue and its buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "dtr/fabric/verbs/handles.hpp"
#include "dtr/fabric/verbs/options.hpp"
#include "dtr/fabric/verbs/wire.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// Who is told of a queue pair's completions.
class CompletionSink {
 public:
  /// A work request has ended; not ok: so have, unsuccessfully, all later ones of its queue pair.
  virtual void on_sent(const ibv_wc& completion) noexcept = 0;
  /// A receive has completed. `bytes` is valid during the call; empty for a notification.
  virtual void on_received(const ibv_wc& completion, std::span<const std::byte> bytes) noexcept = 0;

 protected:
  ~CompletionSink() = default;
};

/// Progress thread only, except protection_domain() and port descriptions.
class Nic {
 public:
  /// Opens a port. Errors: unsupported (not active, no usable GID), resource_exhausted, device_error.
  [[nodiscard]] static Result<std::unique_ptr<Nic>> open(VerbsApi& api, ibv_device* device, std::uint8_t port,
                                                         const VerbsOptions& options);
  ~Nic();
  Nic(const Nic&) = delete;
  Nic& operator=(const Nic&) = delete;

  [[nodiscard]] const std::string& name() const noexcept { return address_.name; }
  [[nodiscard]] const PortAddress& address() const noexcept { return address_; }
  [[nodiscard]] const ibv_device_attr& attributes() const noexcept { return attributes_; }
  [[nodiscard]] VerbsApi& api() const noexcept { return api_; }
  [[nodiscard]] ibv_pd* protection_domain() const noexcept { return pd_.get(); }
  /// Of the host's memory that it is attached to; -1 = unknown, or there is one only.
  [[nodiscard]] int numa_node() const noexcept { return numa_node_; }
  [[nodiscard]] std::uint8_t port() const noexcept { return port_; }
  [[nodiscard]] bool active() const noexcept { return active_; }
  /// The port still has this address.
  [[nodiscard]] bool has(const GidEntry& gid, std::uint16_t lid) const noexcept;
  [[nodiscard]] std::uint32_t max_message() const noexcept { return max_message_; }
  /// Our side of the mailbox: where a flush's answer goes.
  [[nodiscard]] std::uint64_t scratch() const noexcept { return address_.mailbox + 8; }
  [[nodiscard]] std::uint32_t scratch_lkey() const noexcept { return mailbox_mr_->lkey; }

  /// A queue pair in state INIT whose completions go to `sink`; `receives` buffers are kept posted for it.
  /// Errors: resource_exhausted (names the limit), device_error.
  [[nodiscard]] Result<QueuePair> make_queue_pair(CompletionSink& sink, std::uint32_t sends, std::uint32_t receives,
                                                  std::uint32_t* max_inline);
  /// The completions of one that was made before its user was known go to `sink` from now on.
  void redirect(std::uint32_t queue_pair_number, CompletionSink& sink) noexcept;
  /// Undoes it; completions that were not polled are gone, and with them the buffers of receives.
  void drop_queue_pair(QueuePair queue_pair) noexcept;

  /// Hands completions to their sinks; returns how many.
  int poll(int budget) noexcept;
  /// Asks for an event with the next completion; look once more afterwards, for what came before has none.
  void arm() noexcept;
  [[nodiscard]] int completion_fd() const noexcept { return channel_->fd; }
  [[nodiscard]] int event_fd() const noexcept { return context_->async_fd; }
  void clear_events() noexcept;

  struct Event {
    enum class Kind : std::uint8_t {
      port_lost,
      port_back,
      address,     ///< GIDs or the LID: address() tells the new ones
      fatal,       ///< the device does nothing any more
      queue_pair,  ///< the device has put it into error
      drained,     ///< this queue pair, in error, takes no receive any more
    };
    Kind kind = Kind::fatal;
    std::uint32_t queue_pair = 0;  ///< its number
  };
  /// What happened to the device next; false: nothing more so far.
  [[nodiscard]] bool next_event(Event& event) noexcept;

 private:
  struct Queue {
    CompletionQueue cq;
    std::uint32_t capacity = 0;
    std::uint32_t promised = 0;
    unsigned unacknowledged = 0;
  };
  struct Member {
    CompletionSink* sink = nullptr;
    std::size_t queue = 0;
    std::uint32_t entries = 0;
    std::uint32_t receives = 0;
  };
  struct Chunk {
    std::unique_ptr<std::byte[]> memory;
    MemoryRegion mr;
  };

  Nic(VerbsApi& api, const VerbsOptions& options) : api_(api), options_(options) {}
  [[nodiscard]] Result<void> set_up(ibv_device* device, std::uint8_t port);
  void read_gids();
  void read_lid() noexcept;
  [[nodiscard]] bool read_address() noexcept;
  [[nodiscard]] Result<std::size_t> promise(std::uint32_t entries);
  [[nodiscard]] Result<void> keep_receives(std::uint32_t wanted);
  void post_receives() noexcept;
  [[nodiscard]] CompletionSink* sink_of(std::uint32_t queue_pair_number) noexcept;
  [[nodiscard]] std::byte* buffer(std::uint32_t number) const noexcept;

  VerbsApi& api_;
  const VerbsOptions& options_;
  Context context_;
  std::uint8_t port_ = 1;
  bool active_ = true;
  int numa_node_ = -1;
  bool address_is_old_ = false;  ///< there was no memory for the new one
  ibv_device_attr attributes_{};
  std::uint32_t max_message_ = 0;
  PortAddress address_{};

  ProtectionDomain pd_;
  std::unique_ptr<std::byte[]> mailbox_;
  MemoryRegion mailbox_mr_;
  CompletionChannel channel_;
  std::vector<Queue> queues_;
  SharedReceiveQueue srq_;
  std::uint32_t srq_capacity_ = 0;
  std::size_t buffer_bytes_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<std::uint32_t> idle_buffers_;  ///< not posted
  std::uint32_t posted_ = 0;
  std::uint32_t wanted_ = 0;                           ///< receives promised to queue pairs
  std::unordered_map<std::uint32_t, Member> members_;  ///< by queue pair number
  std::uint32_t recent_number_ = 0;                    ///< whose completion came last, and
  CompletionSink* recent_sink_ = nullptr;              ///< its sink; nullptr: look it up
};

/// The ports to use, in order: as options.devices says, else those near this process's CPUs first, then by name.
/// Errors: unsupported, with every port's reason.
[[nodiscard]] Result<std::vector<std::unique_ptr<Nic>>> open_nics(VerbsApi& api, const VerbsOptions& options);

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
