// One simulated device and everything made on it.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include <infiniband/verbs.h>

#include "support/software_nic/engine.hpp"
#include "support/software_nic/memory.hpp"
#include "support/software_nic/queue_pair.hpp"

namespace dtr::software_nic {

struct ProtectionDomain : ibv_pd {
  std::atomic<int> users{0};
};

struct Context : ibv_context {
  explicit Context(Device& owner);
  Device& owner;
  AsyncEvents events;
};

/// Any thread.
class Device : public std::enable_shared_from_this<Device> {
 public:
  /// `place`: of the device in its nic; `number`: of the nic on the network.
  Device(std::shared_ptr<Network> network, const std::string& nic, std::string host, int number, int place,
         DeviceOptions options);

  [[nodiscard]] const std::string& name() const noexcept { return options_.name; }
  [[nodiscard]] const std::string& full_name() const noexcept { return full_name_; }
  [[nodiscard]] const DeviceOptions& options() const noexcept { return options_; }
  [[nodiscard]] Network& network() const noexcept { return *network_; }
  [[nodiscard]] ibv_device* handle() noexcept { return &handle_; }
  [[nodiscard]] const std::string& host() const noexcept { return host_; }
  [[nodiscard]] MemoryTable& memory() noexcept { return memory_; }
  [[nodiscard]] Engine& engine() noexcept { return engine_; }
  [[nodiscard]] RequestLedger& request_faults() noexcept { return request_faults_; }
  [[nodiscard]] static Device& of(ibv_device* device) noexcept { return *static_cast<Handle*>(device)->owner; }

  /// Connects it to the network, or takes it off: nothing reaches it any more, and its thread ends.
  void plug_in();
  void unplug();

  // What it is.
  void describe(ibv_device_attr& attributes) const;
  [[nodiscard]] int describe_port(std::uint8_t port, ibv_port_attr& attributes) const;
  [[nodiscard]] int gid(std::uint8_t port, std::uint32_t index, ibv_gid_entry& entry) const;

  // What happens to it.
  void set_port(std::uint8_t port, ibv_port_state state);
  void set_gid(std::uint8_t port, std::uint32_t index, const GidOptions& gid);
  void break_down();
  void freeze(bool frozen);
  [[nodiscard]] bool broken() const noexcept { return broken_.load(std::memory_order_acquire); }
  [[nodiscard]] bool frozen() const noexcept { return frozen_.load(std::memory_order_acquire); }
  void set_execution(Execution mode) noexcept { execution_.store(mode, std::memory_order_release); }
  [[nodiscard]] Execution execution() const noexcept { return execution_.load(std::memory_order_acquire); }
  [[nodiscard]] bool port_active(std::uint8_t port) const;
  /// A packet for this address, of this kind of RoCE, is taken by the port.
  [[nodiscard]] bool reachable(std::uint8_t port, const RawGid& gid, ibv_gid_type type) const;

  // Objects. Functions that make one return nullptr with errno set.
  [[nodiscard]] Context* open() noexcept;
  void close(Context& context) noexcept;
  [[nodiscard]] ibv_pd* make_domain(ibv_context& context) noexcept;
  [[nodiscard]] int drop_domain(ibv_pd& domain) noexcept;
  [[nodiscard]] CompletionChannel* make_channel(ibv_context& context) noexcept;
  [[nodiscard]] int drop_channel(CompletionChannel& channel) noexcept;
  [[nodiscard]] CompletionQueue* make_queue(ibv_context& context, int entries, void* user,
                                            ibv_comp_channel* channel) noexcept;
  [[nodiscard]] int drop_queue(CompletionQueue& queue) noexcept;
  [[nodiscard]] SharedReceiveQueue* make_receives(ibv_pd& domain, ibv_srq_init_attr& attributes) noexcept;
  [[nodiscard]] int drop_receives(SharedReceiveQueue& queue) noexcept;
  [[nodiscard]] QueuePair* make_queue_pair(ibv_pd& domain, ibv_qp_init_attr& attributes) noexcept;
  [[nodiscard]] int drop_queue_pair(QueuePair& queue_pair) noexcept;
  [[nodiscard]] std::shared_ptr<QueuePair> find_queue_pair(std::uint32_t number) const;
  [[nodiscard]] std::vector<std::shared_ptr<QueuePair>> queue_pairs() const;
  /// Objects that exist, contexts and memory regions included.
  [[nodiscard]] std::size_t objects() const;

  void post_event(ibv_context& context, ibv_event_type type, ibv_qp* queue_pair) noexcept;
  void post_event(ibv_context& context, ibv_event_type type, ibv_cq* queue) noexcept;
  void count_posted(std::uint64_t requests) noexcept { posted_.fetch_add(requests, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t posted() const noexcept { return posted_.load(std::memory_order_relaxed); }
  void count_not_ready() noexcept { not_ready_.fetch_add(1, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t not_ready() const noexcept { return not_ready_.load(std::memory_order_relaxed); }

 private:
  struct Handle : ibv_device {
    Device* owner = nullptr;
  };
  struct Port {
    ibv_port_state state = IBV_PORT_ACTIVE;
    std::vector<ibv_gid_entry> gids{};
  };

  void tell_all(ibv_event_type type, int port);
  void announce(std::uint8_t port);
  [[nodiscard]] bool refuses(std::size_t count, int limit) const noexcept;

  std::shared_ptr<Network> network_;
  DeviceOptions options_;
  std::string full_name_;
  std::string host_;
  Handle handle_{};
  MemoryTable memory_;
  RequestLedger request_faults_;
  std::atomic<bool> broken_{false};
  std::atomic<bool> frozen_{false};
  std::atomic<Execution> execution_{Execution::normal};
  std::atomic<std::uint64_t> posted_{0};
  std::atomic<std::uint64_t> not_ready_{0};

  mutable std::shared_mutex mutex_;  ///< of ports and objects
  std::vector<Port> ports_;
  std::map<const void*, std::unique_ptr<Context>> contexts_;
  std::map<const void*, std::unique_ptr<ProtectionDomain>> domains_;
  std::map<const void*, std::unique_ptr<CompletionChannel>> channels_;
  std::map<const void*, std::unique_ptr<CompletionQueue>> queues_;
  std::map<const void*, std::unique_ptr<SharedReceiveQueue>> receives_;
  std::unordered_map<std::uint32_t, std::shared_ptr<QueuePair>> queue_pairs_;
  Engine engine_;  // last: its thread uses all of the above
};

/// "10.0.0.1" as IPv4-mapped, or IPv6. Throws std::invalid_argument.
[[nodiscard]] RawGid parse_gid(const std::string& address);

}  // namespace dtr::software_nic
