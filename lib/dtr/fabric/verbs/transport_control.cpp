// The control connections: what the ends of the links say to each other, and who is gone.
#include <cstring>
#include <exception>
#include <thread>

#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::chrono::milliseconds kGoodbyeTime{500};
constexpr int kEverything = 1 << 16;

void log_shut_out(PeerId peer, std::string_view why) noexcept {
  try {
    DTR_LOG_WARN("verbs: rank ", peer, " broke the protocol and is shut out: ", why);
  } catch (const std::exception&) {  // a line less
  }
}

}  // namespace

void VerbsTransport::send_control(Link& link, std::vector<std::byte> message) noexcept {
  try {
    link.unsaid.push_back(std::move(message));
    ++unsaid_;
  } catch (const std::bad_alloc&) {
    link.lost_words = true;  // the two ends do not agree any more: the link gives the peer up
  }
  call_at(0);
}

void VerbsTransport::flush_control() noexcept {
  if (unsaid_ == 0) return;
  for (Link* link = first_link(); link != nullptr; link = link->next_link) {
    if (link->unsaid.empty()) continue;
    try {
      flush_control(*link);
    } catch (const std::exception&) {
      forget_unsaid(*link);
      give_up(*link, Errc::resource_exhausted, "no memory for the control connection");
    }
  }
}

void VerbsTransport::flush_control(Link& link) {
  while (!link.unsaid.empty()) {
    if (link.control == nullptr) {
      if (!link.knows_peer()) return forget_unsaid(link);
      auto channel = control_->connect(link.peer(), link.address().control, options.failure_detect);
      if (!channel) {
        forget_unsaid(link);
        return peer_down(link, channel.error().code, channel.error().to_string());
      }
      link.control = std::move(*channel);
    }
    const auto request = WorkRequest::send(0, link.unsaid.front(), nullptr);
    const PostResult result = link.control->post({&request, 1}, std::chrono::hours(24));
    if (result.accepted == 1) {
      link.unsaid.pop_front();
      --unsaid_;
    } else if (result.status.code == Errc::again) {
      return;
    } else {
      forget_unsaid(link);
      const Errc code = result.status.code;
      if (code != Errc::closed) peer_down(link, code, link.control->explain(result.status));
      return;
    }
  }
}

void VerbsTransport::forget_unsaid(Link& link) noexcept {
  unsaid_ -= link.unsaid.size();
  link.unsaid.clear();
}

void VerbsTransport::on_control(PeerId from, std::span<const std::byte> payload) noexcept {
  std::shared_ptr<Link> link;
  try {
    link = link_of(from);
    ControlMessage message;
    if (payload.size() < sizeof message) return give_up(*link, Errc::protocol_error, "a control message is too short");
    std::memcpy(&message, payload.data(), sizeof message);
    if (const char* why = malformed(message); why != nullptr) return give_up(*link, Errc::protocol_error, why);
    link->on_control(message, payload.subspan(sizeof message));
  } catch (const std::exception&) {
    if (link != nullptr) return give_up(*link, Errc::resource_exhausted, "no memory to agree on queue pairs");
    control_->fence(from);
  }
  call_at(0);
}

void VerbsTransport::on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept {
  // What the peer has sent before its goodbye comes first.
  if (code == Errc::peer_left) {
    for (const auto& nic : nics) nic->poll(kEverything);
  }
  try {
    peer_down(*link_of(peer), code, why);
  } catch (const std::exception&) {  // there was no link yet, and no memory for one
    context.receiver.on_peer_down(peer, code, why);
  }
}

void VerbsTransport::give_up(Link& link, Errc code, std::string_view why) noexcept {
  control_->fence(link.peer());
  if (code == Errc::protocol_error) log_shut_out(link.peer(), why);
  peer_down(link, code, why);
}

void VerbsTransport::peer_down(Link& link, Errc code, std::string_view why) noexcept {
  if (code == Errc::unreachable || code == Errc::timed_out || code == Errc::handshake_rejected ||
      code == Errc::protocol_error) {
    code = Errc::peer_failed;
  }
  forget_unsaid(link);
  link.peer_is_down(code, why);
  if (!link.told_down) context.receiver.on_peer_down(link.peer(), code, why);
  link.told_down = true;
}

// --- the end ---

void VerbsTransport::leave() noexcept {
  // The goodbye goes over the control connections, so they have to be up, and it has to be out.
  const auto drive_until = [&](auto&& done) {
    const Deadline deadline(kGoodbyeTime);
    while (!done() && !deadline.passed()) {
      if (control_->progress(64) == 0) std::this_thread::yield();
      flush_control();
    }
  };
  drive_until([&] { return unsaid_ == 0; });
  for (Link* link = first_link(); link != nullptr; link = link->next_link) {
    if (link->control != nullptr) link->control->close();
  }
  control_->leave();
  drive_until([&] {
    for (const Link* link = first_link(); link != nullptr; link = link->next_link) {
      const auto state = link->control == nullptr ? ChannelState::closed : link->control->state();
      if (state != ChannelState::closed && state != ChannelState::failed) return false;
    }
    return true;
  });
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
