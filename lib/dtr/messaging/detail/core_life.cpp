// How a Messenger begins and ends.
#include <algorithm>
#include <thread>

#include "dtr/base/log.hpp"
#include "dtr/messaging/detail/core.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

/// How long a Messenger that ends waits for the word of its peers.
constexpr auto kPartBound = std::chrono::milliseconds(500);

Thresholds chosen(Runtime& runtime, MessengerOptions& options) {
  if (options.thresholds) return std::move(*options.thresholds);
  return value_or_throw(Thresholds::from(runtime.config()));
}

}  // namespace

Messenger::Core::Core(Runtime& runtime, MessengerOptions options)
    : runtime_(runtime),
      fabric_(runtime.fabric()),
      thresholds_(chosen(runtime, options)),
      counts_(runtime.metrics(), options.group),
      port_(value_or_throw(runtime.service_port("messaging", options.group))),
      slot_bytes_(static_cast<std::uint32_t>(runtime.config().integer("messages.slot_bytes"))),
      slot_count_(static_cast<std::uint32_t>(runtime.config().integer("messages.slot_count"))),
      operations_(std::make_unique<OperationTable>()),
      peers_(fabric_.size()),
      packet_(fabric_.max_message()) {
  if (fabric_.max_message() < kLargestHead) {
    throw Exception({.code = Errc::config_error,
                     .message = "messages need a fabric.eager_bytes of " + std::to_string(kLargestHead) +
                                " or more, not " + std::to_string(fabric_.max_message()),
                     .operation = "make messenger"});
  }
  value_or_throw(fabric_.progress().add(*this));
  if (auto opened = fabric_.open_port(port_, *this); !opened) {
    fabric_.progress().remove(*this);
    throw Exception(opened.error());
  }
}

Messenger::Core::~Core() {
  if (fork_guard_.in_forked_child()) {
    // The parent's: giving memory back would take locks that one of its threads may have held.
    static_cast<void>(operations_.release());
    leases_.abandon();
    for (auto& each : peers_) static_cast<void>(each.release());
    return;
  }
  part();
  fabric_.close_port(port_);
  fabric_.progress().remove(*this);
  for (const auto& each : peers_) {
    if (each == nullptr) continue;
    // What a peer may still write into, or the fabric read, is nobody else's until the Runtime ends.
    if (!each->parted && fabric_.peer_state(each->id) != Errc::peer_left) {
      each->ours.memory.abandon();
      // It may be reading, and other words there would lead it astray.
      if (each->met && each->id != fabric_.self()) leases_.abandon();
    }
    drop_copies(each->theirs);
  }
  const bool told =
      std::all_of(zombies_.begin(), zombies_.end(), [](const Operation* z) { return z->completion.done(); });
  if (!told) {
    DTR_LOG_ERROR("a messenger ends before the fabric has let go of its messages");
    static_cast<void>(operations_.release());
  }
}

/// Says goodbye, and waits until nobody puts anything any more, in either direction.
void Messenger::Core::part() noexcept {
  std::vector<Peer*> met;
  {
    Lock lock(mutex_);
    closing_ = true;
    while (!end_all(Errc::closed, "the messenger has ended")) {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
    for (Peer* each : active_) each->takes.clear();                     // the goodbye says that nothing more comes
    for (std::uint32_t slot = 0; slot < operations_->size(); ++slot) {  // nobody asks for their outcome any more
      Operation& left = *operations_->at(slot);
      if (left.stage != Stage::ended) continue;
      OperationTable::outdate(left);
      zombies_.push_back(&left);
    }
    for (const auto& each : peers_) {
      if (each == nullptr || !each->met || each->id == fabric_.self()) continue;
      if (fabric_.peer_state(each->id) != Errc::ok) continue;
      met.push_back(each.get());
      if (each->parted) continue;
      const Head bye{.kind = Kind::bye};
      each->said_bye = true;
      tell(*each, &bye, sizeof bye, nullptr, true);
    }
  }
  const auto quiet = [&]() noexcept {
    const Lock lock(mutex_);
    return std::all_of(met.begin(), met.end(),
                       [&](const Peer* each) { return each->parted || fabric_.peer_state(each->id) != Errc::ok; }) &&
           std::all_of(zombies_.begin(), zombies_.end(), [](const Operation* z) { return z->completion.done(); });
  };
  {
    const EndWait wait(runtime_, kPartBound);
    static_cast<void>(fabric_.progress().wait(quiet, wait.deadline()));
  }
  const auto end_request = [&](fabric::PeerId to, fabric::Completion& completion) {
    if (!completion.done()) fabric_.cancel(to, completion);
  };
  for (Operation* zombie : zombies_) end_request(zombie->peer, zombie->completion);
  for (const auto& each : peers_) {
    for (std::uint32_t i = 0; each != nullptr && each->theirs.puts != nullptr && i < each->theirs.put_count; ++i) {
      end_request(each->id, each->theirs.puts[i]);
    }
  }
}

}  // namespace dtr::inline v0
