#include "dtr/pushpull/detail/server_core.hpp"

#include <algorithm>
#include <string>
#include <thread>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr int kHighestGroup = 31;
constexpr auto kGoodbyeBound = std::chrono::seconds(1);

}  // namespace

ServerCore::ServerCore(Runtime& runtime, int group, const char* operation)
    : runtime_(runtime),
      fabric_(runtime.fabric()),
      operation_(operation),
      slots_each_(static_cast<std::uint32_t>(runtime.config().integer("pushpull.slots"))) {
  const auto refuse = [&](Errc code, std::string words) {
    throw Exception({.code = code, .message = std::move(words), .operation = operation_});
  };
  if (!runtime.is_server())
    refuse(Errc::invalid_argument, "rank " + std::to_string(runtime.rank()) + " is not a server");
  if (group < 0 || group > kHighestGroup) {
    refuse(Errc::out_of_range, "groups are 0 to " + std::to_string(kHighestGroup) + ", not " + std::to_string(group));
  }
  if (fabric_.max_message() < kSmallestMessage) {
    refuse(Errc::invalid_argument, "fabric.eager_bytes is " + std::to_string(fabric_.max_message()) +
                                       "; push_pull needs at least " + std::to_string(kSmallestMessage));
  }
  worker_port_ = value_or_throw(runtime.service_port("pushpull worker", group));
  server_port_ = value_or_throw(runtime.service_port("pushpull server", group));
  for (int worker = 0; worker < runtime.workers(); ++worker) {
    WorkerState& state = workers_.emplace_back(runtime_);
    state.fetches = fabric_.path(static_cast<fabric::PeerId>(rank_of(worker))).transport == "shm";
  }
}

void ServerCore::start() {
  {
    const std::lock_guard lock(mutex_);
    for (int worker = 0; worker < workers(); ++worker) {  // who went before the port is open is not told any more
      const auto peer = static_cast<fabric::PeerId>(rank_of(worker));
      if (fabric_.peer_state(peer) == Errc::ok) continue;
      workers_[static_cast<std::size_t>(worker)].standing.gone = fabric_.peer_error(peer, operation_);
      note_news();
    }
  }
  value_or_throw(fabric_.open_port(server_port_, *this));
  open_ = true;
}

ServerCore::~ServerCore() {
  if (fork_guard_.in_forked_child()) return;
  if (open_) {
    break_all(
        {.code = Errc::closed, .message = "the server has ended", .operation = operation_, .peer = runtime_.rank()});
    {
      const EndWait wait(runtime_, kGoodbyeBound);
      static_cast<void>(fabric_.progress().wait([this]() noexcept { return !anyone_present(); }, wait.deadline()));
    }
    fabric_.close_port(server_port_);
  }
  for (ServerFragment& fragment : fragments_) {  // the response first: it must not speak of puts that are cancelled
    const auto peer = static_cast<fabric::PeerId>(rank_of(fragment.worker));
    if (!fragment.response.done()) fabric_.cancel(peer, fragment.response);
    for (PullAnswer& put : fragment.puts) {
      if (!put.done()) fabric_.cancel(peer, put);
    }
  }
  while (open_posts_.load(std::memory_order_acquire) > 0) {
    if (!fabric_.progress().poll()) std::this_thread::yield();
  }
}

int ServerCore::worker_of(fabric::PeerId peer) const noexcept {
  return peer < workers_.size() ? static_cast<int>(peer) : -1;  // workers are the first ranks
}

void ServerCore::take(std::vector<ServerFragment*>& arrived) {
  news_.store(false, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  const std::int64_t now = arrived_front_ == nullptr ? 0 : monotonic_ns();
  for (ServerFragment* fragment = arrived_front_; fragment != nullptr; fragment = fragment->next) {
    fragment->processed_ns = now;
    arrived.push_back(fragment);
  }
  arrived_front_ = arrived_back_ = nullptr;
}

ServerCore::Standing ServerCore::standing(int worker) {
  const std::lock_guard lock(mutex_);
  return workers_[static_cast<std::size_t>(worker)].standing;
}

bool ServerCore::anyone_present() noexcept {
  const std::lock_guard lock(mutex_);
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const WorkerState& state) { return state.epoch != 0 && !state.standing.gone; });
}

ServerFragment& ServerCore::fresh_fragment() {
  if (idle_.empty()) {
    idle_.reserve(fragments_.size() + 1);  // so that to give one back needs no memory
    ServerFragment& made = fragments_.emplace_back(&ServerCore::on_replied);
    made.response.core = this;
    made.response.of = &made;
    // Whatever it is used for later fits: a new peak is the only reason to ask for memory.
    const std::size_t message = fabric_.max_message();
    made.message.reserve(message);
    made.reply.reserve(message);
    made.pushes.reserve(message / sizeof(PushEntry));
    made.pulls.reserve(message / sizeof(PullEntry));
    made.offers.reserve(message / sizeof(PullEntry));
    return made;
  }
  ServerFragment& fragment = *idle_.back();
  idle_.pop_back();
  fragment.pushes.clear();
  fragment.pulls.clear();
  fragment.in_place = fragment.lost = false;
  fragment.cancelled = fragment.muted = fragment.answering = fragment.responded = fragment.retained = false;
  fragment.holds = fragment.answers = fragment.open_entries = 0;
  fragment.failure.reset();
  fragment.responded_ns = 0;
  fragment.response.reset();
  return fragment;
}

/// With the lock.
void ServerCore::recycle_if_over(ServerFragment& fragment) {
  if (!fragment.responded || fragment.response.open || fragment.holds > 0 || fragment.answers > 0) return;
  if (!fragment.offers.empty()) return;
  auto& live = workers_[static_cast<std::size_t>(fragment.worker)].live;
  live.erase(std::remove(live.begin(), live.end(), &fragment), live.end());
  idle_.push_back(&fragment);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
