// Two ends of a connection for the tests of the software NIC.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/software_nic/software_nic.hpp"
#include "support/test_support.hpp"

namespace dtr::software_nic {

constexpr std::uint32_t kIpv4Gid = 3;  ///< RoCE v2 in the usual table
constexpr std::size_t kMemory = 1 << 20;
constexpr std::size_t kReceive = 256;  ///< bytes of each receive
constexpr unsigned kAllAccess =
    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

struct EndOptions {
  std::size_t device = 0;
  std::uint32_t send_queue = 64;
  int completion_queue = 1024;
  std::uint32_t max_sge = 4;
  std::uint32_t max_inline = 64;
  int signal_all = 0;
  bool shared_receives = true;
};

struct LinkOptions {
  std::uint32_t gid_index = kIpv4Gid;
  std::uint8_t timeout = 8;  ///< 1 ms
  std::uint8_t retry_count = 3;
  std::uint8_t not_ready_retries = 0;
  std::uint8_t not_ready_timer = 1;  ///< 10 us
  std::uint8_t reads = 4;
  unsigned access = kAllAccess;
  std::uint32_t psn_error = 0;  ///< added to what the peer says about its PSN
};

/// A device, memory, a completion queue with channel, a shared receive queue and one queue pair.
class End {
 public:
  End(SoftwareNic& nic, const EndOptions& options = {});
  ~End();
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  SoftwareNic& api;
  const EndOptions options;
  ibv_context* context = nullptr;
  ibv_pd* pd = nullptr;
  ibv_comp_channel* channel = nullptr;
  ibv_cq* cq = nullptr;
  ibv_srq* srq = nullptr;
  ibv_qp* qp = nullptr;
  std::vector<std::byte> memory = std::vector<std::byte>(kMemory);
  ibv_mr* mr = nullptr;

  [[nodiscard]] ibv_qp_init_attr wanted() const;
  [[nodiscard]] ibv_gid gid(std::uint32_t index) const;
  [[nodiscard]] int to_init(unsigned access = kAllAccess);
  [[nodiscard]] int to_ready(const End& peer, const LinkOptions& link = {});  ///< RTR
  [[nodiscard]] int to_send(const LinkOptions& link = {});                    ///< RTS
  [[nodiscard]] int to_state(ibv_qp_state state);

  /// A request over [offset, offset + length) of both memories; sent by itself. Returns post_send's error.
  struct Request {
    ibv_wr_opcode opcode = IBV_WR_RDMA_WRITE;
    std::uint64_t id = 0;
    std::size_t from = 0;  ///< here
    std::size_t to = 0;    ///< there
    std::uint32_t length = 0;
    unsigned flags = IBV_SEND_SIGNALED;
    std::uint32_t immediate = 0;
    std::uint64_t compare_add = 0;
    std::uint64_t swap = 0;
    std::optional<std::uint32_t> lkey{};
    std::optional<std::uint32_t> rkey{};
  };
  [[nodiscard]] int post(const End& peer, const Request& request);
  void receive(std::uint64_t id, std::size_t offset, std::uint32_t length = kReceive);

  /// The next completion; fails the test and returns an empty one with status GENERAL_ERR if none comes in time.
  [[nodiscard]] ibv_wc completion(std::chrono::milliseconds bound = std::chrono::seconds(10));
  [[nodiscard]] std::vector<ibv_wc> completions(std::size_t count);
  /// No completion within a short while.
  [[nodiscard]] bool quiet(std::chrono::milliseconds time = std::chrono::milliseconds(30));
  /// The next asynchronous event, acknowledged.
  [[nodiscard]] ibv_event_type event();
  [[nodiscard]] bool has_event() const;
  [[nodiscard]] std::uint64_t& word(std::size_t offset) { return *reinterpret_cast<std::uint64_t*>(&memory[offset]); }
};

/// Two ranks with a nic each, and a connected queue pair.
struct Pair {
  explicit Pair(const LinkOptions& link = {}, const DeviceOptions& device = {}, const EndOptions& options = {});
  std::shared_ptr<Network> network = std::make_shared<Network>();
  std::shared_ptr<SoftwareNic> nic_a;
  std::shared_ptr<SoftwareNic> nic_b;
  std::unique_ptr<End> a;
  std::unique_ptr<End> b;
};

void connect(End& a, End& b, const LinkOptions& link = {});
[[nodiscard]] bool readable(int fd, std::chrono::milliseconds bound);
/// Fills [offset, offset + length) with bytes that depend on `seed`.
void fill(End& end, std::size_t offset, std::size_t length, unsigned seed);
[[nodiscard]] bool filled(const End& end, std::size_t offset, std::size_t length, unsigned seed);

}  // namespace dtr::software_nic
