// What MPI does with the same tasks as dtr_perf, between two ranks.
//   mpirun -n 2 bench_mpi_pair OP BYTES ITERATIONS, OP as in dtr_perf
// send_bw: windows of 64 messages, the last answered by a byte. put_lat: the target looks at its memory. put_bw and
// get_bw: back to back, one flush at the end. get_lat: each with its flush.
#include <memory>

#include <mpi.h>

#include "measure.hpp"

namespace {

constexpr int kWindow = 64;
constexpr int kTag = 1;

struct World {
  int rank = 0;
  [[nodiscard]] int other() const { return 1 - rank; }
};

/// Memory that the other rank reads and writes.
class Window {
 public:
  explicit Window(std::size_t bytes) {
    MPI_Win_allocate(static_cast<MPI_Aint>(bytes), 1, MPI_INFO_NULL, MPI_COMM_WORLD, &memory_, &window_);
    std::memset(memory_, 0, bytes);
    MPI_Win_lock_all(MPI_MODE_NOCHECK, window_);
    MPI_Barrier(MPI_COMM_WORLD);
  }
  ~Window() {
    MPI_Win_unlock_all(window_);
    MPI_Win_free(&window_);
  }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  void put(const std::vector<char>& from, int rank) const {
    const int bytes = static_cast<int>(from.size());
    MPI_Put(from.data(), bytes, MPI_CHAR, rank, 0, bytes, MPI_CHAR, window_);
  }
  void get(std::vector<char>& to, int rank) const {
    const int bytes = static_cast<int>(to.size());
    MPI_Get(to.data(), bytes, MPI_CHAR, rank, 0, bytes, MPI_CHAR, window_);
  }
  void flush(int rank) const { MPI_Win_flush(rank, window_); }
  [[nodiscard]] volatile char* memory() const { return memory_; }

  /// Until the byte at `place` is `value`. Over tcp that takes progress, which MPI makes only when called.
  void await(std::size_t place, char value) const {
    for (std::uint32_t turn = 1; memory()[place] != value; ++turn) {
      if (turn % 32 != 0) continue;
      int flag = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
      MPI_Win_sync(window_);
    }
  }

