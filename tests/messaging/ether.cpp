#include "messaging/ether.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace dtr::testing {

using fabric::Opcode;
using fabric::PeerId;

namespace {

class EtherChannel final : public fabric::Channel {
 public:
  EtherChannel(Ether& ether, PeerId peer) : ether_(ether), peer_(peer) {}
  ~EtherChannel() override { end_open(nullptr, Errc::closed); }

  fabric::PostResult post(std::span<const fabric::WorkRequest> requests, Deadline) noexcept override {
    fabric::PostResult result;
    if (state_ != fabric::ChannelState::open) return {.accepted = 0, .finished = 0, .status = {.code = Errc::closed}};
    for (const fabric::WorkRequest& request : requests) {
      result.status.code = ether_.full ? Errc::again : carry_out(request);
      if (result.status.code != Errc::ok) return result;
      if (ether_.late && request.completion != nullptr) ether_.open.push_back({peer_, request.completion});
      if (result.finished == result.accepted && !ether_.late) ++result.finished;
      ++result.accepted;
    }
    return result;
  }
  bool posts_silently() const noexcept override { return true; }
  Result<const fabric::RemoteRegion*> import(const RemoteKey& key) override {
    for (const auto& known : regions_) {
      if (std::memcmp(&known->key, &key, sizeof key) == 0) return known.get();
    }
    auto region = std::make_unique<fabric::RemoteRegion>();
    region->key = key;
    if (key.length <= ether_.bytes().size()) region->mapped = ether_.bytes().data();
    regions_.push_back(std::move(region));
    return regions_.back().get();
  }
  bool reads_process() const noexcept override { return true; }
  fabric::Status read_process(std::uint64_t address, std::span<std::byte> to) noexcept override {
    const auto first = reinterpret_cast<std::uintptr_t>(ether_.bytes().data());
    if (address < first || address - first > ether_.bytes().size() ||
        to.size() > ether_.bytes().size() - (address - first)) {
      return {.code = Errc::out_of_range};
    }
    std::memcpy(to.data(), ether_.bytes().data() + (address - first), to.size());
    return {};
  }
  std::uint32_t cancel(fabric::Completion& completion) noexcept override {
    return end_open(&completion, Errc::cancelled);
  }
  bool quiesced() const noexcept override { return true; }
  void reset() noexcept override {}
  void close() noexcept override { state_ = fabric::ChannelState::closed; }
  void abort(Errc code) noexcept override {
    state_ = fabric::ChannelState::failed;
    end_open(nullptr, code);
  }
  fabric::ChannelState state() const noexcept override { return state_; }
  std::string path() const override { return "ether"; }
  std::string explain(const fabric::Status&) const override { return {}; }

 private:
  Errc carry_out(const fabric::WorkRequest& request) {
    if (request.opcode == Opcode::send) {
      const std::span payload(request.payload, request.length);
      ether_.posted.push_back({peer_, Opcode::send, 0, 0, {payload.begin(), payload.end()}});
      return Errc::ok;
    }
    if (request.opcode == Opcode::flush) return Errc::ok;
    if (request.bytes() == 0) {
      ether_.posted.push_back({peer_, request.opcode, request.value, 0, {}});
      return Errc::ok;
    }
    const std::uint64_t length = request.remote->key.length;
    if (request.remote_offset > length || request.bytes() > length - request.remote_offset) return Errc::out_of_range;
    std::byte* const local = request.local->data() + request.local_offset;
    if (request.opcode == Opcode::get) {
      const std::byte* const mapped = request.remote->mapped.load();
      if (mapped == nullptr) return Errc::out_of_range;
      std::memcpy(local, mapped + request.remote_offset, request.bytes());
    } else {
      ether_.posted.push_back(
          {peer_, request.opcode, request.value, request.remote_offset, {local, local + request.bytes()}});
    }
    return Errc::ok;
  }

  std::uint32_t end_open(const fabric::Completion* which, Errc code) noexcept {
    std::uint32_t ended = 0;
    for (std::size_t i = 0; i < ether_.open.size();) {
      const Ether::Open one = ether_.open[i];
      if (one.to != peer_ || (which != nullptr && one.completion != which)) {
        ++i;
        continue;
      }
      ether_.open.erase(ether_.open.begin() + static_cast<std::ptrdiff_t>(i));
      one.completion->finish(1, {.code = code});
      ++ended;
    }
    return ended;
  }

  Ether& ether_;
  PeerId peer_;
  std::vector<std::unique_ptr<fabric::RemoteRegion>> regions_;
  fabric::ChannelState state_ = fabric::ChannelState::open;
};

class EtherTransport final : public fabric::Transport {
 public:
  EtherTransport(Ether& ether, std::string name, std::string domain)
      : ether_(ether), name_(std::move(name)), domain_(std::move(domain)) {}

  std::string_view name() const noexcept override { return name_; }
  std::string domain() const override { return domain_; }
  bool moves(MemoryKind) const noexcept override { return true; }
  std::size_t max_message() const noexcept override { return 4352; }  // more would be no offer any more
  std::vector<std::byte> address() const override { return std::vector<std::byte>(24); }
  Result<void> register_region(Region&) override { return {}; }
  bool drained(const Region&) noexcept override { return true; }
  void deregister_region(Region&) noexcept override {}
  Result<std::unique_ptr<fabric::Channel>> connect(PeerId peer, std::span<const std::byte>, Deadline) override {
    return std::make_unique<EtherChannel>(ether_, peer);
  }
  void leave() noexcept override {}
  void fence(PeerId) noexcept override {}
  int progress(int) noexcept override {
    int handled = 0;
    for (const Ether::Open& one : std::exchange(ether_.open, {})) {
      one.completion->finish(1, {});
      ++handled;
    }
    while (!ether_.coming.empty()) {
      const Ether::Event event = std::move(ether_.coming.front());
      ether_.coming.pop_front();
      if (event.is_message) {
        ether_.receiver->on_message(event.from, ether_.port, event.payload);
      } else {
        ether_.receiver->on_notify(event.from, ether_.port, event.value);
      }
      ++handled;
    }
    return handled;
  }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return ether_.coming.empty() && ether_.open.empty(); }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

 private:
  Ether& ether_;
  std::string name_;
  std::string domain_;
};

}  // namespace

RemoteKey Ether::key() {
  return {.slot = 1, .generation = 1, .secret = 1, .length = bytes().size(), .access = Access::all};
}

std::unique_ptr<fabric::Transport> ether_transport(Ether& ether, std::string name, std::string domain) {
  return std::make_unique<EtherTransport>(ether, std::move(name), std::move(domain));
}

}  // namespace dtr::testing
