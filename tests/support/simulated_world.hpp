// One rank's view of a job of thousands that is not there: its Runtime, fabric and control path are real and believe in
// it. What MPI would bring is made from the rank's own record, and where the network would be there is a stand-in.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dtr/base/bytes.hpp"
#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/fabric/remote_regions.hpp"
#include "dtr/fabric/transport.hpp"
#include "dtr/runtime/detail/introduction.hpp"

namespace dtr::testing {

/// What was asked of the stand-ins. Any thread.
struct Asked {
  std::atomic<std::uint64_t> connects{0};
  std::atomic<std::uint64_t> posts{0};
  std::atomic<bool> full{false};  ///< no channel has room
};

/// Everything that is posted has arrived at once.
class StandInChannel final : public fabric::Channel {
 public:
  explicit StandInChannel(Asked& asked) : asked_(asked) {}

  fabric::PostResult post(std::span<const fabric::WorkRequest> requests, Deadline) noexcept override {
    asked_.posts.fetch_add(1, std::memory_order_relaxed);
    if (asked_.full.load(std::memory_order_relaxed)) {
      return {.accepted = 0, .finished = 0, .status = {.code = Errc::again}};
    }
    const auto count = static_cast<std::uint32_t>(requests.size());
    return {.accepted = count, .finished = count, .status = {}};
  }
  bool posts_silently() const noexcept override { return true; }
  Result<const fabric::RemoteRegion*> import(const RemoteKey& key) override { return regions_.get(key); }
  std::uint32_t cancel(fabric::Completion&) noexcept override { return 0; }
  bool quiesced() const noexcept override { return true; }
  void reset() noexcept override {}
  void close() noexcept override { state_ = fabric::ChannelState::closed; }
  void abort(Errc) noexcept override { state_ = fabric::ChannelState::failed; }
  fabric::ChannelState state() const noexcept override { return state_; }
  std::string path() const override { return "stand-in"; }
  std::string explain(const fabric::Status&) const override { return {}; }

 private:
  Asked& asked_;
  fabric::RemoteRegions regions_;
  std::atomic<fabric::ChannelState> state_{fabric::ChannelState::open};
};

/// As many bytes of domain and address as the transport that it stands for.
class StandIn final : public fabric::Transport {
 public:
  StandIn(std::string name, std::string domain, std::size_t address_bytes, Asked& asked)
      : name_(std::move(name)), domain_(std::move(domain)), address_(address_bytes), asked_(asked) {}

  std::string_view name() const noexcept override { return name_; }
  std::string domain() const override { return domain_; }
  bool moves(MemoryKind) const noexcept override { return true; }
  std::size_t max_message() const noexcept override { return 65536; }
  std::vector<std::byte> address() const override { return address_; }
  Result<void> register_region(Region&) override { return {}; }
  bool drained(const Region&) noexcept override { return true; }
  void deregister_region(Region&) noexcept override {}
  Result<std::unique_ptr<fabric::Channel>> connect(fabric::PeerId, std::span<const std::byte>, Deadline) override {
    asked_.connects.fetch_add(1, std::memory_order_relaxed);
    return std::make_unique<StandInChannel>(asked_);
  }
  void leave() noexcept override {}
  void fence(fabric::PeerId) noexcept override {}
  int progress(int) noexcept override { return 0; }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return true; }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

 private:
  std::string name_;
  std::string domain_;
  std::vector<std::byte> address_;
  Asked& asked_;
};

/// shm inside of a host, tcp (two addresses) between hosts.
inline std::vector<fabric::TransportFactory> stand_ins(Asked& asked) {
  using fabric::TransportContext;
  return {{.name = "shm",
           .make = [&asked](const TransportContext& context) -> Result<std::unique_ptr<fabric::Transport>> {
             const std::string boot_and_namespace(36 + 18, '0');
             return std::make_unique<StandIn>("shm", "shm:" + context.identity.host_id + ":" + boot_and_namespace, 24,
                                              asked);
           }},
          {.name = "tcp", .make = [&asked](const TransportContext&) -> Result<std::unique_ptr<fabric::Transport>> {
             return std::make_unique<StandIn>("tcp", "tcp", 40, asked);
           }}};
}

/// Rank `rank` of `size`, `ranks_a_host` on each host. All others have come to whatever it comes to.
class SimulatedWorld final : public Bootstrap {
 public:
  SimulatedWorld(int rank, int size, int ranks_a_host) : rank_(rank), size_(size), ranks_a_host_(ranks_a_host) {}

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }

  /// Everybody's record: this rank's with other hosts and addresses in it.
  static std::vector<Bytes> records_like(std::span<const std::byte> mine, int rank, int size, int ranks_a_host) {
    const Introduction own = value_or_throw(Introduction::unpack(mine, rank));
    std::vector<Bytes> all;
    all.reserve(static_cast<std::size_t>(size));
    for (int r = 0; r < size; ++r) {
      if (r == rank) {
        all.emplace_back(mine.begin(), mine.end());
        continue;
      }
      Introduction other = own;
      if (r / ranks_a_host != rank / ranks_a_host) name_host(other.host, r / ranks_a_host);
      ByteReader in(own.address);
      ByteWriter out;
      const auto offers = in.value<std::uint32_t>();
      out.value(offers);
      for (std::uint32_t i = 0; i < offers; ++i) {
        const std::string name = in.text();
        std::string domain = in.text();
        const auto view = in.bytes();
        Bytes address(view.begin(), view.end());
        if (name == "shm" && other.host != own.host) name_host(domain, r / ranks_a_host);
        std::memcpy(address.data(), &r, std::min(sizeof r, address.size()));
        out.text(name).text(domain).bytes(address);
      }
      other.address = out.take();
      all.push_back(other.pack());
    }
    return all;
  }

  Result<std::vector<std::vector<std::byte>>> exchange(std::span<const std::byte> mine, Deadline) override {
    return records_like(mine, rank_, size_, ranks_a_host_);
  }
  Result<std::unique_ptr<Bootstrap>> split(int, Deadline) override {
    return fail(Errc::unsupported, "roles are not simulated", "split");
  }
  Result<void> barrier(Deadline, const Poll&) override { return {}; }
  Result<void> finalize(bool, Deadline) override { return {}; }
  void on_mpi_finalize(std::function<void()>) override {}

 private:
  /// Another text of the same length.
  static void name_host(std::string& text, int host) {
    const std::string number = std::to_string(host) + "/";
    if (text.size() < number.size()) text.resize(number.size());
    std::copy(number.begin(), number.end(), text.begin());
  }

  int rank_;
  int size_;
  int ranks_a_host_;
};

}  // namespace dtr::testing
