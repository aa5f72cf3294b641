#include "dtr/dataset/agreement.hpp"

#include <algorithm>
#include <map>

#include "dtr/base/bytes.hpp"
#include "dtr/dataset/mix.hpp"

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
  ByteWriter out;
  for (const auto& [name, value] : fields) out.text(name).text(value);
  return out.take();
}

Fields unpacked(const Bytes& bytes) {
  ByteReader in(bytes);
  Fields fields;
  while (in.ok() && !in.at_end()) {
    std::string name = in.text();
    fields.emplace_back(std::move(name), in.text());
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
  ByteWriter sent;
  sent.value(mine ? Errc::ok : mine.error().code).text(mine ? std::string_view{} : mine.error().message);
  Bytes bytes = sent.take();
  if (mine) bytes.insert(bytes.end(), mine->begin(), mine->end());

  const auto all = group.allgather(topic, bytes, deadline);
  if (!all) return fail(all.error());
  std::vector<Bytes> values;
  for (std::size_t rank = 0; rank < all->size(); ++rank) {
    ByteReader in((*all)[rank]);
    const auto code = in.value<Errc>();
    const std::string message = in.text();
    if (!in.ok()) {
      return fail(Errc::protocol_error, "the word of rank " + std::to_string(rank) + " is cut off", operation,
                  static_cast<int>(rank));
    }
    if (code != Errc::ok) {
      return fail(code, "on rank " + std::to_string(rank) + ": " + message, operation, static_cast<int>(rank));
    }
    const auto value = in.rest();
    values.emplace_back(value.begin(), value.end());
  }
  return values;
}

Result<void> agree(Group& group, const Result<Fields>& fields, const std::string& operation, Deadline deadline) {
  const Result<Bytes> mine = fields.map([](const Fields& all) { return ByteWriter().value(digest(all)).take(); });
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
