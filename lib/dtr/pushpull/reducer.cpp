#include "dtr/pushpull/reducer.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <unordered_map>

#include "dtr/base/log.hpp"
#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {

namespace {

/// While nobody pushes, the serving thread looks this often whether it shall stop.
constexpr auto kIdle = std::chrono::milliseconds(500);
/// Sums stay in the first-level cache while the tensors stream by.
constexpr std::size_t kBlock = 4096;

/// to = ((from[0] + from[1]) + from[2]) + ..., element by element.
void sum_in_order(std::span<float> to, std::span<const std::span<const float>> from) noexcept {
  for (std::size_t at = 0; at < to.size(); at += kBlock) {
    const std::size_t count = std::min(kBlock, to.size() - at);
    float* __restrict sum = to.data() + at;
    std::copy_n(from[0].data() + at, count, sum);
    for (std::size_t w = 1; w < from.size(); ++w) {
      const float* __restrict next = from[w].data() + at;
      for (std::size_t i = 0; i < count; ++i) sum[i] += next[i];
    }
  }
}

}  // namespace

class Reducer::Machine {
 public:
  Machine(Runtime& runtime, const ReducerOptions& options) : rt_(runtime), server_(runtime, {.group = options.group}) {}

  ~Machine() {
    thread_ = Thread();
    for (auto& set : sets_) static_cast<void>(release(set));
  }

