#include "dtr/dataset/agreement.hpp"

#include <algorithm>
#include <map>

#include "dtr/dataset/mix.hpp"
#include "dtr/dataset/wire.hpp"

namespace dtr::inline v0 {
namespace dataset {

namespace {

std::uint64_t digest(const Fields& fields) {
  KeyHash hash("dataset/agreement");
  for (const auto& [name, value] : fields) hash.add(name).add(value);
  return hash.value();
}

/// A rank of the largest set of equal contributions; the lowest such rank when sets are equally large.
std::size_t typical_rank(const std::vector<Bytes>& contributions) {
  std::map<Bytes, std::size_t> sizes;
  for (const Bytes& bytes : contributions) ++sizes[bytes];
  std::size_t typical = 0;
  for (std::size_t rank = 1; rank < contributions.size(); ++rank) {
    if (sizes[contributions[rank]] > sizes[contributions[typical]]) typical = rank;
  }
  return typical;
}

Bytes packed(const Fields& fields) {
  Bytes bytes;
  for (const auto& [name, value] : fields) {
    put(bytes, name);
    put(bytes, value);
  }
  return bytes;
}

Fields unpacked(const Bytes& bytes) {
  Taker taker(bytes);
  Fields fields;
  while (taker.ok() && !taker.done()) {
    std::string name = taker.text();
    fields.emplace_back(std::move(name), taker.text());
  }
  return fields;
}

/// A short value whole; of a long one the part around `at`.
std::string excerpt(const std::string& value, std::size_t at) {
  constexpr std::size_t kShort = 120;
  if (value.size() <= kShort) return "'" + value + "'";
  const std::size_t begin = at < kShort / 2 ? 0 : at - kShort / 2;
  return (begin > 0 ? "'..." : "'") + value.substr(begin, kShort) + (begin + kShort < value.size() ? "...'" : "'");
}

}  // namespace

Result<std::vector<Bytes>> exchange(Group& group, std::string_view topic, const Result<Bytes>& mine,
                                    const std::string& operation, Deadline deadline) {
  Bytes sent;
  put(sent, mine ? std::uint64_t{0} : static_cast<std::uint64_t>(-static_cast<int>(mine.error().code)));
  put(sent, mine ? std::string_view{} : mine.error().message);
  if (mine) sent.insert(sent.end(), mine->begin(), mine->end());

  const auto all = group.allgather(topic, sent, deadline);
  if (!all) return fail(all.error());
  std::vector<Bytes> values;
  for (std::size_t rank = 0; rank < all->size(); ++rank) {
    Taker taker((*all)[rank]);
    const auto code = static_cast<Errc>(-static_cast<int>(taker.number()));
    const std::string message = taker.text();
    if (!taker.ok()) {
      return fail(Errc::protocol_error, "the word of rank " + std::to_string(rank) + " is cut off", operation,
                  static_cast<int>(rank));
    }
    if (code != Errc::ok) {
      return fail(code, "on rank " + std::to_string(rank) + ": " + message, operation, static_cast<int>(rank));
    }
    const auto value = taker.rest();
    values.emplace_back(value.begin(), value.end());
  }
  return values;
}

Result<void> agree(Group& group, const Result<Fields>& fields, const std::string& operation, Deadline deadline) {
  Result<Bytes> mine;
  if (fields) {
    put(*mine, digest(*fields));
  } else {
    mine = fail(fields.error());
  }
  const auto digests = exchange(group, "dataset/digest", mine, operation, deadline);
  if (!digests) return fail(digests.error());
  const std::size_t typical = typical_rank(*digests);
  const auto other =
      std::find_if(digests->begin(), digests->end(), [&](const Bytes& bytes) { return bytes != (*digests)[typical]; });
  if (other == digests->end()) return {};

  const auto rank = static_cast<std::size_t>(other - digests->begin());
  const auto all = exchange(group, "dataset/fields", packed(*fields), operation, deadline);
  if (!all) return fail(all.error());
  const Fields usual = unpacked((*all)[typical]);
  const Fields differs = unpacked((*all)[rank]);
  for (std::size_t i = 0; i < usual.size() && i < differs.size(); ++i) {
    if (usual[i] == differs[i]) continue;
    const std::string& a = differs[i].second;
    const std::string& b = usual[i].second;
    const auto at = static_cast<std::size_t>(
        std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(std::min(a.size(), b.size())), b.begin())
            .first -
        a.begin());
    return fail(Errc::invalid_argument,
                "rank " + std::to_string(rank) + " has " + differs[i].first + " " + excerpt(a, at) + ", rank " +
                    std::to_string(typical) + " has " + excerpt(b, at),
                operation, static_cast<int>(rank));
  }
  return fail(Errc::protocol_error, "rank " + std::to_string(rank) + " describes it in other fields", operation,
              static_cast<int>(rank));
}

}  // namespace dataset
}  // namespace dtr::inline v0
