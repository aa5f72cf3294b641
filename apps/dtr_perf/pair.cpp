#include "dtr/base/bytes.hpp"
#include "perf.hpp"

namespace dtr::perf {

namespace {

constexpr auto kMeetBound = std::chrono::seconds(30);
constexpr auto kMapBound = std::chrono::seconds(2);

}  // namespace

Pair::Pair(Runtime& rt, std::uint64_t size, AtomicHome home)
    : rt_(rt),
      other_(rt.size() == 1 ? 0 : 1 - rt.rank()),
      size_(size),
      source_(value_or_throw(rt.allocate(std::max<std::uint64_t>(size, 8)))),
      deadline_(rt.transfer_deadline(size)) {
  const std::uint64_t bytes = std::max<std::uint64_t>(size, 8);
  if (home == AtomicHome::device) {
    word_ = value_or_throw(rt.fabric().allocate_segment(bytes, {.atomic_home = home}));
    own_sink_ = {word_, 0};
  } else {
    sink_ = value_or_throw(rt.allocate(bytes));
    own_sink_ = {sink_.region(), sink_.offset()};
  }
  std::fill(source_.span().begin(), source_.span().end(), std::byte{0});
  std::fill_n(own_sink_.region->data() + own_sink_.offset, bytes, std::byte{0});
  const Bytes mine = ByteWriter().value(own_sink_.region->key()).value(own_sink_.offset).take();
  const auto all = value_or_throw(rt.allgather("dtr_perf/keys", mine, kMeetBound));
  ByteReader theirs(all.at(static_cast<std::size_t>(other_)));
  const auto key = theirs.value<RemoteKey>();
  remote_offset_ = theirs.value<std::uint64_t>();
  const auto peer = static_cast<fabric::PeerId>(other_);
  channel_ = value_or_throw(rt.fabric().channel(peer));
  remote_ = value_or_throw(rt.fabric().import(peer, key));
  // The first request connects; a flush that comes back says that the way is open.
  fabric::Completion open;
  const fabric::WorkRequest flush = fabric::WorkRequest::flush(&open);
  rt.fabric().submit(peer, std::span(&flush, 1), kMeetBound);
  value_or_throw(rt.fabric().wait(open, peer, "dtr_perf", kMeetBound));
  // Memory of this host is mapped soon after its first use. Until then copies go by a slower way, which on a busy
  // machine would be all that a short run sees.
  in_this_host_ = rt.fabric().path(peer).transport == "shm";
  for (const Deadline mapped = kMapBound; in_this_host_ && remote_->mapped.load() == nullptr && !mapped.passed();) {
    rt.progress();
  }
  meet("dtr_perf/open");
}

Pair::~Pair() {
  if (word_ == nullptr) return;
  if (auto taken_back = rt_.fabric().unregister_memory(*word_, kMeetBound); !taken_back) rt_.fail(taken_back.error());
}

void Pair::meet(const char* topic) const { value_or_throw(rt_.allgather(topic, {}, kMeetBound)); }

volatile std::uint8_t& Pair::arrival() const {
  return *reinterpret_cast<volatile std::uint8_t*>(own_sink_.region->data() + own_sink_.offset +
                                                   std::max<std::uint64_t>(size_, 1) - 1);
}

std::uint8_t& Pair::departure() const {
  return *reinterpret_cast<std::uint8_t*>(source_.data() + std::max<std::uint64_t>(size_, 1) - 1);
}

volatile std::uint64_t& Pair::old_word() const { return *reinterpret_cast<volatile std::uint64_t*>(source_.data()); }

void Pair::wait(const fabric::Completion& completion) const {
  spin_until(*this, [&] { return completion.done(); });
  if (const fabric::Status status = completion.status(); !status.ok()) {
    throw Exception(rt_.fabric().explain(static_cast<fabric::PeerId>(other_), status, "dtr_perf"));
  }
}

void Pair::check_moved(std::uint8_t last, std::uint8_t expected) const {
  if (last == expected) return;
  throw Exception({.code = Errc::internal, .message = "the data did not come", .operation = "dtr_perf"});
}

Deadline Pair::renewed_deadline() {
  deadline_uses_ = 0;
  deadline_ = rt_.transfer_deadline(size_);
  return deadline_;
}

void post_rest(Pair& pair, std::span<const fabric::WorkRequest> requests, fabric::PostResult result) {
  fabric::Completion* const done = requests.back().completion;
  while (result.accepted < requests.size()) {
    requests = requests.subspan(result.accepted);
    if (result.status.code != Errc::again) {
      throw Exception(pair.rt().fabric().explain(static_cast<fabric::PeerId>(pair.other()), result.status, "dtr_perf"));
    }
    pair.rt().progress();
    result = pair.channel().post(requests, pair.deadline());
  }
  // What finished inside the call tells nobody. Else the request may have ended before it is armed: without a
  // continuation the order of the two counts for nothing.
  if (done != nullptr && result.finished != requests.size()) done->arm(1);
}

}  // namespace dtr::perf
