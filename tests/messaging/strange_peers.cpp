#include "messaging/strange_peers.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "dtr/messaging/detail/limits.hpp"
#include "dtr/messaging/detail/wire.hpp"
#include "dtr/runtime/runtime.hpp"
#include "messaging/data.hpp"
#include "messaging/ether.hpp"
#include "support/bytes_of.hpp"
#include "support/simulated_world.hpp"

namespace dtr::testing {

using namespace messaging;
using fabric::Opcode;
using fabric::PeerId;

namespace {

constexpr int kRanks = 200;
constexpr PeerId kNeighbour = kRanks - 1;  ///< who never says a wrong word
constexpr std::uint64_t kSlots = 3;
constexpr std::uint64_t kSlotBytes = 4096;
constexpr std::size_t kLongestScript = 2000;
constexpr std::uint32_t kLargestFill = 255;

/// Of either side: both are in this process.
std::byte* memory_at(std::uint64_t address) {
  return reinterpret_cast<std::byte*>(address);  // NOLINT(performance-no-int-to-ptr): it comes in a message
}

/// Bytes that decide. When they are over everything is 0.
class Script {
 public:
  explicit Script(std::span<const std::byte> bytes) : bytes_(bytes.first(std::min(bytes.size(), kLongestScript))) {}

  [[nodiscard]] bool over() const { return bytes_.empty(); }
  std::uint32_t byte() {
    if (over()) return 0;
    const auto value = std::to_integer<std::uint32_t>(bytes_.front());
    bytes_ = bytes_.subspan(1);
    return value;
  }
  /// 0 to `end` - 1.
  std::uint32_t below(std::uint32_t end) {
    std::uint32_t value = byte();
    if (end > 256) value = value * 256 + byte();
    if (end > 65536) value = value * 256 + byte();
    return end == 0 ? 0 : value % end;
  }

 private:
  std::span<const std::byte> bytes_;
};

std::unique_ptr<Runtime> runtime_in(Ether& ether) {
  RuntimeOptions options;
  options.bootstrap = std::make_unique<SimulatedWorld>(0, kRanks, kRanks / 2);
  options.transports = {
      {.name = "shm",
       .make = [&](const fabric::TransportContext& context) -> Result<std::unique_ptr<fabric::Transport>> {
         ether.receiver = &context.receiver;
         return ether_transport(ether, "shm", "shm:" + context.identity.host_id);
       }},
      {.name = "tcp", .make = [&](const fabric::TransportContext&) -> Result<std::unique_ptr<fabric::Transport>> {
         return ether_transport(ether, "tcp", "tcp");
       }}};
  options.config.overrides = {{"progress.mode", "inline"},
                              {"host.id", "a-host-with-a-name-of-some-length"},
                              {"log.level", "off"},
                              {"messages.slot_count", std::to_string(kSlots)},
                              {"messages.slot_bytes", std::to_string(kSlotBytes)},
                              {"runtime.heartbeat_interval_ms", "36000000"},
                              {"runtime.heartbeat_timeout_ms", "80000000"}};
  return value_or_throw(Runtime::init(std::move(options)));
}

/// `reads`: whatever can be is read where it lies.
MessengerOptions options(bool reads) {
  MessengerOptions made;
  if (!reads) return made;
  made.thresholds.emplace();
  made.thresholds->tables = {
      {.transport = "shm", .rows = {{.up_to = 4096, .way = MessageWay::eager}, {.way = MessageWay::read}}}};
  return made;
}

}  // namespace

struct StrangePeers::World {
  explicit World(bool reads) : rt(runtime_in(ether)), messenger(std::make_unique<Messenger>(*rt, options(reads))) {
    ether.port = value_or_throw(rt->service_port("messaging"));
  }
  ~World() {
    ether.full = ether.late = false;
    end_messenger();
  }
  /// Who is still there says that it has seen the end.
  void end_messenger() {
    for (PeerId peer = 1; peer < kRanks; ++peer) {
      if (rt->fabric().peer_state(peer) != Errc::ok) continue;
      ether.coming.push_back({.from = peer, .payload = bytes_of(Head{.kind = Kind::bye})});
    }
    rt->progress();
    messenger.reset();
    ether.coming.clear();
    ether.posted.clear();
  }

