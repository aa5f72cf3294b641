// Every rank has a block of BYTES for every other: libdtr (messages, or puts with a notification where a message would
// be too large), MPI_Alltoall, and MPI_Isend, MPI_Irecv, MPI_Waitall, turn and turn about in one run.
//   mpirun -n N bench_alltoall BYTES TURNS [libdtr]      libdtr: nothing but this side, for a profiler
// A turn is a few rounds back to back, each into blocks of its own; then every byte is checked. Prints a line of JSON:
// microseconds a round, medians over the turns, each until the last rank was through. `again`: MPI_Alltoall once more.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <mpi.h>

#include "dtr/base/bytes.hpp"
#include "dtr/runtime/runtime.hpp"
#include "measure.hpp"

namespace {

using dtr::value_or_throw;
using dtr::fabric::PeerId;
using dtr::fabric::WorkRequest;

constexpr auto kPatience = std::chrono::minutes(1);

/// Where the blocks of all rounds of a turn are: out for each receiver, in from each sender.
struct Blocks {
  std::span<std::byte> out;
  std::span<std::byte> in;
  std::size_t ranks = 0;
  std::size_t bytes = 0;
  std::size_t rounds = 0;

  [[nodiscard]] std::size_t offset(std::size_t round, std::size_t rank) const {
    return (round % rounds * ranks + rank) * bytes;
  }
  [[nodiscard]] std::byte* out_at(std::size_t round, std::size_t rank) const { return &out[offset(round, rank)]; }
  [[nodiscard]] std::byte* in_at(std::size_t round, std::size_t rank) const { return &in[offset(round, rank)]; }

  void write(std::size_t self, std::size_t turn) const {
    for (std::size_t round = 0; round < rounds; ++round) {
      for (std::size_t to = 0; to < ranks; ++to) {
        for (std::size_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
          const std::uint64_t word = content(turn, round, self, to, at);
          std::memcpy(out_at(round, to) + at, &word, sizeof word);
        }
      }
    }
    std::fill(in.begin(), in.end(), std::byte{0xFF});
  }
  void check(std::size_t self, std::size_t turn, const char* side) const {
    for (std::size_t round = 0; round < rounds; ++round) {
      for (std::size_t from = 0; from < ranks; ++from) {
        for (std::size_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
          std::uint64_t word = 0;
          std::memcpy(&word, in_at(round, from) + at, sizeof word);
          if (word == content(turn, round, from, self, at)) continue;
          throw dtr::Exception({.message = std::string(side) + ": wrong bytes at " + std::to_string(at) +
                                           " of the block from rank " + std::to_string(from) + " in round " +
                                           std::to_string(round) + " of turn " + std::to_string(turn)});
        }
      }
    }
  }

 private:
  static std::uint64_t content(std::size_t turn, std::size_t round, std::size_t from, std::size_t to, std::size_t at) {
    return ((((turn * 64 + round) * 64 + from) * 64 + to) << 20) + at;
  }
};

/// What has come to this rank: which rounds are complete.
class Inbox final : public dtr::fabric::PortHandler {
 public:
  Inbox(dtr::Runtime& rt, const Blocks& blocks)
      : fabric_(rt.fabric()),
        blocks_(blocks),
        port(value_or_throw(rt.service_port("application"))),
        rounds_of_(blocks.ranks),
        come_(blocks.rounds) {
    value_or_throw(fabric_.open_port(port, *this));
  }
  ~Inbox() override { fabric_.close_port(port); }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  void on_notify(PeerId from, std::uint32_t) noexcept override { count(from); }
  void on_message(PeerId from, std::span<const std::byte> payload) noexcept override {
    std::memcpy(blocks_.in_at(rounds_of_[from], from), payload.data(), std::min(payload.size(), blocks_.bytes));
    count(from);
  }
  void on_peer_down(PeerId, const dtr::Error&) noexcept override {}

  /// Rounds in which everybody's block has come.
  [[nodiscard]] std::size_t complete() const noexcept { return complete_.load(std::memory_order_acquire); }

 private:
  void count(PeerId from) noexcept {
    std::size_t& come = come_[rounds_of_[from]++ % come_.size()];
    if (++come < blocks_.ranks - 1) return;
    come = 0;  // rounds are completed in order: nobody is ahead of one that lacks our own block
    complete_.fetch_add(1, std::memory_order_release);
  }

