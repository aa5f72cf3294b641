#include "dtr/fabric/verbs/transport.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>

#include <sys/epoll.h>

#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/channel.hpp"
#include "dtr/fabric/verbs/verbs.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kOperation = "open verbs";
/// Between looks at the control connections while they are quiet, ns: each is a system call, and completions are looked
/// at all the time.
constexpr std::int64_t kControlPause = 100'000;
constexpr std::uint32_t kDevicesEvery = 1024;

}  // namespace

Result<std::unique_ptr<Transport>> make_verbs(const TransportContext& context, const VerbsOptions& options,
                                              std::shared_ptr<VerbsApi> api, const TransportFactory& control) {
  const auto refuse = [](const std::string& what) { return fail(Errc::invalid_argument, what, kOperation); };
  if (!std::has_single_bit(options.queue_depth)) return refuse("queue_depth is not a power of two");
  if (!std::has_single_bit(options.send_queue)) return refuse("send_queue is not a power of two");
  if (options.credits < 2) return refuse("credits are fewer than 2");
  auto chosen = std::make_unique<VerbsOptions>(options);
  auto nics = open_nics(*api, *chosen);
  if (!nics) return fail(std::move(nics.error()));
  for (const auto& nic : *nics) {
    chosen->slice_bytes = std::min<std::size_t>(chosen->slice_bytes, nic->max_message());
    const auto most = static_cast<std::uint32_t>(std::max(nic->attributes().max_qp_wr, 1));
    if (chosen->send_queue > most) {
      chosen->send_queue = std::bit_floor(most);
      DTR_LOG_INFO("verbs: ", nic->name(), " has send queues of ", most, " at most (max_qp_wr): using ",
                   chosen->send_queue);
    }
  }
  if (chosen->send_queue < 8) return fail(Errc::unsupported, "send queues of fewer than 8 work requests", kOperation);
  // The links read the options through a reference that stays.
  auto transport = std::make_unique<VerbsTransport>(context, std::move(chosen), std::move(api), std::move(*nics));
  if (auto started = transport->start(control); !started) return fail(std::move(started.error()));
  return transport;
}

VerbsTransport::VerbsTransport(const TransportContext& shared, std::unique_ptr<const VerbsOptions> chosen,
                               std::shared_ptr<VerbsApi> table, std::vector<std::unique_ptr<Nic>> ports)
    : Hub(shared, *chosen, std::move(table), std::move(ports)), chosen_(std::move(chosen)), control_receiver_(*this) {}

Result<void> VerbsTransport::start(const TransportFactory& control) {
  auto made = control.make({.identity = context.identity, .regions = context.regions, .receiver = control_receiver_});
  if (!made) return fail(std::move(made.error()));
  control_ = std::move(*made);
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_ || !bell) return fail(errno_error(errno, "epoll_create1", kOperation));
  std::vector<int> descriptors{bell.get(), control_->wait_descriptor()};
  for (const auto& nic : nics) {
    descriptors.push_back(nic->completion_fd());
    descriptors.push_back(nic->event_fd());
  }
  for (const int fd : descriptors) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return fail(errno_error(errno, "epoll_ctl", kOperation));
    }
  }
  make_early();
  return {};
}

VerbsTransport::~VerbsTransport() {
  for (Link* link = first_link(); link != nullptr; link = link->next_link) link->shut_down();
  drop_early();
}

std::string VerbsTransport::describe() const {
  std::string text;
  for (const auto& nic : nics) {
    const PortAddress& port = nic->address();
    text += (text.empty() ? "" : "; ") + port.name + (port.offer.ethernet ? " RoCE, " : " InfiniBand, ");
    if (nic->numa_node() >= 0) text += "NUMA node " + std::to_string(nic->numa_node()) + ", ";
    text += describe_choice(port.offer, options.gid_index);
  }
  return text;
}

std::string VerbsTransport::domain() const {
  // Whether two ports reach each other is found out pair by pair; RoCE and InfiniBand never do.
  return nics.front()->address().offer.ethernet ? "roce" : "infiniband";
}

Address VerbsTransport::own_address() const {
  Address address{.control = control_->address(),
                  .host = context.identity.host_id,
                  .credits = options.credits,
                  .message_bytes = static_cast<std::uint32_t>(options.eager_bytes),
                  .ports = {},
                  .early = early_names_};
  for (const auto& nic : nics) address.ports.push_back(nic->address());
  return address;
}

// --- queue pairs of the start ---

void VerbsTransport::make_early() {
  const std::uint32_t world = context.identity.world;
  if (world < 2 || world > options.eager_world) return;
  early_.resize(world);
  early_names_.resize(world * nics.size());
  const std::uint32_t receives = options.credits + kResults + kCreditMessages;
  for (std::uint32_t rank = 0; rank < world; ++rank) {
    if (rank == context.identity.self) continue;
    for (std::size_t i = 0; i < nics.size(); ++i) {
      EarlyQueuePair& early = early_[rank].emplace_back();
      auto made = nics[i]->make_queue_pair(nobody_, options.send_queue, receives, &early.max_inline);
      if (!made) {
        DTR_LOG_WARN("verbs: queue pairs are made when they are needed, for there is no room for all at the start: ",
                     made.error().to_string());
        return;
      }
      early.queue_pair = std::move(*made);
      early.psn = new_psn(0);
      early_names_[rank * nics.size() + i] = {.number = early.queue_pair->qp_num, .psn = early.psn};
    }
  }
}

void VerbsTransport::drop_early() noexcept {
  for (auto& of_rank : early_) {
    for (std::size_t i = 0; i < of_rank.size(); ++i) {
      if (of_rank[i].queue_pair) nics[i]->drop_queue_pair(std::move(of_rank[i].queue_pair));
    }
    of_rank.clear();
  }
}