  Ether ether;
  std::unique_ptr<Runtime> rt;
  std::unique_ptr<Messenger> messenger;
  PeerId next = 1;
  std::uint32_t neighbour_said = 0;
};

/// One rank's life, and what the Messenger's user does meanwhile.
class StrangePeers::Play {
 public:
  Play(World& world, PeerId peer, std::span<const std::byte> script)
      : world_(world), ether_(world.ether), peer_(peer), script_(script) {
    ether_.posted.clear();
  }

  std::string run() {
    lies_ = script_.byte() % 2 == 1;
    ether_.late = script_.byte() % 2 == 1;
    while (wrong_.empty() && !script_.over()) {
      step();
      look();
    }
    ether_.full = false;
    if (!lied_) settle();
    end();
    return std::move(wrong_);
  }

 private:
  struct Said {
    std::uint64_t tag = 0;
    std::uint64_t bytes = 0;
    std::uint64_t number = 0;  ///< decides what it holds; the id of an offer
    bool offered = false;
    bool over = false;  ///< nothing more of it is said
    bool gone = false;  ///< withdrawn or given up: nobody can receive it any more
    bool received = false;
  };
  /// The Messenger's wish for an offer of the peer's.
  struct Wanted {
    Take take{};
    std::uint64_t moved = 0;
  };
  /// An offer of the Messenger's.
  struct Theirs {
    Offer offer{};
    std::optional<Source> source{};
    std::uint64_t moved = 0;
    bool taken = false;
    bool over = false;
  };
  struct Operation {
    MessageHandle handle{};
    std::unique_ptr<std::byte[]> memory{};
    std::uint64_t bytes = 0;
    std::uint64_t tag = 0;
    std::uint64_t mask = 0;
    bool is_send = false;
  };

  void complain(const std::string& what) {
    if (wrong_.empty()) wrong_ = what;
  }

  void say(Bytes message) {
    if (lies_ && slip_ != 0 && !message.empty()) {
      for (; slip_ > 0; --slip_)
        message[script_.below(static_cast<std::uint32_t>(message.size()))] ^=
            std::byte{static_cast<std::uint8_t>(script_.byte())};
      lied_ = true;
    }
    history_.push_back(message);
    ether_.coming.push_back({.from = peer_, .payload = std::move(message)});
  }
  void notify(std::uint32_t value) { ether_.coming.push_back({.from = peer_, .is_message = false, .value = value}); }

  void step() {
    switch (script_.below(20)) {
      case 0:
      case 1:
        return say_small();
      case 2:
      case 3:
        return say_offer();
      case 4:
        return withdraw();
      case 5:
      case 6:
        return fill(1);
      case 7:
        return fill(script_.byte());
      case 8:
        return give_up();
      case 9:
        return take();
      case 10:
        return refuse();
      case 11:
        return credit();
      case 12:
      case 13:
        return receive();
      case 14:
      case 15:
        return send();
      case 16:
        return cancel();
      case 17:
        ether_.full = !ether_.full;
        return;
      case 18:
        return script_.byte() % 8 == 0 ? begin_anew() : lie();
      default:
        return lie();
    }
  }

  // --- what the peer says ---

  void say_small() {
    const Said said{.tag = script_.below(4), .bytes = script_.below(3000), .number = ++numbers_};
    if (room_used_ + cost_of(said.bytes) > kRoom) return;
    room_used_ += cost_of(said.bytes);
    Bytes message = bytes_of(Eager{.head = {.kind = Kind::eager, .sequence = sequence_++}, .tag = said.tag});
    const Bytes data = data_of(said.bytes, said.number);
    message.insert(message.end(), data.begin(), data.end());
    said_.push_back(said);
    say(std::move(message));
  }

