// The server's side of push_pull: rounds of the workers come in, their answers go out.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/fabric/completion.hpp"
#include "dtr/pushpull/tensor.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

struct ServerOptions {
  int group = 0;
};

/// A worker's round as the server sees it. The pushed tensors are views of the receive slots: valid until the request
/// is answered.
struct Request {
  struct Pushed {
    Key key = 0;
    std::span<const std::byte> bytes{};

    template <class T>
    [[nodiscard]] std::span<const T> as() const noexcept {
      return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
    }
  };
  struct Wanted {
    Key key = 0;
    std::uint64_t bytes = 0;
  };

  int worker = 0;              ///< worker index
  std::uint64_t sequence = 0;  ///< counts this worker's rounds with this server
  std::vector<Pushed> pushes{};
  std::vector<Wanted> pulls{};
};

/// One thread at a time.
class Server {
 public:
  /// Throws Exception: invalid_argument (this rank is no server), already_exists (a second Server of the group here).
  explicit Server(Runtime& runtime, ServerOptions options = {});
  /// Requests that are still open are answered with `closed`.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The next round of every worker, in worker order, matched by sequence number: never the first of one with the
  /// second of another, whatever the order of arrival. All of them have to be answered.
  /// Errors: timed_out (names the workers that are missing), closed (all workers said goodbye), invalid_argument
  /// (some workers said goodbye and others go on: names them), peer_failed, peer_left.
  [[nodiscard]] Result<std::vector<Request>> get_batch(Deadline deadline);

  /// The next request of any worker, the longest waiting first. For servers that answer each worker by itself.
  /// Errors: timed_out, closed (all workers said goodbye or are gone).
  [[nodiscard]] Result<Request> get_any(Deadline deadline);

  /// Answers: the i-th tensor goes to where the i-th pull wants it. Returns when the tensors may change again.
  /// Errors: invalid_argument (number or size of the tensors; nothing is sent, answer again), not_found (answered
  /// already), peer_failed, peer_left, timed_out.
  [[nodiscard]] Result<void> respond(const Request& request, std::span<const ConstTensor> tensors, Deadline deadline);

  /// The same without waiting: the tensors may change once `sent` is done.
  [[nodiscard]] Result<void> respond(const Request& request, std::span<const ConstTensor> tensors,
                                     fabric::Completion& sent);

  /// Answers several requests from one buffer, cut into consecutive pieces: the first request's pulls, one after
  /// the other, then the second's. Errors: as respond; invalid_argument if the buffer does not have exactly the bytes.
  [[nodiscard]] Result<void> respond_vec(ConstTensor buffer, std::span<const Request> requests, Deadline deadline);

  /// Ends one round with an Error at its worker.
  [[nodiscard]] Result<void> refuse(const Request& request, const Error& error);

  /// Ends the open and all later rounds of all workers with this Error.
  void fail_all(const Error& error);

 private:
  class Machine;
  std::unique_ptr<Machine> machine_;
};

}  // namespace dtr::inline v0