Result<void> VerbsTransport::introduce(PeerId peer, std::span<const std::byte> address) {
  {
    std::vector<Region*> waiting;
    {
      const std::lock_guard lock(mutex_);
      in_use_ = true;
      waiting.swap(unregistered_);
    }
    for (Region* region : waiting) {
      if (auto added = registrations.add(*region); !added) return added;
    }
  }
  if (peer >= early_.size() || early_[peer].empty()) return {};
  auto decoded = Address::decode(address);
  if (!decoded) return fail(std::move(decoded.error()));
  link_of(peer)->introduce(std::move(*decoded), std::move(early_[peer]));
  early_[peer].clear();
  return {};
}

// --- memory ---

Result<void> VerbsTransport::register_region(Region& region) {
  {
    const std::lock_guard lock(mutex_);
    if (!in_use_) {
      unregistered_.push_back(&region);  // nobody may ever need it, and pinning memory has a limit
      return {};
    }
  }
  return registrations.add(region);
}

bool VerbsTransport::drained(const Region& region) noexcept {
  if (region.uses() != 0) return false;
  registrations.remove(region);  // the devices refuse its keys once this has returned
  return true;
}

void VerbsTransport::deregister_region(Region& region) noexcept {
  registrations.remove(region);
  const std::lock_guard lock(mutex_);
  std::erase(unregistered_, &region);
}

// --- links ---

std::shared_ptr<Link> VerbsTransport::link_of(PeerId peer) {
  const std::lock_guard lock(mutex_);
  auto& link = links_[peer];
  if (link == nullptr) {
    link = std::make_shared<Link>(static_cast<Hub&>(*this), peer);
    link->next_link = first_link();
    first_link_.store(link.get(), std::memory_order_release);
  }
  return link;
}

Result<std::unique_ptr<Channel>> VerbsTransport::connect(PeerId peer, std::span<const std::byte> address,
                                                         Deadline deadline) {
  if (auto alive = fork_guard.check("connect"); !alive) return fail(std::move(alive.error()));
  auto decoded = Address::decode(address);
  if (!decoded) return fail(std::move(decoded.error()));
  auto link = link_of(peer);
  if (!link->attach(address, to_ns(deadline.at()))) {
    return fail(Errc::already_exists, "there is a channel", "connect", static_cast<int>(peer), "verbs");
  }
  return std::make_unique<VerbsChannel>(std::move(link));
}

void VerbsTransport::fence(PeerId peer) noexcept {
  control_->fence(peer);
  try {
    link_of(peer)->fence();
  } catch (const std::exception&) {  // there is no link yet, and no memory for one
  }
}

// --- progress ---

int VerbsTransport::progress(int budget) noexcept {
  if (fork_guard.in_forked_child()) return 0;
  const bool slept = std::exchange(slept_, false);
  asleep.store(false, std::memory_order_relaxed);
  if (!early_dropped_) {
    early_dropped_ = true;
    drop_early();  // of peers that are reached by something faster
  }
  int handled = 0;
  ++rounds_;
  if (slept) {
    std::uint64_t rings = 0;
    [[maybe_unused]] const auto got = ::read(bell.get(), &rings, sizeof rings);
    for (const auto& nic : nics) nic->clear_events();
  }
  for (const auto& nic : nics) handled += nic->poll(budget);
  if (slept || rounds_ % kDevicesEvery == 0) look_at_devices();
  const std::int64_t now = now_ns();
  if (slept || now >= next_control_) {
    const int came = control_->progress(budget);
    next_control_ = came > 0 ? 0 : now + kControlPause;
    handled += came;
    flush_control();
  }
  if (now >= next_call.load(std::memory_order_relaxed)) handled += on_time(now);
  return handled;
}

int VerbsTransport::on_time(std::int64_t now) noexcept {
  // Whoever wants an earlier call from here on lowers it again.
  next_call.store(kNever, std::memory_order_seq_cst);
  call_at(pool.relieve(now));
  int handled = 0;
  for (Link* link = first_link(); link != nullptr; link = link->next_link) {
    try {
      handled += link->drive(now);
    } catch (const std::exception&) {
      give_up(*link, Errc::resource_exhausted, "no memory to look after its queue pairs");
    }
    call_at(link->next_time());
  }
  flush_control();
  return handled;
}

void VerbsTransport::look_at_devices() noexcept {
  Nic::Event event;
  for (std::size_t i = 0; i < nics.size(); ++i) {
    while (nics[i]->next_event(event)) {
      for (Link* link = first_link(); link != nullptr; link = link->next_link) link->nic_changed(i, event);
    }
  }
}

bool VerbsTransport::prepare_sleep() noexcept {
  if (fork_guard.in_forked_child()) return true;
  asleep.store(true, std::memory_order_seq_cst);
  slept_ = true;
  for (const auto& nic : nics) nic->arm();
  int handled = 0;
  for (const auto& nic : nics) handled += nic->poll(64);  // what came before the request rings nothing
  const bool sleeps = handled == 0 && control_->prepare_sleep() && next_call.load(std::memory_order_seq_cst) > now_ns();
  if (!sleeps) asleep.store(false, std::memory_order_relaxed);
  return sleeps;
}

Deadline::Clock::time_point VerbsTransport::next_deadline() const noexcept {
  const std::int64_t when = next_call.load(std::memory_order_seq_cst);
  const auto control = control_->next_deadline();
  if (when == kNever) return control;
  return std::min(control, Deadline::Clock::time_point(std::chrono::nanoseconds(when)));
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
