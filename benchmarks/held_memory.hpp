// Counts what operator new has given out and not got back: the memory that C++ code of this process holds, without the
// steps of the allocator. For one source of a program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

#include <malloc.h>

namespace bench {

inline std::atomic<long> held_bytes{0};

inline double held_kib() { return static_cast<double>(held_bytes.load()) / 1024; }

inline void* counted(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  held_bytes.fetch_add(static_cast<long>(malloc_usable_size(memory)), std::memory_order_relaxed);
  return memory;
}

inline void give_back(void* memory) {
  held_bytes.fetch_sub(static_cast<long>(malloc_usable_size(memory)), std::memory_order_relaxed);
  std::free(memory);
}

}  // namespace bench

void* operator new(std::size_t bytes) { return bench::counted(std::malloc(bytes)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto unit = static_cast<std::size_t>(alignment);
  return bench::counted(std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit));
}
void operator delete(void* memory) noexcept { bench::give_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { bench::give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { bench::give_back(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { bench::give_back(memory); }
