#include "dtr/pushpull/server.hpp"

#include "dtr/pushpull/server_machine.hpp"

namespace dtr::inline v0 {

Server::Server(Runtime& runtime, ServerOptions options) : machine_(std::make_unique<Machine>(runtime, options)) {}

Server::~Server() = default;

Result<std::vector<Request>> Server::get_batch(Deadline deadline) { return machine_->get_batch(deadline); }

Result<Request> Server::get_any(Deadline deadline) { return machine_->get_any(deadline); }

Result<void> Server::respond(const Request& request, std::span<const ConstTensor> tensors, fabric::Completion& sent) {
  return machine_->respond(request, tensors, sent);
}

Result<void> Server::respond(const Request& request, std::span<const ConstTensor> tensors, Deadline deadline) {
  fabric::Completion sent;
  if (auto started = machine_->respond(request, tensors, sent); !started) return started;
  return machine_->wait_sent(request, sent, deadline);
}

Result<void> Server::respond_vec(ConstTensor buffer, std::span<const Request> requests, Deadline deadline) {
  std::uint64_t wanted = 0;
  for (const Request& request : requests) {
    for (const auto& pull : request.pulls) wanted += pull.bytes;
  }
  if (wanted != buffer.bytes().size()) {
    return fail(Errc::invalid_argument,
                "the buffer has " + std::to_string(buffer.bytes().size()) + " bytes, the requests want " +
                    std::to_string(wanted),
                "respond_vec");
  }
  std::size_t at = 0;
  for (const Request& request : requests) {
    std::vector<ConstTensor> pieces;
    for (const auto& pull : request.pulls) {
      pieces.emplace_back(buffer.bytes().subspan(at, pull.bytes));
      at += pull.bytes;
    }
    if (auto done = respond(request, pieces, deadline); !done) return done;
  }
  return {};
}

Result<void> Server::refuse(const Request& request, const Error& error) {
  return machine_->answer_with(request, error);
}

void Server::fail_all(const Error& error) { machine_->fail_all(error); }

}  // namespace dtr::inline v0
