// The objects made on a device, with the limits on their number and size.
#include <algorithm>
#include <cerrno>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

namespace {

/// nullptr with errno set.
std::nullptr_t refused(int error) noexcept {
  errno = error;
  return nullptr;
}

}  // namespace

Context::Context(Device& made_by) : ibv_context{}, owner(made_by) {
  device = made_by.handle();
  async_fd = events.fd();
  cmd_fd = -1;
  num_comp_vectors = 1;
}

bool Device::refuses(std::size_t count, int limit) const noexcept {
  return count >= static_cast<std::size_t>(std::max(limit, 0));
}

Context* Device::open() noexcept {
  if (broken()) return refused(EIO);
  auto made = std::make_unique<Context>(*this);
  if (made->async_fd < 0) return nullptr;
  Context* context = made.get();
  const std::unique_lock lock(mutex_);
  contexts_[context] = std::move(made);
  return context;
}

void Device::close(Context& context) noexcept {
  // As the kernel does: what the program has not destroyed goes with the context.
  for (const std::shared_ptr<QueuePair>& queue_pair : queue_pairs()) {
    if (queue_pair->context == &context) static_cast<void>(drop_queue_pair(*queue_pair));
  }
  memory_.remove_all(context);
  const std::unique_lock lock(mutex_);
  const auto of_context = [&](const auto& entry) { return entry.second->context == &context; };
  std::erase_if(queues_, of_context);
  std::erase_if(receives_, of_context);
  std::erase_if(channels_, of_context);
  std::erase_if(domains_, of_context);
  contexts_.erase(&context);
}

ibv_pd* Device::make_domain(ibv_context& context) noexcept {
  if (broken()) return refused(EIO);
  const std::unique_lock lock(mutex_);
  if (refuses(domains_.size(), options_.max_pd)) return refused(ENOMEM);
  auto made = std::make_unique<ProtectionDomain>();
  made->context = &context;
  ProtectionDomain* domain = made.get();
  domains_[domain] = std::move(made);
  return domain;
}

int Device::drop_domain(ibv_pd& domain) noexcept {
  const std::unique_lock lock(mutex_);
  const auto found = domains_.find(&domain);
  if (found == domains_.end()) return EINVAL;
  const bool used = found->second->users.load() > 0 || memory_.uses(domain);
  if (used) return EBUSY;
  domains_.erase(found);
  return 0;
}

CompletionChannel* Device::make_channel(ibv_context& context) noexcept {
  if (broken()) return refused(EIO);
  auto made = std::make_unique<CompletionChannel>(context);
  if (made->fd < 0) return nullptr;
  CompletionChannel* channel = made.get();
  const std::unique_lock lock(mutex_);
  channels_[channel] = std::move(made);
  return channel;
}

int Device::drop_channel(CompletionChannel& channel) noexcept {
  const std::unique_lock lock(mutex_);
  if (channel.used()) return EBUSY;
  return channels_.erase(&channel) == 1 ? 0 : EINVAL;
}

CompletionQueue* Device::make_queue(ibv_context& context, int entries, void* user, ibv_comp_channel* channel) noexcept {
  if (broken()) return refused(EIO);
  if (entries < 1 || entries > options_.max_cqe) return refused(EINVAL);
  const std::unique_lock lock(mutex_);
  if (refuses(queues_.size(), options_.max_cq)) return refused(ENOMEM);
  auto* events = static_cast<CompletionChannel*>(channel);
  auto made = std::make_unique<CompletionQueue>(context, entries, user, events);
  CompletionQueue* queue = made.get();
  queues_[queue] = std::move(made);
  if (events != nullptr) events->join();
  return queue;
}

int Device::drop_queue(CompletionQueue& queue) noexcept {
  if (queue.used()) return EBUSY;
  auto* events = static_cast<CompletionChannel*>(queue.channel);
  if (events != nullptr) events->forget(queue);
  if (!queue.quiet() || !static_cast<Context*>(queue.context)->events.forget(&queue)) return EBUSY;
  const std::unique_lock lock(mutex_);
  if (events != nullptr) events->leave();
  return queues_.erase(&queue) == 1 ? 0 : EINVAL;
}