  void say_offer() {
    const Said said{.tag = script_.below(4), .bytes = script_.below(40000), .number = ++numbers_, .offered = true};
    const Offer offer{.head = {.kind = Kind::offer, .sequence = sequence_++},
                      .tag = said.tag,
                      .bytes = said.bytes,
                      .id = said.number};
    said_.push_back(said);
    const std::uint32_t way = script_.byte() % 3;
    const std::uint64_t words = 1 + (said.bytes + 7) / 8;
    if (way == 0 || lent_ + words > ether_.memory.size()) return say(bytes_of(offer));
    ether_.memory[lent_] = said.number;
    const Bytes data = data_of(said.bytes, said.number);
    std::copy(data.begin(), data.end(), ether_.bytes().begin() + static_cast<std::ptrdiff_t>((lent_ + 1) * 8));
    const Source source{.address = reinterpret_cast<std::uintptr_t>(ether_.bytes().data()) + (lent_ + 1) * 8,
                        .memory = ether_.key(),
                        .offset = (lent_ + 1) * 8,
                        .mappable = way - 1,
                        .lease = ether_.key(),
                        .lease_offset = lent_ * 8};
    lent_ += words;
    say(bytes_of(offer, source));
  }

  void withdraw() {
    const auto open = std::find_if(said_.begin(), said_.end(), [&](const Said& one) {
      return one.offered && !one.over && wanted_.count(one.number) == 0;
    });
    if (open == said_.end()) return;
    open->over = open->gone = true;
    say(bytes_of(Withdraw{.head = {.kind = Kind::withdraw, .sequence = sequence_++}, .id = open->number}));
  }

  [[nodiscard]] Wanted* front() {
    const auto at = schedule_.find(next_taken_);
    if (at == schedule_.end() || filled_ - emptied_ >= kSlots) return nullptr;
    return &at->second;
  }

  void fill(std::uint32_t pieces) {
    for (; pieces > 0 && front() != nullptr; --pieces) {
      Wanted& wanted = *front();
      if (is_gone(wanted.take.id)) {  // asked for before the withdrawal was heard
        give_up();
        continue;
      }
      const std::uint64_t bytes = std::min<std::uint64_t>(wanted.take.piece, wanted.take.bytes - wanted.moved);
      const Bytes data = data_of(wanted.take.bytes, wanted.take.id);
      std::byte* const slots = memory_at(wanted.take.key.address + wanted.take.offset);
      // A liar may have been forgotten, and its key be worth nothing.
      if (!lied_) std::memcpy(slots + filled_ % kSlots * kSlotBytes, data.data() + wanted.moved, bytes);
      wanted.moved += bytes;
      notify(static_cast<std::uint32_t>(filled_++) & PieceWord::kNumbers);
      if (wanted.moved == wanted.take.bytes) finish_front(false);
      look();
    }
  }

  [[nodiscard]] bool is_gone(std::uint64_t number) const {
    return std::any_of(said_.begin(), said_.end(),
                       [&](const Said& one) { return one.offered && one.number == number && one.gone; });
  }

  void give_up() {
    if (front() == nullptr) return;
    notify((static_cast<std::uint32_t>(filled_++) & PieceWord::kNumbers) | PieceWord::kStop);
    ++given_up_;
    finish_front(true);
  }

  void finish_front(bool gives_up) {
    const auto at = schedule_.find(next_taken_++);
    for (Said& one : said_) {
      if (!one.offered || one.number != at->second.take.id) continue;
      one.over = true;
      one.gone = gives_up;
    }
    schedule_.erase(at);
  }

  [[nodiscard]] Theirs* open_offer() {
    for (Theirs& one : theirs_) {
      if (!one.taken && !one.over && one.offer.bytes > 0) return &one;
    }
    return nullptr;
  }

  void take() {
    Theirs* const theirs = open_offer();
    if (theirs == nullptr) return;
    theirs->taken = true;
    const std::uint32_t piece = 1 + script_.below(kSlotBytes);
    takes_.push_back(theirs->offer.id);
    say(bytes_of(Take{.head = {.kind = Kind::take},
                      .id = theirs->offer.id,
                      .number = taken_++,
                      .bytes = theirs->offer.bytes,
                      .offset = 8,
                      .key = ether_.key(),
                      .slots = kSlots,
                      .slot_bytes = kSlotBytes,
                      .piece = std::max<std::uint32_t>(piece, 64),
                      .reserved = 0}));
    pieces_of_[theirs->offer.id] = std::max<std::uint32_t>(piece, 64);
  }

