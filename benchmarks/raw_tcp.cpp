// The limit of tcp on one host: two processes, one connection over loopback, system calls and nothing else.
//   bench_raw_tcp lat|bw BYTES ITERATIONS CPU CPU
// lat: ping-pong, both sides spin on non-blocking sockets. bw: one side writes, blocking, the other reads; it ends
// with a byte that says that all has come.
#include <cerrno>
#include <system_error>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure.hpp"

namespace {

[[noreturn]] void give_up(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

void check(bool good, const char* what) {
  if (!good) give_up(what);
}

void pin(const char* cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(std::strtoul(cpu, nullptr, 10)), &set);
  check(::sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

void write_all(int fd, const char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = ::send(fd, data, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) continue;
    check(n > 0, "send");
    data += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void read_all(int fd, char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = ::recv(fd, data, bytes, 0);
    if (n < 0 && errno == EAGAIN) continue;
    check(n > 0, "recv");
    data += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void set_options(int fd, bool spin) {
  const int one = 1;
  check(::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
  if (spin) check(::fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
}

void answer(const bench::Arguments& arguments, int fd, bool latency) {
  std::vector<char> buffer(arguments.bytes);
  for (std::uint64_t i = bench::warm_up(arguments.iterations) + arguments.iterations; i > 0; --i) {
    read_all(fd, buffer.data(), buffer.size());
    if (latency) write_all(fd, buffer.data(), buffer.size());
  }
  if (!latency) write_all(fd, buffer.data(), 1);
}

void ask(const bench::Arguments& arguments, int fd, bool latency) {
  std::vector<char> buffer(arguments.bytes, 1);
  if (latency) {
    auto each = bench::time_rounds(arguments.iterations, 0.5, [&] {
      write_all(fd, buffer.data(), buffer.size());
      read_all(fd, buffer.data(), buffer.size());
    });
    const double total = bench::sum(each);
    return bench::report(arguments, total, std::move(each));
  }
  for (std::uint64_t i = bench::warm_up(arguments.iterations); i > 0; --i) {
    write_all(fd, buffer.data(), buffer.size());
  }
  const double start = bench::now_us();
  for (std::uint64_t i = 0; i < arguments.iterations; ++i) write_all(fd, buffer.data(), buffer.size());
  char all_came = 0;
  read_all(fd, &all_came, 1);
  bench::report(arguments, bench::now_us() - start);
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Arguments arguments = bench::parse(argc, argv);
  const bool latency = arguments.op == "lat";
  if (argc < 6 || (!latency && arguments.op != "bw")) {
    std::fprintf(stderr, "%s lat|bw BYTES ITERATIONS CPU CPU\n", argv[0]);
    return 2;
  }
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(listener >= 0, "socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  check(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  check(::listen(listener, 1) == 0, "listen");
  check(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  const pid_t child = ::fork();
  check(child >= 0, "fork");
  if (child == 0) {
    pin(argv[5]);
    const int fd = ::accept(listener, nullptr, nullptr);
    check(fd >= 0, "accept");
    set_options(fd, latency);
    answer(arguments, fd, latency);
    ::_exit(0);
  }
  pin(argv[4]);
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(fd >= 0, "socket");
  check(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
  set_options(fd, latency);
  ask(arguments, fd, latency);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}