SharedReceiveQueue* Device::make_receives(ibv_pd& domain, ibv_srq_init_attr& attributes) noexcept {
  if (broken()) return refused(EIO);
  const ibv_srq_attr& wanted = attributes.attr;
  if (wanted.max_wr == 0 || wanted.max_wr > static_cast<std::uint32_t>(std::max(options_.max_srq_wr, 0)) ||
      wanted.max_sge > static_cast<std::uint32_t>(options_.max_srq_sge)) {
    return refused(EINVAL);
  }
  const std::unique_lock lock(mutex_);
  if (refuses(receives_.size(), options_.max_srq)) return refused(ENOMEM);
  auto made = std::make_unique<SharedReceiveQueue>(domain, attributes);
  SharedReceiveQueue* queue = made.get();
  receives_[queue] = std::move(made);
  ++static_cast<ProtectionDomain&>(domain).users;
  return queue;
}

int Device::drop_receives(SharedReceiveQueue& queue) noexcept {
  if (queue.used()) return EBUSY;
  const std::unique_lock lock(mutex_);
  --static_cast<ProtectionDomain*>(queue.pd)->users;
  return receives_.erase(&queue) == 1 ? 0 : EINVAL;
}

QueuePair* Device::make_queue_pair(ibv_pd& domain, ibv_qp_init_attr& attributes) noexcept {
  if (broken()) return refused(EIO);
  if (attributes.qp_type != IBV_QPT_RC) return refused(EOPNOTSUPP);
  if (attributes.send_cq == nullptr || attributes.recv_cq == nullptr) return refused(EINVAL);
  const ibv_qp_cap& wanted = attributes.cap;
  const auto limit = [](int value) { return static_cast<std::uint32_t>(std::max(value, 0)); };
  if (wanted.max_send_wr > limit(options_.max_qp_wr) || wanted.max_recv_wr > limit(options_.max_qp_wr) ||
      wanted.max_send_sge > limit(options_.max_sge) || wanted.max_recv_sge > limit(options_.max_sge) ||
      wanted.max_inline_data > limit(options_.max_inline)) {
    return refused(EINVAL);
  }
  const auto here = [&](const ibv_context* context) { return context == domain.context; };
  if (!here(attributes.send_cq->context) || !here(attributes.recv_cq->context) ||
      (attributes.srq != nullptr && !here(attributes.srq->context))) {
    return refused(EINVAL);
  }
  const std::unique_lock lock(mutex_);
  if (refuses(queue_pairs_.size(), options_.max_qp)) return refused(ENOMEM);
  if (attributes.srq != nullptr) attributes.cap.max_recv_wr = attributes.cap.max_recv_sge = 0;
  auto made = std::make_shared<QueuePair>(*this, domain, attributes, network_->next_qp_number());
  made->send_queue().attach();
  made->receive_queue().attach();
  if (made->shared_receives() != nullptr) made->shared_receives()->attach();
  ++static_cast<ProtectionDomain&>(domain).users;
  QueuePair* queue_pair = made.get();
  queue_pairs_[queue_pair->qp_num] = std::move(made);
  return queue_pair;
}

int Device::drop_queue_pair(QueuePair& queue_pair) noexcept {
  std::shared_ptr<QueuePair> going = find_queue_pair(queue_pair.qp_num);
  if (going.get() != &queue_pair) return EINVAL;
  {
    const std::unique_lock lock(mutex_);
    queue_pairs_.erase(queue_pair.qp_num);
  }
  going->destroy();
  going->send_queue().detach();
  going->receive_queue().detach();
  if (going->shared_receives() != nullptr) going->shared_receives()->detach();
  --static_cast<ProtectionDomain*>(going->pd)->users;
  static_cast<void>(static_cast<Context*>(going->context)->events.forget(going.get()));
  return 0;
}

std::shared_ptr<QueuePair> Device::find_queue_pair(std::uint32_t number) const {
  const std::shared_lock lock(mutex_);
  const auto found = queue_pairs_.find(number);
  return found == queue_pairs_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<QueuePair>> Device::queue_pairs() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<QueuePair>> all;
  for (const auto& [number, queue_pair] : queue_pairs_) all.push_back(queue_pair);
  return all;
}

std::size_t Device::objects() const {
  const std::shared_lock lock(mutex_);
  return contexts_.size() + domains_.size() + channels_.size() + queues_.size() + receives_.size() +
         queue_pairs_.size() + static_cast<std::size_t>(memory_.count());
}

}  // namespace dtr::software_nic