  /// Is the memory still lent? Nothing else runs meanwhile.
  [[nodiscard]] static bool holds(const Theirs& theirs) {
    std::uint64_t word = 0;
    std::memcpy(&word, memory_at(theirs.source->lease.address + theirs.source->lease_offset), sizeof word);
    return word == theirs.offer.id;
  }

  /// Says that it has what was offered, which it reads in the sender's memory, or that it wants nothing of it.
  void refuse() {
    Theirs* const theirs = open_offer();
    if (theirs == nullptr) return;
    Errc code = Errc::cancelled;
    if (theirs->source && theirs->source->mappable == 0 && script_.byte() % 2 == 0 && holds(*theirs)) {
      check_sent(theirs->offer.tag, 0, {memory_at(theirs->source->address), theirs->offer.bytes}, theirs->offer.bytes);
      code = Errc::ok;
      arrived_.insert(theirs->offer.tag);
    }
    theirs->over = true;
    say(bytes_of(Done{.head = {.kind = Kind::done}, .id = theirs->offer.id, .code = static_cast<std::int64_t>(code)}));
  }

  void credit() { say(bytes_of(Credit{.head = {.kind = Kind::credit}, .freed = eager_cost_, .pieces = pieces_})); }

  /// This peer's Messenger ends, and another begins.
  void begin_anew() {
    ether_.full = false;
    say(bytes_of(Head{.kind = Kind::bye}));
    parted_ = false;
    for (int looks = 0; looks < 10 && !parted_; ++looks) look();
    if (!parted_ && !lied_) complain("nobody has seen it go");
    sequence_ = 0;
    for (Said& one : said_) {
      if (one.offered && !one.over) one.over = one.gone = true;
    }
    schedule_.clear();
    next_taken_ = filled_ = emptied_ = taken_ = pieces_ = eager_cost_ = room_used_ = 0;
    wanted_.clear();
    theirs_.clear();
    takes_.clear();
    ether_.posted.clear();
  }

  void lie() {
    if (!lies_) return;
    switch (script_.below(6)) {
      case 0: {  // anything
        Bytes message(script_.byte());
        for (std::byte& each : message) each = std::byte{static_cast<std::uint8_t>(script_.byte())};
        say(std::move(message));
        break;
      }
      case 1: {  // what was right before
        if (history_.empty()) return;
        Bytes message = history_[script_.below(static_cast<std::uint32_t>(history_.size()))];
        const auto head = messaging::front<Head>(message);
        if (head && head->kind <= Kind::withdraw) {
          std::memcpy(message.data() + offsetof(Head, sequence), &sequence_, sizeof sequence_);
          ++sequence_;
        }
        say(std::move(message));
        break;
      }
      case 2:
        notify((script_.below(1 << 24) >> script_.below(24)) & 0xFFFFFF);
        break;
      case 3:
        say(bytes_of(Head{.kind = Kind::bye_seen}));
        break;
      case 4:
        sequence_ += script_.byte() % 3 - 1;
        break;
      default:
        slip_ = 1 + script_.byte() % 3;
        return;
    }
    lied_ = true;
  }

  // --- what the Messenger's user does ---

  void receive() {
    Operation one{.bytes = script_.below(45000), .tag = script_.below(4), .mask = script_.byte() % 4};
    if (one.mask == 3) one.mask = kWholeTag;
    one.memory = std::make_unique<std::byte[]>(one.bytes);
    const int from = script_.byte() % 2 == 0 ? kAnyRank : static_cast<int>(peer_);
    start(std::move(one), [&](Operation& recv) {
      return world_.messenger->recv(from, recv.tag, {recv.memory.get(), recv.bytes}, std::chrono::seconds(10),
                                    recv.mask);
    });
  }