 private:
  MPI_Win window_ = MPI_WIN_NULL;
  char* memory_ = nullptr;
};

void send_latency(const World& world, const bench::Arguments& arguments) {
  std::vector<char> out(arguments.bytes, 1);
  std::vector<char> in(arguments.bytes);
  const int bytes = static_cast<int>(arguments.bytes);
  const auto send = [&] { MPI_Send(out.data(), bytes, MPI_CHAR, world.other(), kTag, MPI_COMM_WORLD); };
  const auto receive = [&] {
    MPI_Recv(in.data(), bytes, MPI_CHAR, world.other(), kTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  };
  auto each = bench::time_rounds(arguments.iterations, 0.5, [&] {
    if (world.rank == 0) send();
    receive();
    if (world.rank != 0) send();
  });
  if (world.rank != 0) return;
  const double total = bench::sum(each);
  bench::report(arguments, total, std::move(each));
}

/// All messages but the last `kWindow` at most are under way; the run ends with the receiver's word.
void stream(const World& world, std::uint64_t messages, const std::vector<char>& out, std::vector<char>& in) {
  std::vector<MPI_Request> requests(kWindow);
  const int bytes = static_cast<int>(out.size());
  while (messages > 0) {
    const int count = static_cast<int>(std::min<std::uint64_t>(messages, kWindow));
    for (int i = 0; i < count; ++i) {
      MPI_Request* request = &requests[static_cast<std::size_t>(i)];
      if (world.rank == 0) {
        MPI_Isend(out.data(), bytes, MPI_CHAR, 1, kTag, MPI_COMM_WORLD, request);
      } else {
        MPI_Irecv(in.data(), bytes, MPI_CHAR, 0, kTag, MPI_COMM_WORLD, request);
      }
    }
    MPI_Waitall(count, requests.data(), MPI_STATUSES_IGNORE);
    messages -= static_cast<std::uint64_t>(count);
  }
  char all_came = 0;
  if (world.rank == 0) {
    MPI_Recv(&all_came, 1, MPI_CHAR, 1, kTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  } else {
    MPI_Send(&all_came, 1, MPI_CHAR, 0, kTag, MPI_COMM_WORLD);
  }
}

void send_bandwidth(const World& world, const bench::Arguments& arguments) {
  const std::vector<char> out(arguments.bytes, 1);
  std::vector<char> in(arguments.bytes);
  stream(world, bench::warm_up(arguments.iterations), out, in);
  MPI_Barrier(MPI_COMM_WORLD);
  const double start = bench::now_us();
  stream(world, arguments.iterations, out, in);
  if (world.rank == 0) bench::report(arguments, bench::now_us() - start);
}

void put_latency(const World& world, const bench::Arguments& arguments) {
  const Window window(arguments.bytes);
  std::vector<char> out(arguments.bytes);
  char round = 0;
  auto each = bench::time_rounds(arguments.iterations, 0.5, [&] {
    round = static_cast<char>(round == 100 ? 1 : round + 1);
    const auto put = [&] {
      out.back() = round;
      window.put(out, world.other());
      window.flush(world.other());
    };
    if (world.rank == 0) put();
    window.await(arguments.bytes - 1, round);
    if (world.rank != 0) put();
  });
  if (world.rank != 0) return;
  const double total = bench::sum(each);
  bench::report(arguments, total, std::move(each));
}

/// Rank 0 works, rank 1 makes progress until it is done.
template <class Work>
void one_sided(const World& world, Work&& work) {
  if (world.rank == 0) work();
  MPI_Request done = MPI_REQUEST_NULL;
  MPI_Ibarrier(MPI_COMM_WORLD, &done);
  for (int flag = 0; flag == 0;) MPI_Test(&done, &flag, MPI_STATUS_IGNORE);
}

void one_sided_bandwidth(const World& world, const bench::Arguments& arguments, bool put) {
  const Window window(arguments.bytes);
  std::vector<char> mine(arguments.bytes, 1);
  const auto run = [&](std::uint64_t operations) {
    for (std::uint64_t i = 0; i < operations; ++i) {
      if (put) {
        window.put(mine, 1);
      } else {
        window.get(mine, 1);
      }
      if (i % kWindow == kWindow - 1) window.flush(1);  // MPI bounds nothing by itself
    }
    window.flush(1);
  };
  one_sided(world, [&] {
    run(bench::warm_up(arguments.iterations));
    const double start = bench::now_us();
    run(arguments.iterations);
    bench::report(arguments, bench::now_us() - start);
  });
}

void get_latency(const World& world, const bench::Arguments& arguments) {
  const Window window(arguments.bytes);
  std::vector<char> mine(arguments.bytes);
  one_sided(world, [&] {
    auto each = bench::time_rounds(arguments.iterations, 1, [&] {
      window.get(mine, 1);
      window.flush(1);
    });
    const double total = bench::sum(each);
    bench::report(arguments, total, std::move(each));
  });
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const bench::Arguments arguments = bench::parse(argc, argv);
  World world;
  int ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  bool known = ranks == 2;
  if (!known) {
    std::fprintf(stderr, "start 2 ranks\n");
  } else if (arguments.op == "send_lat") {
    send_latency(world, arguments);
  } else if (arguments.op == "send_bw") {
    send_bandwidth(world, arguments);
  } else if (arguments.op == "put_lat") {
    put_latency(world, arguments);
  } else if (arguments.op == "get_lat") {
    get_latency(world, arguments);
  } else if (arguments.op == "put_bw" || arguments.op == "get_bw") {
    one_sided_bandwidth(world, arguments, arguments.op == "put_bw");
  } else {
    std::fprintf(stderr, "no operation %s\n", arguments.op.c_str());
    known = false;
  }
  MPI_Finalize();
  return known ? 0 : 2;
}
