#include "dtr/bootstrap/mpi.hpp"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "dtr/base/fork_guard.hpp"
#include "dtr/bootstrap/detail/mpi_process.hpp"

namespace dtr::inline v0 {
namespace bootstrap {
namespace {

class MpiBootstrap final : public Bootstrap {
 public:
  /// Takes over one use of MpiProcess and a communicator that nobody else uses.
  MpiBootstrap(MPI_Comm comm, int rank, int size) : comm_(comm), rank_(rank), size_(size) {}

  MpiBootstrap(const MpiBootstrap&) = delete;
  MpiBootstrap& operator=(const MpiBootstrap&) = delete;

  ~MpiBootstrap() override {
    if (open_ && !fork_guard_.in_forked_child()) static_cast<void>(finalize(false, Deadline(std::chrono::seconds(0))));
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }

  [[nodiscard]] Result<std::vector<std::vector<std::byte>>> exchange(std::span<const std::byte> mine,
                                                                     Deadline deadline) override;
  [[nodiscard]] Result<std::unique_ptr<Bootstrap>> split(int color, Deadline deadline) override;
  [[nodiscard]] Result<void> barrier(Deadline deadline, const Poll& poll) override;
  Result<void> finalize(bool everyone_alive, Deadline deadline) override;
  void on_mpi_finalize(std::function<void()> callback) override;

 private:
  [[nodiscard]] Result<void> usable(const char* operation) const;
  [[nodiscard]] Result<bool> all_done(const char* operation);
  [[nodiscard]] Result<void> wait_all(const char* operation, Deadline deadline, const Poll& poll);

  /// What an exchange hands to MPI. If the wait is given up it is never freed, since MPI may still read and write it.
  struct ExchangeBuffers {
    std::vector<std::byte> mine;
    std::uint64_t my_size = 0;
    std::vector<std::uint64_t> sizes;
    std::vector<int> counts, offsets;
    std::vector<std::byte> all;
  };