  void send() {
    Operation one{
        .bytes = script_.below(script_.byte() % 2 == 0 ? 100 : 40000), .tag = 1000 + sends_++, .is_send = true};
    one.memory = std::make_unique<std::byte[]>(one.bytes);
    const Bytes data = data_of(one.bytes, one.tag);
    std::copy(data.begin(), data.end(), one.memory.get());
    start(std::move(one), [&](Operation& send) {
      return world_.messenger->send(static_cast<int>(peer_), send.tag, {send.memory.get(), send.bytes},
                                    std::chrono::seconds(10));
    });
  }

  template <class Begin>
  void start(Operation operation, Begin&& begin) {
    auto handle = begin(operation);
    if (!handle) {
      if (state() == Errc::ok) complain("refused: " + handle.error().to_string());
      return;
    }
    operation.handle = *handle;
    operations_.push_back(std::move(operation));
  }

  void cancel() {
    if (operations_.empty()) return;
    world_.messenger->cancel(operations_[script_.byte() % operations_.size()].handle);
  }

  // --- what comes of it ---

  [[nodiscard]] Errc state() const { return world_.rt->fabric().peer_state(peer_); }

  void look() {
    world_.rt->progress();
    while (!ether_.posted.empty()) {
      const Ether::Posted posted = std::move(ether_.posted.front());
      ether_.posted.pop_front();
      if (posted.to == peer_ && !lied_) hear(posted);
    }
    if (!lied_ && state() != Errc::ok)
      complain("shut out for nothing: " + world_.rt->fabric().peer_error(peer_, "hear").to_string());
    for (std::size_t i = 0; i < operations_.size();) {
      if (world_.messenger->done(operations_[i].handle)) {
        reap(i);
      } else {
        ++i;
      }
    }
  }

  void hear(const Ether::Posted& posted) {
    if (posted.opcode == Opcode::put_notify) return hear_piece(posted);
    const auto head = messaging::front<Head>(posted.bytes);
    if (!head) return complain("a message without a head");
    switch (head->kind) {
      case Kind::eager: {
        const auto eager = messaging::front<Eager>(posted.bytes);
        const std::span payload = std::span(posted.bytes).subspan(sizeof(Eager));
        eager_cost_ += cost_of(payload.size());
        arrived_.insert(eager->tag);
        return check_sent(eager->tag, 0, payload, payload.size());
      }
      case Kind::offer: {
        Theirs one{.offer = *messaging::front<Offer>(posted.bytes)};
        one.source = whole<Source>(std::span(posted.bytes).subspan(sizeof(Offer)));
        theirs_.push_back(one);
        return;
      }
      case Kind::withdraw:
        for (Theirs& one : theirs_) {
          if (one.offer.id == whole<Withdraw>(posted.bytes)->id) one.over = true;
        }
        return;
      case Kind::take: {
        const Take take = *whole<Take>(posted.bytes);
        schedule_[take.number] = {.take = take};
        wanted_.insert(take.id);
        return;
      }
      case Kind::done: {
        const Done done = *whole<Done>(posted.bytes);
        for (Said& one : said_) {
          if (one.offered && one.number == done.id) one.over = true;
        }
        return;
      }
      case Kind::credit: {
        const Credit credit = *whole<Credit>(posted.bytes);
        if (credit.pieces > filled_) complain("thanks for pieces that never came");
        emptied_ = std::max(emptied_, credit.pieces);
        return;
      }
      case Kind::bye_seen:
        parted_ = true;
        return;
      default:
        return complain("a message of an unknown kind");
    }
  }

