// What every rank tells all others through MPI, once. Internal to runtime/.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "dtr/base/bytes.hpp"
#include "dtr/base/error.hpp"
#include "dtr/bootstrap/host.hpp"
#include "dtr/fabric/identity.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {

struct Introduction {
  std::string failure{};  ///< why this rank cannot take part; then nobody does
  std::string host{};
  fabric::JobToken token{};  ///< rank 0's is the job's
  Bytes address{};
  CpuSet cpus{};  ///< that it may run on
  std::int32_t servers = 0;
  std::uint8_t colocated = 0;
  std::uint8_t speaks = 0;        ///< see ControlOptions
  std::uint32_t watch_width = 0;  ///< rank 0's is the job's, as what follows
  std::int64_t heartbeat_interval_ms = 0;
  std::int64_t heartbeat_timeout_ms = 0;

  [[nodiscard]] Bytes pack() const {
    ByteWriter out;
    out.text(failure).text(host).value(token).bytes(address).value(servers).value(colocated).value(speaks);
    out.value(watch_width).value(heartbeat_interval_ms).value(heartbeat_timeout_ms);
    return out.bytes(std::as_bytes(std::span(cpus))).take();
  }
  [[nodiscard]] static Result<Introduction> unpack(std::span<const std::byte> bytes, int rank) {
    ByteReader in(bytes);
    Introduction intro;
    intro.failure = in.text();
    intro.host = in.text();
    intro.token = in.value<fabric::JobToken>();
    const auto address = in.bytes();
    intro.address.assign(address.begin(), address.end());
    intro.servers = in.value<std::int32_t>();
    intro.colocated = in.value<std::uint8_t>();
    intro.speaks = in.value<std::uint8_t>();
    intro.watch_width = in.value<std::uint32_t>();
    intro.heartbeat_interval_ms = in.value<std::int64_t>();
    intro.heartbeat_timeout_ms = in.value<std::int64_t>();
    const auto cpus = in.bytes();
    intro.cpus.resize(cpus.size() / sizeof(std::uint64_t));
    if (!intro.cpus.empty()) std::memcpy(intro.cpus.data(), cpus.data(), intro.cpus.size() * sizeof(std::uint64_t));
    if (!in.ok() || !in.at_end() || cpus.size() % sizeof(std::uint64_t) != 0) {
      return fail(Errc::truncated, "malformed introduction", "init", rank);
    }
    return intro;
  }
};

}  // namespace dtr::inline v0