  MPI_Comm comm_;
  const int rank_;
  const int size_;
  const ForkGuard fork_guard_;
  bool open_ = true;
  bool exchange_given_up_ = false;
  std::vector<MPI_Request> pending_;  // in the order of their start, which is also how they match
  std::optional<int> hook_;
};

Result<void> MpiBootstrap::usable(const char* operation) const {
  if (auto r = fork_guard_.check(operation); !r) return r;
  if (!open_) return fail(Errc::closed, "after finalize", operation);
  if (exchange_given_up_) return fail(Errc::closed, "an earlier exchange was given up", operation);
  return {};
}

Result<bool> MpiBootstrap::all_done(const char* operation) {
  auto lock = MpiProcess::instance().enter(operation);
  if (!lock) return fail(std::move(lock.error()));
  while (!pending_.empty()) {
    int done = 0;
    if (auto r = checked(MPI_Test(&pending_.front(), &done, MPI_STATUS_IGNORE), operation); !r) {
      return fail(std::move(r.error()));
    }
    if (done == 0) return false;
    pending_.erase(pending_.begin());
  }
  return true;
}

Result<void> MpiBootstrap::wait_all(const char* operation, Deadline deadline, const Poll& poll) {
  Backoff backoff;
  while (true) {
    auto done = all_done(operation);
    if (!done) return fail(std::move(done.error()));
    if (*done) return {};
    if (poll) {
      if (auto r = poll(); !r) return r;
    }
    if (deadline.passed()) return fail(Errc::timed_out, "not every rank came", operation);
    backoff.pause(deadline);
  }
}

Result<void> MpiBootstrap::barrier(Deadline deadline, const Poll& poll) {
  if (auto r = usable("barrier"); !r) return r;
  {
    auto lock = MpiProcess::instance().enter("barrier");
    if (!lock) return fail(std::move(lock.error()));
    MPI_Request request = MPI_REQUEST_NULL;
    if (auto r = checked(MPI_Ibarrier(comm_, &request), "barrier"); !r) return r;
    pending_.push_back(request);
  }
  return wait_all("barrier", deadline, poll);
}

Result<std::vector<std::vector<std::byte>>> MpiBootstrap::exchange(std::span<const std::byte> mine, Deadline deadline) {
  if (auto r = usable("exchange"); !r) return fail(std::move(r.error()));
  auto buffers = std::make_unique<ExchangeBuffers>();
  const auto ranks = static_cast<std::size_t>(size_);

  // Starts one collective and waits for it; whatever goes wrong then, the buffers belong to MPI.
  const auto collective = [&](auto start) -> Result<void> {
    {
      auto lock = MpiProcess::instance().enter("exchange");
      if (!lock) return fail(std::move(lock.error()));
      MPI_Request request = MPI_REQUEST_NULL;
      if (auto r = checked(start(&request), "exchange"); !r) return r;
      pending_.push_back(request);
    }
    auto r = wait_all("exchange", deadline, {});
    if (!r) {
      exchange_given_up_ = true;
      static_cast<void>(buffers.release());
    }
    return r;
  };

  buffers->my_size = mine.size();
  buffers->sizes.resize(ranks);
  if (auto r = collective([&](MPI_Request* request) {
        return MPI_Iallgather(&buffers->my_size, 1, MPI_UINT64_T, buffers->sizes.data(), 1, MPI_UINT64_T, comm_,
                              request);
      });
      !r) {
    return fail(std::move(r.error()));
  }

  // Every rank sees the same sizes, so that all of them take the same way out here.
  constexpr std::uint64_t kLimit = std::numeric_limits<int>::max();
  std::uint64_t total = 0;
  for (const std::uint64_t size : buffers->sizes) {
    if (size > kLimit - total) {
      return fail(Errc::resource_exhausted, "the blobs of all ranks exceed 2 GiB together", "exchange");
    }
    buffers->offsets.push_back(static_cast<int>(total));
    buffers->counts.push_back(static_cast<int>(size));
    total += size;
  }
  buffers->mine.assign(mine.begin(), mine.end());
  buffers->all.resize(total);
  if (auto r = collective([&](MPI_Request* request) {
        return MPI_Iallgatherv(buffers->mine.data(), static_cast<int>(mine.size()), MPI_BYTE, buffers->all.data(),
                               buffers->counts.data(), buffers->offsets.data(), MPI_BYTE, comm_, request);
      });
      !r) {
    return fail(std::move(r.error()));
  }

  std::vector<std::vector<std::byte>> blobs;
  blobs.reserve(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto first = buffers->all.begin() + buffers->offsets[r];
    blobs.emplace_back(first, first + buffers->counts[r]);
  }
  return blobs;
}

Result<std::unique_ptr<Bootstrap>> MpiBootstrap::split(int color, Deadline deadline) {
  if (auto r = usable("split"); !r) return fail(std::move(r.error()));
  // MPI_Comm_split has no deadline; the barrier before it has one, and after it everybody is there.
  if (auto r = barrier(deadline, {}); !r) return fail(std::move(r.error()));
  MPI_Comm part = MPI_COMM_NULL;
  int rank = 0;
  int size = 0;
  {
    auto lock = MpiProcess::instance().enter("split");
    if (!lock) return fail(std::move(lock.error()));
    auto r = checked(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, rank_, &part), "split");
    if (!r) return fail(std::move(r.error()));
    if (part == MPI_COMM_NULL) return nullptr;
    if (r = checked(MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN), "split"); !r) return fail(std::move(r.error()));
    if (r = checked(MPI_Comm_rank(part, &rank), "split"); !r) return fail(std::move(r.error()));
    if (r = checked(MPI_Comm_size(part, &size), "split"); !r) return fail(std::move(r.error()));
  }
  if (auto r = MpiProcess::instance().acquire(false); !r) return fail(std::move(r.error()));
  return std::make_unique<MpiBootstrap>(part, rank, size);
}

Result<void> MpiBootstrap::finalize(bool everyone_alive, Deadline deadline) {
  if (!open_) return {};
  if (auto r = fork_guard_.check("finalize"); !r) return r;
  auto& process = MpiProcess::instance();
  Result<void> result;
  bool clean = everyone_alive;
  if (everyone_alive) {
    auto done = all_done("finalize");
    if (!done && done.error().code == Errc::unsupported)
      return fail(std::move(done.error()));  // try on the main thread
    if (!done) {
      result = fail(std::move(done.error()));
    } else if (!*done) {
      result = fail(Errc::busy, "a barrier that was given up is still open; the communicator is kept", "finalize");
    } else if (auto lock = process.enter("finalize"); lock) {
      result = checked(MPI_Comm_free(&comm_), "finalize");
    } else {
      result = fail(std::move(lock.error()));
    }
    clean = result.has_value();
  }
  open_ = false;
  if (hook_) process.remove_hook(*hook_);
  hook_.reset();
  auto released = process.release(clean, deadline);
  return result ? released : result;
}

void MpiBootstrap::on_mpi_finalize(std::function<void()> callback) {
  if (!open_ || fork_guard_.in_forked_child()) return;
  if (hook_) MpiProcess::instance().remove_hook(*hook_);
  hook_ = MpiProcess::instance().add_hook(std::move(callback));
}

Result<std::unique_ptr<Bootstrap>> duplicate(MPI_Comm comm, Deadline deadline) {
  auto lock = MpiProcess::instance().enter("bootstrap");
  if (!lock) return fail(std::move(lock.error()));
  int between = 0;
  if (auto r = checked(MPI_Comm_test_inter(comm, &between), "bootstrap"); !r) return fail(std::move(r.error()));
  if (between != 0) return fail(Errc::invalid_argument, "an intercommunicator has two sides", "bootstrap");

  // On the heap: if the wait is given up, MPI may still write the new communicator's handle.
  auto copy = std::make_unique<MPI_Comm>(MPI_COMM_NULL);
  MPI_Request request = MPI_REQUEST_NULL;
  if (auto r = checked(MPI_Comm_idup(comm, copy.get(), &request), "bootstrap"); !r) return fail(std::move(r.error()));
  Backoff backoff;
  int done = 0;
  while (true) {
    auto r = checked(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "bootstrap");
    if (r && done != 0) break;
    if (!r || deadline.passed()) {
      static_cast<void>(copy.release());
      return r ? fail(Errc::timed_out, "not every rank came", "bootstrap") : fail(std::move(r.error()));
    }
    backoff.pause(deadline);
  }
  int rank = 0;
  int size = 0;
  auto r = checked(MPI_Comm_set_errhandler(*copy, MPI_ERRORS_RETURN), "bootstrap");
  if (r) r = checked(MPI_Comm_rank(*copy, &rank), "bootstrap");
  if (r) r = checked(MPI_Comm_size(*copy, &size), "bootstrap");
  if (!r) return fail(std::move(r.error()));
  return std::make_unique<MpiBootstrap>(*copy, rank, size);
}

Result<std::unique_ptr<Bootstrap>> make(MPI_Comm comm, bool may_start, Deadline deadline) {
  if (auto r = MpiProcess::instance().acquire(may_start); !r) return fail(std::move(r.error()));
  auto made = duplicate(comm, deadline);
  if (!made) static_cast<void>(MpiProcess::instance().release(false, deadline));
  return made;
}

}  // namespace
}  // namespace bootstrap

Result<std::unique_ptr<Bootstrap>> world_bootstrap(Deadline deadline) {
  return bootstrap::make(MPI_COMM_WORLD, true, deadline);
}

Result<std::unique_ptr<Bootstrap>> mpi_bootstrap(MPI_Comm comm, Deadline deadline) {
  if (comm == MPI_COMM_NULL) return fail(Errc::invalid_argument, "the communicator is MPI_COMM_NULL", "bootstrap");
  return bootstrap::make(comm, false, deadline);
}

}  // namespace dtr::inline v0
