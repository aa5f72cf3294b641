// The limit of one-sided transfers in shared memory: one core copies the same source to the same sink.
//   bench_memcpy put_bw BYTES ITERATIONS
#include <new>

#include <sys/mman.h>

#include "measure.hpp"

namespace {

char* shared_pages(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Arguments arguments = bench::parse(argc, argv);
  char* source = shared_pages(arguments.bytes);
  char* sink = shared_pages(arguments.bytes);
  std::memset(source, 1, arguments.bytes);
  const auto copy = [&] {
    std::memcpy(sink, source, arguments.bytes);
    asm volatile("" : : "r"(sink) : "memory");  // the copy is wanted, each time
  };
  for (std::uint64_t i = bench::warm_up(arguments.iterations); i > 0; --i) copy();
  const double start = bench::now_us();
  for (std::uint64_t i = 0; i < arguments.iterations; ++i) copy();
  bench::report(arguments, bench::now_us() - start);
  return 0;
}
