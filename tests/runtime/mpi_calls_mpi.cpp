// MPI carries no data: between the making of a Runtime and its end libdtr calls nothing but barriers. The program's own
// MPI_* functions stand before the library's, count, and pass on by PMPI; tests/runtime/mpi.cmake checks that none is
// missing here.
#include <array>
#include <atomic>
#include <map>
#include <string>

#include <gtest/gtest.h>
#include <mpi.h>

#include "dtr/checkpoint/checkpoint_manager.hpp"
#include "dtr/pushpull/reducer.hpp"
#include "dtr/pushpull/worker.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/mpi_test.hpp"
#include "support/test_support.hpp"

namespace {

struct Counter {
  const char* name;
  std::atomic<int> calls{0};
};
std::array<Counter, 64> counters;
std::atomic<int> used{0};

int enlist(const char* name) {
  const int place = used.fetch_add(1);
  counters.at(static_cast<std::size_t>(place)).name = name;
  return place;
}

std::map<std::string, int> calls() {
  std::map<std::string, int> all;
  for (int i = 0; i < used; ++i) {
    const Counter& counter = counters.at(static_cast<std::size_t>(i));
    if (counter.calls > 0) all[counter.name] = counter.calls;
  }
  return all;
}

}  // namespace

// One function each, with the arguments spelled twice: that is what a macro is good for.
#define DTR_COUNTED(name, parameters, arguments)          \
  extern "C" int MPI_##name parameters {                  \
    static const int place = enlist(#name);               \
    ++counters.at(static_cast<std::size_t>(place)).calls; \
    return PMPI_##name arguments;                         \
  }

DTR_COUNTED(Comm_create_keyval,
            (MPI_Comm_copy_attr_function * copy, MPI_Comm_delete_attr_function* gone, int* key, void* state),
            (copy, gone, key, state))
DTR_COUNTED(Comm_dup, (MPI_Comm comm, MPI_Comm* copy), (comm, copy))
DTR_COUNTED(Comm_free, (MPI_Comm * comm), (comm))
DTR_COUNTED(Comm_free_keyval, (int* key), (key))
DTR_COUNTED(Comm_idup, (MPI_Comm comm, MPI_Comm* copy, MPI_Request* request), (comm, copy, request))
DTR_COUNTED(Comm_rank, (MPI_Comm comm, int* rank), (comm, rank))
DTR_COUNTED(Comm_set_attr, (MPI_Comm comm, int key, void* value), (comm, key, value))
DTR_COUNTED(Comm_set_errhandler, (MPI_Comm comm, MPI_Errhandler handler), (comm, handler))
DTR_COUNTED(Comm_size, (MPI_Comm comm, int* size), (comm, size))
DTR_COUNTED(Comm_split, (MPI_Comm comm, int color, int key, MPI_Comm* part), (comm, color, key, part))
DTR_COUNTED(Comm_test_inter, (MPI_Comm comm, int* flag), (comm, flag))
DTR_COUNTED(Error_string, (int code, char* text, int* length), (code, text, length))
DTR_COUNTED(Finalize, (), ())
DTR_COUNTED(Finalized, (int* flag), (flag))
DTR_COUNTED(Iallgather,
            (const void* from, int count, MPI_Datatype type, void* to, int counts, MPI_Datatype types, MPI_Comm comm,
             MPI_Request* request),
            (from, count, type, to, counts, types, comm, request))
DTR_COUNTED(Iallgatherv,
            (const void* from, int count, MPI_Datatype type, void* to, const int counts[], const int offsets[],
             MPI_Datatype types, MPI_Comm comm, MPI_Request* request),
            (from, count, type, to, counts, offsets, types, comm, request))
DTR_COUNTED(Ibarrier, (MPI_Comm comm, MPI_Request* request), (comm, request))
DTR_COUNTED(Init_thread, (int* count, char*** words, int wanted, int* granted), (count, words, wanted, granted))
DTR_COUNTED(Initialized, (int* flag), (flag))
DTR_COUNTED(Is_thread_main, (int* flag), (flag))
DTR_COUNTED(Query_thread, (int* level), (level))
DTR_COUNTED(Test, (MPI_Request * request, int* flag, MPI_Status* status), (request, flag, status))
#undef DTR_COUNTED

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

void make_rounds(Runtime& rt) {
  std::vector<float> gradient(10000, static_cast<float>(rt.rank()));
  std::vector<float> sum(10000);
  Worker worker(rt);
  for (int step = 0; step < 5; ++step) {
    const auto round = worker.push_pull({{.key = 1, .push = std::span(gradient), .pull = std::span(sum)}});
    ASSERT_TRUE(round) << round.error().to_string();
    const auto done = worker.wait(*round, scaled(20s));
    ASSERT_TRUE(done) << done.error().to_string();
  }
}

void save(Runtime& rt, const std::string& folder) {
  auto workers = rt.worker_group();
  ASSERT_TRUE(workers);
  const std::vector<float> state(1000, 1.0F);
  CheckpointManager checkpoints(**workers, {.path = folder});
  const auto saved = checkpoints.save(1, {TensorView::of("state", state).same_on_all_ranks()}, Deadline(scaled(30s)));
  ASSERT_TRUE(saved) << saved.error().to_string();
  ASSERT_TRUE(checkpoints.load_latest(scaled(30s)));
}

TEST(MpiCallsTest, BetweenInitAndFinalizeNothingIsCalledButBarriers) {
  Runtime rt({.servers = 1});
  const auto before = calls();
  EXPECT_TRUE(before.contains("Iallgather")) << "the exchange of addresses was not counted: the counters do not work";
  if (rt.is_server()) {
    const auto served = Reducer(rt).serve();
    EXPECT_TRUE(served) << served.error().to_string();
  } else {
    make_rounds(rt);
    save(rt, testing::verdict_folder() / "steps");
  }
  const std::string mine(100000, 'x');
  EXPECT_TRUE(rt.allgather("large", std::as_bytes(std::span(mine)), scaled(30s)));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(rt.barrier({}, scaled(30s)));
  EXPECT_TRUE(rt.barrier({.servers = rt.is_server(), .workers = rt.is_worker()}, scaled(30s)));

  std::map<std::string, int> between;
  for (const auto& [name, count] : calls()) {
    const auto earlier = before.find(name);
    const int more = count - (earlier == before.end() ? 0 : earlier->second);
    if (more > 0) between[name] = more;
  }
  EXPECT_EQ(between["Ibarrier"], 4) << "one a barrier";
  for (const auto& [name, count] : between) {
    EXPECT_TRUE(name == "Ibarrier" || name == "Barrier" || name == "Test" || name == "Wait")
        << count << " calls of MPI_" << name;
  }
  EXPECT_TRUE(rt.finalize(scaled(30s)));
}

}  // namespace
}  // namespace dtr
