// The server's side of push_pull, for servers that do something of their own with what workers push.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/pushpull/views.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

struct ServerOptions {
  int group = 0;  ///< as in WorkerOptions
};

/// Names a request until it has been answered.
struct RequestHandle {
  std::uint64_t id = 0;

  friend bool operator==(const RequestHandle&, const RequestHandle&) = default;
};

/// What a worker pushed, where it landed: no copy was made. Valid until the request is answered.
struct PushedTensor {
  std::uint64_t key = 0;
  std::span<const std::byte> data{};
  DType dtype = DType::u8;
  std::uint64_t offset = 0;  ///< in the tensor, if the worker cuts tensors into parts
  std::uint64_t total = 0;   ///< bytes of the tensor

  /// As numbers; aligned to 16 bytes at least.
  template <class T>
  [[nodiscard]] std::span<const T> as() const noexcept {
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
};

/// What a worker wants back.
struct WantedTensor {
  std::uint64_t key = 0;
  std::uint64_t bytes = 0;
  DType dtype = DType::u8;
  std::uint64_t offset = 0;
  std::uint64_t total = 0;
};

/// One worker's part of a round.
struct Request {
  RequestHandle handle{};
  int worker = -1;          ///< its rank
  std::uint64_t round = 0;  ///< counts the rounds of that Worker to this server, from 0
  std::vector<PushedTensor> pushes{};
  std::vector<WantedTensor> pulls{};
};

/// One thread at a time; must end before its Runtime. A request keeps its receive slots until it is answered, also if
/// it pulls nothing: answer every one.
class Server {
 public:
  /// From now on workers can bind their keys. Throws Exception: invalid_argument (not a server), out_of_range (group),
  /// already_exists (the group has a Server or Reducer in this Runtime).
  explicit Server(Runtime& runtime, const ServerOptions& options = {});
  /// Requests that are open then end with `closed`.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The next round: one request of each worker, in rank order, matched by its number and not by arrival.
  /// Errors: timed_out (names the workers that did not come), peer_failed (a worker died: the others have been told),
  /// closed (all workers have ended), cancelled, peer_left and timed_out with the rank of a worker that gave this round
  /// up, ended before it, or did not come before the others' own deadlines: their requests have been answered with
  /// that, and the next call goes on with the next round. Do not mix with get_any.
  [[nodiscard]] Result<std::vector<Request>> get_batch(Deadline deadline = std::chrono::seconds(10));

  /// The next request of any worker, each worker's in its order. A dead worker is passed over.
  /// Errors: timed_out, closed (all workers have ended or died).
  [[nodiscard]] Result<Request> get_any(Deadline deadline = std::chrono::seconds(10));

  /// Answers a request: the i-th tensor goes to its i-th pull, byte for byte. The tensors stay as they are until
  /// flush() or the next get_batch() or get_any() has returned; views of requests that are still open may be used.
  /// Errors, with nothing sent: invalid_argument (number or size of the tensors, with key and both sizes),
  /// stale_handle.
  [[nodiscard]] Result<void> respond(RequestHandle request, std::span<const PushView> tensors = {});
  [[nodiscard]] Result<void> respond(RequestHandle request, std::initializer_list<PushView> tensors) {
    return respond(request, std::span(tensors.begin(), tensors.size()));
  }

  /// Answers several requests of one pull each: the i-th one gets the next tensors[i].bytes of the buffer.
  [[nodiscard]] Result<void> respond_vec(const PushView& buffer, std::span<const PushView> tensors,
                                         std::span<const RequestHandle> requests);

  /// Ends a request with an Error at its worker.
  [[nodiscard]] Result<void> refuse(RequestHandle request, const Error& error);

  /// Ends the open and all later rounds of all workers with this Error.
  [[nodiscard]] Result<void> fail_all(const Error& error);

  /// From the next push on, what rank workers[i] pushes under keys[i] lands in the i-th of equal chunks of the tensor,
  /// without a copy; the views of the request point there. May be called before or after the first push. A second push
  /// of that key waits at its worker until the first is answered; if it is small enough to travel inside of a message
  /// (1 KiB), it stays in the message instead. Pushes larger than the chunk fail at their worker.
  /// Errors: invalid_argument, not_found (no such worker), already_exists (the key has a buffer), overlap.
  [[nodiscard]] Result<void> register_recv_buffer(const PullView& tensor, std::span<const int> workers,
                                                  std::span<const std::uint64_t> keys);

  /// Takes the buffer back; pushes land in the Server's own memory again. Answer its requests before.
  /// Errors: not_found, busy (at the deadline: something may still land there; call again).
  [[nodiscard]] Result<void> unregister_recv_buffer(const PullView& tensor,
                                                    Deadline deadline = std::chrono::seconds(10));

  /// Returns when the tensors of all answers may be changed again. Errors: timed_out.
  [[nodiscard]] Result<void> flush(Deadline deadline = std::chrono::seconds(10));

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtr::inline v0