  void hear_piece(const Ether::Posted& posted) {
    if (takes_.empty()) return complain("a piece that nobody asked for");
    const std::uint64_t number = posted.value & PieceWord::kNumbers;
    if (number != (pieces_ & PieceWord::kNumbers)) return complain("a piece in the wrong order");
    const std::uint64_t slot = pieces_++ % kSlots;
    const auto theirs =
        std::find_if(theirs_.begin(), theirs_.end(), [&](const Theirs& one) { return one.offer.id == takes_.front(); });
    if ((posted.value & PieceWord::kStop) == 0) {
      if (posted.offset != 8 + slot * kSlotBytes) complain("a piece in the wrong slot");
      const std::uint64_t expected =
          std::min<std::uint64_t>(pieces_of_[takes_.front()], theirs->offer.bytes - theirs->moved);
      if (posted.bytes.size() != expected) return complain("a piece of the wrong size");
      check_sent(theirs->offer.tag, theirs->moved, posted.bytes, theirs->offer.bytes);
      theirs->moved += posted.bytes.size();
      if (theirs->moved < theirs->offer.bytes) return;
      arrived_.insert(theirs->offer.tag);
    }
    theirs->over = true;
    takes_.pop_front();
  }

  void check_sent(std::uint64_t tag, std::uint64_t offset, std::span<const std::byte> came, std::uint64_t whole) {
    if (lied_) return;
    const Bytes data = data_of(whole, tag);
    if (!std::equal(came.begin(), came.end(), data.begin() + static_cast<std::ptrdiff_t>(offset))) {
      complain("a message went out that nobody has sent");
    }
  }

  void reap(std::size_t at) {
    const Operation operation = std::move(operations_[at]);
    operations_.erase(operations_.begin() + static_cast<std::ptrdiff_t>(at));
    const auto outcome = world_.messenger->wait(operation.handle);
    if (!outcome) {
      if (outcome.error().code == Errc::timed_out) complain("hung: " + outcome.error().to_string());
      if (!operation.is_send) {
        ++failed_recvs_;
        cancelled_recvs_ += outcome.error().code == Errc::cancelled ? 1 : 0;
      }
      return;
    }
    if (operation.is_send) {
      sent_.push_back(operation.tag);
      return;
    }
    if (lied_) return;
    const std::span came(operation.memory.get(), outcome->bytes);
    if (outcome->bytes > operation.bytes || (outcome->tag & operation.mask) != (operation.tag & operation.mask)) {
      return complain("a message that the recv does not fit");
    }
    if (outcome->source != static_cast<int>(peer_)) return;  // a dead rank's last words
    const auto fits = [&](const Said& one) {
      if (one.received || one.tag != outcome->tag || one.bytes != outcome->bytes) return false;
      const Bytes data = data_of(one.bytes, one.number);
      return std::equal(came.begin(), came.end(), data.begin());
    };
    // Small ones look the same: rather one that has to come than one that was withdrawn.
    auto said = std::find_if(said_.begin(), said_.end(), [&](const Said& one) { return !one.gone && fits(one); });
    if (said == said_.end()) said = std::find_if(said_.begin(), said_.end(), fits);
    if (said == said_.end()) return complain("a message came that nobody has said");
    said->received = true;
  }

  /// An honest rank's play ends: what was sent comes, in either direction. Only a recv that fails may have lost a
  /// message, and one at most.
  void settle() {
    constexpr int kLooks = 8;  // a message that has been sent comes within as many
    for (int looks = 0; looks < kLooks; ++looks) look();
    if (cancelled_recvs_ < given_up_) complain("a recv has not heard that its sender has given up");
    for (const Operation& one : operations_) {
      if (!one.is_send) world_.messenger->cancel(one.handle);
    }
    const auto outstanding = [&] {
      return std::count_if(said_.begin(), said_.end(), [](const Said& one) { return !one.gone && !one.received; });
    };
    for (auto before = outstanding() + 1; outstanding() < before && wrong_.empty();) {
      before = outstanding();
      Operation one{.bytes = 40000};
      one.memory = std::make_unique<std::byte[]>(one.bytes);
      start(std::move(one), [&](Operation& recv) {
        return world_.messenger->recv(static_cast<int>(peer_), 0, {recv.memory.get(), recv.bytes},
                                      std::chrono::seconds(10), recv.mask);
      });
      for (int looks = 0; looks < kLooks; ++looks) {
        look();
        fill(kLargestFill);
      }
    }
    const std::uint64_t failed = failed_recvs_;  // without the last one, which finds nothing
    if (wrong_.empty() && static_cast<std::uint64_t>(outstanding()) > failed) {
      complain(std::to_string(outstanding()) + " messages have not come, and only " + std::to_string(failed) +
               " recvs have failed");
    }
    for (const std::uint64_t tag : sent_) {
      if (arrived_.count(tag) == 0) complain("a send has ended well, and its message has not come");
    }
  }

