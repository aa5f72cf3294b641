#include "dtr/fabric/shm/shm.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <string>

#include <sodium.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dtr/base/file.hpp"
#include "dtr/fabric/shm/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

/// Boot and network namespace: processes that agree in both share memory and abstract sockets.
Result<std::string> domain_of(const Identity& identity) {
  auto boot = read_file("/proc/sys/kernel/random/boot_id");
  if (!boot) return fail(std::move(boot.error()));
  std::string net(64, '\0');
  const ssize_t length = ::readlink("/proc/self/ns/net", net.data(), net.size());
  if (length < 0) return fail(errno_error(errno, "readlink /proc/self/ns/net", "start shm"));
  net.resize(static_cast<std::size_t>(length));
  boot->erase(std::remove(boot->begin(), boot->end(), '\n'), boot->end());
  return "shm:" + identity.host_id + ":" + *boot + ":" + net;
}

/// Rings hold four of the largest messages, whatever is asked for.
Result<ShmOptions> usable(ShmOptions options) {
  constexpr std::size_t kLargest = LinkMemory::kMaxSlots * kSlot;
  if (options.ring_bytes > kLargest || options.eager_bytes > kLargest / 8 || options.max_handshakes == 0) {
    return fail(Errc::invalid_argument,
                "ring_bytes " + std::to_string(options.ring_bytes) + ", eager_bytes " +
                    std::to_string(options.eager_bytes) + ", max_handshakes " + std::to_string(options.max_handshakes) +
                    ": at most " + std::to_string(kLargest) + ", an eighth of it, at least 1",
                "start shm");
  }
  const std::size_t least = std::max(LinkMemory::kMinSlots * kSlot, 4 * (options.eager_bytes + kSlot));
  options.ring_bytes = std::bit_ceil(std::max(options.ring_bytes, least));
  return options;
}

Result<std::unique_ptr<Transport>> make(const TransportContext& context, const ShmOptions& asked) {
  auto options = usable(asked);
  if (!options) return fail(std::move(options.error()));
  if (sodium_init() < 0) return fail(Errc::unsupported, "no source of random numbers", "start shm");
  auto domain = domain_of(context.identity);
  if (!domain) return fail(std::move(domain.error()));
  auto local = std::make_shared<Local>(context, *options);
  auto control = Control::create(has_barriers());
  if (!control) return fail(std::move(control.error()));
  local->control = std::move(*control);
  if (local->control->barriers != 0) local->registration.begin();
  local->lines = std::make_shared<FlagLines>(local->control);
  local->doorbell.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!local->doorbell) return fail(errno_error(errno, "eventfd", "start shm"));
  randombytes_buf(local->probe.data(), local->probe.size());
  if (auto opened = local->poller.open(); !opened) return fail(std::move(opened.error()));

  Address address{.pid = static_cast<std::uint32_t>(::getpid())};
  randombytes_buf(address.name.data(), address.name.size());
  auto listener = listen_at(address);
  if (!listener) return fail(std::move(listener.error()));
  auto transport = std::make_unique<ShmTransport>(std::move(local), std::move(*listener), address, std::move(*domain));
  if (auto watched = transport->watch(); !watched) return fail(std::move(watched.error()));
  return transport;
}

}  // namespace

Result<std::unique_ptr<Transport>> make_shm(const TransportContext& context, const ShmOptions& options) {
  return make(context, options);
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
