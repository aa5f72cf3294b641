#include "dtr/fabric/shm/flag_lines.hpp"

#include <algorithm>
#include <new>

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

std::uint64_t next_id() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace

thread_local constinit RecentLine recent_line;

/// All lines of one thread. Gives them back when the thread ends.
struct ThreadLines {
  struct Held {
    std::shared_ptr<FlagLines> lines;
    FlagLine* line;
  };
  std::vector<Held> held;

  ThreadLines() = default;
  ~ThreadLines() {
    recent_line = {};
    for (const Held& each : held) each.lines->give_back(*each.line);
  }
  ThreadLines(const ThreadLines&) = delete;
  ThreadLines& operator=(const ThreadLines&) = delete;
};

namespace {

thread_local ThreadLines thread_lines;

}  // namespace

FlagLines::FlagLines(Control control) : id_(next_id()), control_(std::move(control)) {
  free_.reserve(ControlBlock::kLines);
  for (std::uint32_t i = ControlBlock::kLines - 1; i-- > 0;) free_.push_back(&control_->lines[i]);
}

bool FlagLines::inside(PeerId peer) const noexcept {
  return std::any_of(control_->lines.begin(), control_->lines.end(), [&](const FlagLine& line) {
    return FlagLine::is_inside(line.raised.load(std::memory_order_seq_cst), peer);
  });
}

FlagLine* FlagLines::find_or_take() noexcept {
  auto& held = thread_lines.held;
  auto known = std::find_if(held.begin(), held.end(), [&](const auto& each) { return each.lines.get() == this; });
  if (known == held.end()) {
    held.erase(std::remove_if(held.begin(), held.end(), [](const auto& each) { return each.lines->retired_.load(); }),
               held.end());
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return nullptr;
    try {
      held.push_back({shared_from_this(), free_.back()});
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    free_.pop_back();
    known = std::prev(held.end());
  }
  recent_line = {id_, known->line};
  return known->line;
}

void FlagLines::give_back(FlagLine& line) noexcept {
  if (fork_guard_.in_forked_child()) return;  // the line is the parent's
  const std::lock_guard lock(mutex_);
  free_.push_back(&line);
}

void RaisedFlag::share(FlagLines& lines) noexcept {
  lines.shared_line_.lock();
  shared_ = &lines.shared_line_;
  line_ = &lines.control_->lines.back();
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