  Result<void> serve(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      auto batch = server_.get_batch(kIdle);
      if (batch) {
        if (auto answered = reduce(*batch); !answered) return give_up(std::move(answered.error()));
        rounds_.fetch_add(1, std::memory_order_relaxed);
      } else if (batch.error().code == Errc::closed) {
        return drain();
      } else if (batch.error().code != Errc::timed_out) {
        return give_up(std::move(batch.error()));
      }
    }
    return fail(Errc::cancelled, "the Reducer was stopped", "serve");
  }

  Result<void> start() {
    if (thread_.joinable()) return fail(Errc::already_exists, "the Reducer serves already", "start");
    try {
      thread_ = Thread(
          [this](const std::stop_token& stop) {
            auto result = serve(stop);
            const std::lock_guard lock(mutex_);
            outcome_ = std::move(result);
            ended_.notify_all();
          },
          {.name = "dtr-reducer", .cpus = {}, .on_failure = {}});
    } catch (const Exception& e) {
      return fail(e.error());
    }
    return {};
  }

  Result<void> join(Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (!ended_.wait_until(lock, deadline.at(), [&] { return outcome_.has_value(); })) {
      return fail(Errc::timed_out, "the Reducer still serves", "join");
    }
    return *outcome_;
  }

  [[nodiscard]] std::uint64_t rounds() const noexcept { return rounds_.load(std::memory_order_relaxed); }

 private:
  /// The sums of one round, until all workers have them.
  struct Set {
    std::unordered_map<Key, Buffer> sums;
    std::vector<std::unique_ptr<fabric::Completion>> sent;  ///< by worker
  };

  /// Waits until a set's last answers are out of this process.
  Result<void> release(Set& set) {
    for (std::size_t w = 0; w < set.sent.size(); ++w) {
      const auto peer = static_cast<fabric::PeerId>(rt_.worker_rank(static_cast<int>(w)));
      auto done = rt_.fabric().wait(*set.sent[w], peer, "respond", rt_.operation_timeout());
      if (done) continue;
      if (!set.sent[w]->done()) {
        rt_.fabric().cancel(peer, *set.sent[w]);
        static_cast<void>(rt_.fabric().quiesce(peer, rt_.operation_timeout(), true));
      }
      return done;
    }
    return {};
  }

  Result<void> check(const std::vector<Request>& batch) const {
    const Request& first = batch.front();
    for (const Request& other : batch) {
      const auto differ = [&](const std::string& what) {
        return fail(Errc::invalid_argument,
                    what + " at worker rank " + std::to_string(rt_.worker_rank(first.worker)) + " and rank " +
                        std::to_string(rt_.worker_rank(other.worker)),
                    "push_pull");
      };
      if (other.pushes.size() != first.pushes.size()) {
        return differ("the round has " + std::to_string(first.pushes.size()) + " and " +
                      std::to_string(other.pushes.size()) + " pushes");
      }
      for (std::size_t i = 0; i < first.pushes.size(); ++i) {
        const auto& a = first.pushes[i];
        const auto& b = other.pushes[i];
        if (a.key != b.key)
          return differ("push " + std::to_string(i) + " is key " + std::to_string(a.key) + " and key " +
                        std::to_string(b.key));
        if (a.bytes.size() != b.bytes.size()) {
          return differ("key " + std::to_string(a.key) + " has " + std::to_string(a.bytes.size()) + " and " +
                        std::to_string(b.bytes.size()) + " bytes");
        }
        if (a.bytes.size() % sizeof(float) != 0) {
          return differ("key " + std::to_string(a.key) + " is no row of f32, with " + std::to_string(a.bytes.size()) +
                        " bytes");
        }
      }
      for (const auto& pull : other.pulls) {
        const auto pushed = std::find_if(first.pushes.begin(), first.pushes.end(),
                                         [&](const auto& push) { return push.key == pull.key; });
        if (pushed == first.pushes.end()) return differ("key " + std::to_string(pull.key) + " is pulled, not pushed,");
        if (pushed->bytes.size() != pull.bytes) {
          return differ("key " + std::to_string(pull.key) + " is pushed with " + std::to_string(pushed->bytes.size()) +
                        " and pulled with " + std::to_string(pull.bytes) + " bytes");
        }
      }
    }
    return {};
  }

  Result<void> reduce(const std::vector<Request>& batch) {
    if (auto fits = check(batch); !fits) {
      for (const Request& request : batch) static_cast<void>(server_.refuse(request, fits.error()));
      return {};
    }
    // Two sets in turn: one is summed into while the other is still on its way out.
    Set& set = sets_[rounds_.load(std::memory_order_relaxed) % sets_.size()];
    if (auto released = release(set); !released) return released;
    set.sent.resize(batch.size());
    for (auto& sent : set.sent) {
      if (sent == nullptr) sent = std::make_unique<fabric::Completion>();
      sent->reset();
    }
    std::vector<std::span<const float>> terms(batch.size());
    for (std::size_t i = 0; i < batch.front().pushes.size(); ++i) {
      const auto& push = batch.front().pushes[i];
      Buffer& sum = set.sums[push.key];
      if (sum.size() != push.bytes.size()) {
        sum.reset();
        auto memory = rt_.allocate(push.bytes.size());
        if (!memory) return fail(std::move(memory.error()));
        sum = std::move(*memory);
      }
      for (std::size_t w = 0; w < batch.size(); ++w) terms[w] = batch[w].pushes[i].as<float>();
      sum_in_order(sum.as<float>(), terms);
    }
    std::vector<ConstTensor> answers;
    for (std::size_t w = 0; w < batch.size(); ++w) {
      answers.clear();
      for (const auto& pull : batch[w].pulls) answers.emplace_back(set.sums[pull.key]);
      if (auto sent = server_.respond(batch[w], answers, *set.sent[w]); !sent) return sent;
    }
    return {};
  }

  Result<void> drain() {
    for (Set& set : sets_) {
      if (auto released = release(set); !released) return released;
    }
    return {};
  }

  Result<void> give_up(Error error) {
    server_.fail_all(error);
    error.operation = "serve";
    return fail(std::move(error));
  }

  Runtime& rt_;
  Server server_;
  std::array<Set, 2> sets_;
  std::atomic<std::uint64_t> rounds_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<Result<void>> outcome_;
  Thread thread_;
};

Reducer::Reducer(Runtime& runtime, ReducerOptions options) : machine_(std::make_unique<Machine>(runtime, options)) {}

Reducer::~Reducer() = default;

Result<void> Reducer::serve() { return machine_->serve({}); }

Result<void> Reducer::start() { return machine_->start(); }

Result<void> Reducer::join(Deadline deadline) { return machine_->join(deadline); }

std::uint64_t Reducer::rounds() const noexcept { return machine_->rounds(); }

}  // namespace dtr::inline v0