  dtr::fabric::Fabric& fabric_;
  const Blocks& blocks_;

 public:
  const dtr::fabric::Port port;

 private:
  std::vector<std::size_t> rounds_of_;  ///< by sender
  std::vector<std::size_t> come_;       ///< by round
  std::atomic<std::size_t> complete_{0};
};

/// libdtr's side.
class Exchange {
 public:
  Exchange(dtr::Runtime& rt, std::size_t bytes, std::size_t rounds)
      : rt_(rt),
        self_(static_cast<std::size_t>(rt.rank())),
        ranks_(static_cast<std::size_t>(rt.size())),
        memory_{value_or_throw(rt.allocate(rounds * ranks_ * bytes)),
                value_or_throw(rt.allocate(rounds * ranks_ * bytes))},
        blocks{memory_[0].span().first(rounds * ranks_ * bytes), memory_[1].span().first(rounds * ranks_ * bytes),
               ranks_, bytes, rounds},
        inbox_(rt, blocks) {
    dtr::ByteWriter words;
    words.value(memory_[1].region()->key()).value(memory_[1].offset());
    const auto all = value_or_throw(rt.allgather("alltoall/blocks", words.view(), kPatience));
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      dtr::ByteReader place(all[rank]);
      const auto key = place.value<dtr::RemoteKey>();
      const auto offset = place.value<std::uint64_t>();
      const auto* region = rank == self_ ? nullptr : value_or_throw(rt.fabric().import(static_cast<PeerId>(rank), key));
      theirs_.push_back({region, offset});
    }
  }

  void round() {
    dtr::fabric::Completion done;
    const dtr::Deadline deadline(kPatience);
    for (std::size_t step = 1; step < ranks_; ++step) {
      const std::size_t to = (self_ + step) % ranks_;
      const WorkRequest request = block_for(to, &done);
      rt_.fabric().submit(static_cast<PeerId>(to), std::span(&request, 1), deadline);
    }
    std::memcpy(blocks.in_at(round_, self_), blocks.out_at(round_, self_), blocks.bytes);
    ++round_;
    const auto all_came = [&]() noexcept { return inbox_.complete() >= round_ && done.done(); };
    if (rt_.fabric().progress().wait(all_came, deadline) != dtr::Errc::ok) {
      rt_.fabric().progress().stop();  // nobody touches `done` any more; the run has failed
      throw dtr::Exception({.message = "a round did not end"});
    }
    if (!done.status().ok()) throw dtr::Exception({.code = done.status().code, .message = "a block was not sent"});
  }

 private:
  [[nodiscard]] WorkRequest block_for(std::size_t to, dtr::fabric::Completion* done) const {
    if (blocks.bytes <= rt_.fabric().max_message()) {
      return WorkRequest::send(inbox_.port, {blocks.out_at(round_, to), blocks.bytes}, nullptr);  // copied at once
    }
    return WorkRequest::put_notify({memory_[0].region(), memory_[0].offset() + blocks.offset(round_, to)},
                                   {theirs_[to].region, theirs_[to].offset + blocks.offset(round_, self_)},
                                   blocks.bytes, inbox_.port, 0, done);
  }

  dtr::Runtime& rt_;
  std::size_t self_;
  std::size_t ranks_;
  std::array<dtr::Buffer, 2> memory_;

 public:
  const Blocks blocks;

 private:
  Inbox inbox_;
  std::vector<WorkRequest::RemoteRange> theirs_;
  std::size_t round_ = 0;
};

void mpi_alltoall(const Blocks& blocks, std::size_t round) {
  const int bytes = static_cast<int>(blocks.bytes);
  MPI_Alltoall(blocks.out_at(round, 0), bytes, MPI_CHAR, blocks.in_at(round, 0), bytes, MPI_CHAR, MPI_COMM_WORLD);
}