  /// The rank dies, and its neighbours' waits end.
  void end() {
    world_.rt->fabric().declare_down(peer_, Errc::peer_failed, "the play is over");
    for (const Operation& one : operations_) world_.messenger->cancel(one.handle);
    while (!operations_.empty()) reap(operations_.size() - 1);
    ether_.coming.clear();
    ether_.late = false;
    world_.rt->progress();
    std::fill(ether_.memory.begin(), ether_.memory.begin() + static_cast<std::ptrdiff_t>(lent_), 0);
  }

  World& world_;
  Ether& ether_;
  PeerId peer_;
  Script script_;
  std::string wrong_;
  bool lies_ = false;  ///< may
  bool lied_ = false;  ///< has: what it says is nothing to rely upon any more
  std::uint32_t slip_ = 0;

  bool parted_ = false;
  std::uint32_t sequence_ = 0;
  std::uint64_t numbers_ = 0;
  std::uint64_t room_used_ = 0;
  std::vector<Bytes> history_;
  std::vector<Said> said_;
  std::uint64_t lent_ = 0;  ///< words of the peers' memory
  std::map<std::uint64_t, Wanted> schedule_;
  std::set<std::uint64_t> wanted_;
  std::uint64_t next_taken_ = 0;
  std::uint64_t filled_ = 0;
  std::uint64_t emptied_ = 0;

  std::vector<Theirs> theirs_;
  std::deque<std::uint64_t> takes_;
  std::map<std::uint64_t, std::uint32_t> pieces_of_;
  std::uint64_t taken_ = 0;
  std::uint64_t pieces_ = 0;
  std::uint64_t eager_cost_ = 0;

  std::vector<Operation> operations_;
  std::uint64_t sends_ = 0;
  std::vector<std::uint64_t> sent_;  ///< tags of sends that have ended well
  std::set<std::uint64_t> arrived_;  ///< of messages that the peer has whole
  std::uint64_t failed_recvs_ = 0;
  std::uint64_t cancelled_recvs_ = 0;
  std::uint64_t given_up_ = 0;  ///< messages that a recv had asked for
};

StrangePeers::StrangePeers() = default;
StrangePeers::~StrangePeers() = default;

std::string StrangePeers::play(std::span<const std::byte> script) {
  if (world_ == nullptr || world_->next == kNeighbour) {
    world_.reset();
    world_ = std::make_unique<World>(++worlds_ % 2 == 0);
  }
  // Odd ones share the host, and with it memory.
  const PeerId turn = world_->next++;
  const PeerId peer = turn % 2 == 1 ? (turn + 1) / 2 : kRanks / 2 + turn / 2 - 1;
  std::string wrong = Play(*world_, peer, script).run();
  return wrong.empty() ? neighbour_is_served() : wrong;
}

std::string StrangePeers::neighbour_is_served() {
  constexpr std::uint64_t kTag = 77;
  const Bytes data = data_of(1000, world_->neighbour_said);
  Bytes message = bytes_of(Eager{.head = {.kind = Kind::eager, .sequence = world_->neighbour_said++}, .tag = kTag});
  message.insert(message.end(), data.begin(), data.end());
  world_->ether.coming.push_back({.from = kNeighbour, .payload = std::move(message)});
  Bytes buffer(data.size());
  const auto came = world_->messenger->recv(kNeighbour, kTag, buffer, std::chrono::seconds(10));
  if (!came) return "the neighbour suffers: " + came.error().to_string();
  const auto outcome = world_->messenger->wait(*came);
  if (!outcome) return "the neighbour suffers: " + outcome.error().to_string();
  return buffer == data ? "" : "the neighbour's message is not what it said";
}

}  // namespace dtr::testing
