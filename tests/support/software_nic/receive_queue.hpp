// Shared receive queues.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include <infiniband/verbs.h>

namespace dtr::software_nic {

/// Any thread.
class SharedReceiveQueue : public ibv_srq {
 public:
  SharedReceiveQueue(ibv_pd& domain, const ibv_srq_init_attr& attributes)
      : ibv_srq{},
        entries_(attributes.attr.max_wr),
        pieces_(static_cast<std::size_t>(attributes.attr.max_wr) * attributes.attr.max_sge),
        max_sge_(attributes.attr.max_sge) {
    context = domain.context;
    srq_context = attributes.srq_context;
    pd = &domain;
  }

  /// 0, EINVAL (too many pieces) or ENOMEM (full); then *bad is the first that was not taken.
  [[nodiscard]] int post(ibv_recv_wr* first, ibv_recv_wr** bad) noexcept {
    const std::lock_guard lock(mutex_);
    for (ibv_recv_wr* request = first; request != nullptr; request = request->next) {
      const bool wrong = request->num_sge < 0 || static_cast<std::uint32_t>(request->num_sge) > max_sge_;
      if (wrong || tail_ - head_ == entries_.size()) {
        *bad = request;
        return wrong ? EINVAL : ENOMEM;
      }
      const std::size_t slot = tail_++ % entries_.size();
      entries_[slot] = {.wr_id = request->wr_id, .count = request->num_sge};
      for (int i = 0; i < request->num_sge; ++i)
        pieces_[slot * max_sge_ + static_cast<std::size_t>(i)] = request->sg_list[i];
    }
    return 0;
  }

  struct Receive {
    std::uint64_t wr_id = 0;
    std::vector<ibv_sge> pieces{};
  };
  /// The oldest; false: there is none.
  [[nodiscard]] bool take(Receive& receive) {
    const std::lock_guard lock(mutex_);
    if (head_ == tail_) return false;
    const std::size_t slot = head_++ % entries_.size();
    const auto first = pieces_.begin() + static_cast<std::ptrdiff_t>(slot * max_sge_);
    receive.wr_id = entries_[slot].wr_id;
    receive.pieces.assign(first, first + entries_[slot].count);
    return true;
  }

  void attach() noexcept { users_.fetch_add(1, std::memory_order_relaxed); }
  void detach() noexcept { users_.fetch_sub(1, std::memory_order_relaxed); }
  [[nodiscard]] bool used() const noexcept { return users_.load(std::memory_order_relaxed) > 0; }

 private:
  struct Entry {
    std::uint64_t wr_id = 0;
    int count = 0;
  };

  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::vector<ibv_sge> pieces_;
  std::uint32_t max_sge_;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
  std::atomic<int> users_{0};
};

}  // namespace dtr::software_nic