void mpi_messages(const Blocks& blocks, std::size_t self, std::size_t round) {
  const int bytes = static_cast<int>(blocks.bytes);
  std::vector<MPI_Request> requests(2 * (blocks.ranks - 1));
  for (std::size_t step = 1; step < blocks.ranks; ++step) {
    const std::size_t from = (self + blocks.ranks - step) % blocks.ranks;
    MPI_Irecv(blocks.in_at(round, from), bytes, MPI_CHAR, static_cast<int>(from), 1, MPI_COMM_WORLD,
              &requests[step - 1]);
  }
  for (std::size_t step = 1; step < blocks.ranks; ++step) {
    const std::size_t to = (self + step) % blocks.ranks;
    MPI_Isend(blocks.out_at(round, to), bytes, MPI_CHAR, static_cast<int>(to), 1, MPI_COMM_WORLD,
              &requests[blocks.ranks - 2 + step]);
  }
  std::memcpy(blocks.in_at(round, self), blocks.out_at(round, self), blocks.bytes);
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
}

/// What all ranks say. Who waits here sleeps, and takes no core from those who still work.
double greatest(dtr::Runtime& rt, double mine) {
  const auto all = value_or_throw(rt.allgather("alltoall/times", std::as_bytes(std::span(&mine, 1)), kPatience));
  for (const auto& bytes : all) {
    double other = 0;
    std::memcpy(&other, bytes.data(), sizeof other);
    mine = std::max(mine, other);
  }
  return mine;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void run(std::size_t bytes, int turns, bool alone) {
  dtr::Runtime rt;
  const auto self = static_cast<std::size_t>(rt.rank());
  const auto ranks = static_cast<std::size_t>(rt.size());
  const std::size_t rounds = std::clamp<std::size_t>((256 << 10) / bytes, 4, 64);
  Exchange exchange(rt, bytes, rounds);
  std::vector<std::byte> out(rounds * ranks * bytes);
  std::vector<std::byte> in(rounds * ranks * bytes);
  const Blocks plain{out, in, ranks, bytes, rounds};

  constexpr std::array kSides{"libdtr", "MPI_Alltoall", "MPI_Isend", "MPI_Alltoall"};
  // Each side follows each other equally often: what drifts, and what is left in caches, hits all alike.
  constexpr std::array<std::array<std::size_t, 4>, 4> kOrders{{{0, 1, 2, 3}, {1, 3, 0, 2}, {2, 0, 3, 1}, {3, 2, 1, 0}}};
  std::array<std::vector<double>, kSides.size()> times;
  const int warm_up = 4;
  for (int turn = -warm_up; turn < turns; ++turn) {
    for (std::size_t place = 0; place < kSides.size(); ++place) {
      const std::size_t side = kOrders[static_cast<std::size_t>(turn + warm_up) % kSides.size()][place];
      if (alone && side != 0) continue;
      const Blocks& blocks = side == 0 ? exchange.blocks : plain;
      const auto number = static_cast<std::size_t>(turn + warm_up) * kSides.size() + side;
      blocks.write(self, number);
      greatest(rt, 0);
      const double start = bench::now_us();
      for (std::size_t round = 0; round < rounds; ++round) {
        if (side == 0) {
          exchange.round();
        } else if (side == 2) {
          mpi_messages(blocks, self, round);
        } else {
          mpi_alltoall(blocks, round);
        }
      }
      const double took = greatest(rt, bench::now_us() - start);
      blocks.check(self, number, kSides[side]);
      if (turn >= 0) times[side].push_back(took / static_cast<double>(rounds));
    }
  }
  value_or_throw(rt.barrier());
  if (rt.rank() != 0) return;
  std::printf("{\"bytes\": %zu, \"ours_us\": %.3f, \"alltoall_us\": %.3f, \"messages_us\": %.3f, \"again_us\": %.3f}\n",
              bytes, median(times[0]), median(times[1]), median(times[2]), median(times[3]));
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t bytes = argc > 1 ? std::strtoull(argv[1], nullptr, 10) / 8 * 8 : 0;
  const int turns = argc > 2 ? std::atoi(argv[2]) : 0;
  if (bytes == 0 || bytes > 1 << 20 || turns <= 0) {
    std::fprintf(stderr, "bench_alltoall BYTES TURNS [libdtr]\n");
    return 2;
  }
  MPI_Init(&argc, &argv);
  try {
    run(bytes, turns, argc > 3 && std::strcmp(argv[3], "libdtr") == 0);
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
