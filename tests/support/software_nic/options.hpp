// What a simulated device is made of. Every limit is kept with the errno that real drivers give.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <infiniband/verbs.h>

namespace dtr::software_nic {

/// An entry of a port's GID table.
struct GidOptions {
  std::string address{};  ///< "10.0.0.1" (IPv4-mapped), "2001:db8::1", "fe80::1" (link-local); empty = an empty entry
  ibv_gid_type type = IBV_GID_TYPE_ROCE_V2;
};

struct PortOptions {
  /// Empty: a table as drivers make it for one address: link-local RoCE v1 and v2, then IPv4-mapped RoCE v1 and v2.
  /// The n-th port of every nic gets an address in one /24 subnet: 10.77.0.0/24, 10.78.0.0/24, ...
  std::vector<GidOptions> gids{};
  int gid_table_length = 16;
  ibv_port_state state = IBV_PORT_ACTIVE;
  ibv_mtu max_mtu = IBV_MTU_4096;
  ibv_mtu active_mtu = IBV_MTU_1024;
  std::uint32_t max_message = 1U << 30;
};

struct DeviceOptions {
  std::string name{};                ///< empty: "soft0", "soft1", ... by place
  std::vector<PortOptions> ports{};  ///< empty: one
  std::string sysfs{};               ///< its folder in sysfs; empty: it has none

  // Counts: the call that would exceed one fails with ENOMEM.
  int max_pd = 32768;
  int max_qp = 65536;
  int max_cq = 65536;
  int max_mr = 65536;
  int max_srq = 1024;
  std::uint64_t max_locked_bytes = ~0ULL;  ///< of all memory regions together: stands for RLIMIT_MEMLOCK
  // Sizes: EINVAL.
  std::uint64_t max_mr_size = ~0ULL;
  int max_qp_wr = 16384;
  int max_cqe = 1 << 20;
  int max_srq_wr = 32768;
  int max_sge = 32;
  int max_srq_sge = 32;
  int max_inline = 256;
  int max_qp_rd_atom = 16;                     ///< as responder and as initiator
  ibv_atomic_cap atomic_cap = IBV_ATOMIC_HCA;  ///< NONE: atomics end with remote invalid request

  bool dmabuf = true;  ///< false: reg_dmabuf_mr gives EOPNOTSUPP. Any descriptor that can be mapped will do
  bool retry_seven_forever = false;  ///< soft-RoCE takes retry_cnt 7 as for ever
};

}  // namespace dtr::software_nic
