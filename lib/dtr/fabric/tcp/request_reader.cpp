#include "dtr/fabric/tcp/request_reader.hpp"

#include <cstring>
#include <utility>

#include "dtr/fabric/checks.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

void Inbound::note_refusal(std::uint64_t sequence, Errc code) {
  while (!refusals.empty() && refusals.front().sequence + kMaxQueueDepth < sequence) refusals.pop_front();
  refusals.push_back({sequence, code});
}

RequestReader::RequestReader(PeerId from, Inbound& inbound, RegionTable& regions, Receiver& receiver,
                             ReplyQueue& replies) noexcept
    : from_(from), inbound_(inbound), regions_(regions), receiver_(receiver), replies_(replies) {}

void RequestReader::received(std::size_t bytes) noexcept {
  if (bytes > 0) stream_.accept(bytes);
  if (stream_.in_payload()) look_for_revocation();
  blocked_ = false;
  while (error_ == nullptr && !stream_.in_payload()) {
    if (std::exchange(gathering_, false)) deliver(gathered_port_, message_);
    if (putting_) finish_put();
    if (inbound_.shut_out.load(std::memory_order_relaxed)) return;
    const auto buffered = stream_.buffered();
    if (buffered.size() < sizeof(RequestHeader)) return;
    if (replies_.full()) {
      blocked_ = true;
      return;
    }
    RequestHeader header;
    std::memcpy(&header, buffered.data(), sizeof header);
    error_ = said_goodbye_ ? "request after a goodbye" : malformed(header);
    if (error_ != nullptr) return;
    std::span<const std::byte> message;
    if (header.type == RequestType::send) {
      if (buffered.size() - sizeof header < header.length) {
        begin_message(header);
        continue;
      }
      message = buffered.subspan(sizeof header, header.length);
    }
    stream_.consume(sizeof header + message.size());
    execute(header, message);
  }
}

void RequestReader::execute(const RequestHeader& header, std::span<const std::byte> message) noexcept {
  switch (header.type) {
    case RequestType::put:
    case RequestType::put_notify:
      begin_put(header);
      return;  // counted when its payload has come
    case RequestType::get:
      answer_get(header);
      break;
    case RequestType::fetch_add:
    case RequestType::compare_swap:
      answer_atomic(header);
      break;
    case RequestType::notify:
      receiver_.on_notify(from_, header.port, header.value);
      break;
    case RequestType::send:
      return deliver(header.port, message);
    case RequestType::goodbye:
      said_goodbye_ = true;
      break;
    case RequestType::nothing:
      break;
  }
  urgent_ = true;
  ++inbound_.processed;
}

void RequestReader::begin_message(const RequestHeader& header) noexcept {
  message_.resize(header.length);
  gathering_ = true;
  gathered_port_ = header.port;
  stream_.consume(sizeof header);
  stream_.expect_payload(message_.data(), header.length);
}

void RequestReader::deliver(Port port, std::span<const std::byte> message) noexcept {
  if (!inbound_.shut_out.load(std::memory_order_relaxed)) receiver_.on_message(from_, port, message);
  ++inbound_.processed;
}

Errc RequestReader::acquire(const RequestHeader& header, std::uint64_t length, Access access,
                            RegionTable::Use& use) noexcept {
  const Errc code = regions_.acquire({.slot = header.slot,
                                      .generation = header.generation,
                                      .secret = header.secret,
                                      .offset = header.offset,
                                      .length = length,
                                      .access = access},
                                     use);
  if (code != Errc::ok) return code;
  if (use.region()->options().kind == MemoryKind::cuda) {
    use.release();
    return Errc::unsupported;
  }
  return Errc::ok;
}

void RequestReader::refuse(Errc code) noexcept {
  inbound_.note_refusal(inbound_.processed, code);
  replies_.refuse(inbound_.processed, code);
}

void RequestReader::begin_put(const RequestHeader& header) noexcept {
  put_ = header;
  put_refusal_ = acquire(header, header.length, Access::write, put_use_);
  putting_ = true;
  stream_.expect_payload(put_refusal_ == Errc::ok ? put_use_.data() : nullptr, header.length);
}

void RequestReader::finish_put() noexcept {
  putting_ = false;
  put_use_.release();
  if (put_refusal_ != Errc::ok) {
    refuse(put_refusal_);
  } else if (put_.type == RequestType::put_notify && !inbound_.shut_out.load(std::memory_order_relaxed)) {
    receiver_.on_notify(from_, put_.port, put_.value);
  }
  urgent_ = true;
  ++inbound_.processed;
}

void RequestReader::answer_get(const RequestHeader& header) noexcept {
  RegionTable::Use use;
  if (const Errc code = acquire(header, header.length, Access::read, use); code != Errc::ok) {
    refuse(code);
  } else {
    replies_.data(inbound_.processed, header.length, std::move(use));
  }
}

void RequestReader::answer_atomic(const RequestHeader& header) noexcept {
  RegionTable::Use use;
  Errc code = acquire(header, 8, Access::atomic, use);
  if (code == Errc::ok && reinterpret_cast<std::uintptr_t>(use.data()) % 8 != 0) code = Errc::invalid_argument;
  if (code == Errc::ok && use.region()->options().atomic_home != AtomicHome::cpu) code = Errc::unsupported;
  if (code != Errc::ok) {
    refuse(code);
    return;
  }
  const Opcode opcode = header.type == RequestType::fetch_add ? Opcode::fetch_add : Opcode::compare_swap;
  replies_.result(inbound_.processed, execute_atomic(opcode, use.data(), header.operand, header.length));
}

void RequestReader::look_for_revocation() noexcept {
  if (!putting_ || put_refusal_ != Errc::ok) return;
  const auto* valid = RegionTable::validity_word(*regions_.validity(), put_.slot);
  if (valid->load(std::memory_order_acquire) == put_.generation) return;
  stream_.divert();
  put_use_.release();
  put_refusal_ = Errc::revoked;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
