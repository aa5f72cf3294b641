#include <algorithm>
#include <map>
#include <random>
#include <thread>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "dtr/memory/buddy.hpp"
#include "dtr/memory/region_table.hpp"
#include "dtr/memory/segment.hpp"

namespace dtr {
namespace {

using ::testing::HasSubstr;

// --- BuddyAllocator ---

TEST(BuddyAllocatorTest, BlocksAreAlignedDisjointAndMergeBackToTheWhole) {
  constexpr std::size_t kCapacity = 1 << 22;
  BuddyAllocator buddy(kCapacity);
  std::mt19937 random(7);
  std::map<std::size_t, std::size_t> taken;  // offset -> bytes asked for
  for (int step = 0; step < 20000; ++step) {
    if (taken.empty() || random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % (random() % 8 == 0 ? 1 << 20 : 20000);
      const auto offset = buddy.allocate(bytes);
      if (!offset) continue;
      const std::size_t block = BuddyAllocator::block_size(bytes);
      ASSERT_EQ(*offset % block, 0U);
      ASSERT_LE(*offset + block, kCapacity);
      const auto after = taken.lower_bound(*offset);
      if (after != taken.end()) {
        ASSERT_LE(*offset + block, after->first);
      }
      if (after != taken.begin()) {
        const auto before = std::prev(after);
        ASSERT_LE(before->first + BuddyAllocator::block_size(before->second), *offset);
      }
      taken[*offset] = bytes;
    } else {
      auto victim = std::next(taken.begin(), static_cast<std::ptrdiff_t>(random() % taken.size()));
      buddy.release(victim->first, victim->second);
      taken.erase(victim);
    }
  }
  for (const auto& [offset, bytes] : taken) buddy.release(offset, bytes);
  EXPECT_EQ(buddy.free_bytes(), kCapacity);
  EXPECT_EQ(buddy.largest_free(), kCapacity);
}

TEST(BuddyAllocatorTest, CapacityThatIsNoPowerOfTwoIsUsedToTheLastBlock) {
  BuddyAllocator buddy(7 * BuddyAllocator::kSmallest + 100);
  for (int i = 0; i < 7; ++i) EXPECT_TRUE(buddy.allocate(1)) << i;
  EXPECT_FALSE(buddy.allocate(1));
  EXPECT_EQ(buddy.free_bytes(), 0U);
}

TEST(BuddyAllocatorTest, TooLargeRequestsGetNothing) {
  BuddyAllocator buddy(1 << 20);
  EXPECT_FALSE(buddy.allocate((1 << 20) + 1));
  EXPECT_FALSE(buddy.allocate(~std::size_t{0}));
  EXPECT_TRUE(buddy.allocate(1 << 20));
}

// --- Segment ---

TEST(SegmentTest, PeerMapsTheSameBytes) {
  auto mine = Segment::create(3, 10000);
  ASSERT_TRUE(mine) << mine.error().to_string();
  auto theirs = Segment::map(3, UniqueFd(::dup((*mine)->fd())));
  ASSERT_TRUE(theirs) << theirs.error().to_string();
  EXPECT_EQ((*theirs)->length(), (*mine)->length());
  (*mine)->data()[9999] = std::byte{77};
  EXPECT_EQ((*theirs)->data()[9999], std::byte{77});
}

TEST(SegmentTest, FileThatCouldShrinkUnderTheMappingIsRefused) {
  UniqueFd fd(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  auto mapped = Segment::map(1, std::move(fd));
  ASSERT_FALSE(mapped);
  EXPECT_EQ(mapped.error().code, Errc::protocol_error);
  EXPECT_THAT(mapped.error().message, HasSubstr("not sealed"));
}

TEST(SegmentTest, ImpossibleSizesAreErrors) {
  EXPECT_EQ(Segment::create(1, 0).error().code, Errc::invalid_argument);
  EXPECT_FALSE(Segment::create(1, std::size_t{1} << 60));
}

// --- RegionTable ---

class RegionTableTest : public ::testing::Test {
 protected:
  std::unique_ptr<RegionTable> table_ = value_or_throw(RegionTable::create());
  std::vector<std::byte> memory_ = std::vector<std::byte>(10000);

  RegionTable::Request request(const RemoteKey& key, std::uint64_t offset, std::uint64_t length) const {
    return {.slot = key.slot,
            .generation = key.generation,
            .secret = key.secret,
            .offset = offset,
            .length = length,
            .access = Access::write};
  }
};

TEST_F(RegionTableTest, OverlapIsRefusedNamingBothRanges) {
  const std::span<std::byte> all(memory_);
  ASSERT_TRUE(table_->add(all.subspan(1000, 1000), {}));
  for (const auto part : {all.subspan(0, 1001), all.subspan(1999, 10), all.subspan(1200, 10), all}) {
    const auto refused = table_->add(part, {});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::overlap);
    EXPECT_THAT(refused.error().message, HasSubstr("+1000)"));
  }
  EXPECT_TRUE(table_->add(all.subspan(0, 1000), {}));
  EXPECT_TRUE(table_->add(all.subspan(2000, 10), {}));
}

TEST_F(RegionTableTest, EmptyAndNullMemoryIsRefused) {
  EXPECT_EQ(table_->add(std::span<std::byte>(memory_.data(), 0), {}).error().code, Errc::invalid_argument);
  EXPECT_EQ(table_->add(std::span<std::byte>(static_cast<std::byte*>(nullptr), 8), {}).error().code,
            Errc::invalid_argument);
}

TEST_F(RegionTableTest, AccessIsGrantedOnlyWithTheRightKeyInsideTheBounds) {
  Region* region = value_or_throw(table_->add(memory_, {.access = Access::write}));
  const RemoteKey key = region->key();
  RegionTable::Use use;
  EXPECT_EQ(table_->acquire(request(key, 9999, 1), use), Errc::ok);
  EXPECT_EQ(use.data(), memory_.data() + 9999);
  use.release();
  EXPECT_EQ(table_->acquire(request(key, 9999, 2), use), Errc::out_of_range);
  EXPECT_EQ(table_->acquire(request(key, ~0ULL, 2), use), Errc::out_of_range);
  auto forged = request(key, 0, 1);
  forged.secret ^= 1;
  EXPECT_EQ(table_->acquire(forged, use), Errc::not_registered);
  auto reading = request(key, 0, 1);
  reading.access = Access::read;
  EXPECT_EQ(table_->acquire(reading, use), Errc::permission_denied);
  auto elsewhere = request(key, 0, 1);
  elsewhere.slot = 7;
  EXPECT_EQ(table_->acquire(elsewhere, use), Errc::not_registered);
  elsewhere.slot = 0xFFFFFFFF;
  EXPECT_EQ(table_->acquire(elsewhere, use), Errc::not_registered);
  EXPECT_EQ(region->uses(), 0U);
}

TEST_F(RegionTableTest, OldKeyDoesNotOpenTheNextRegionOfItsSlot) {
  Region* region = value_or_throw(table_->add(memory_, {}));
  const RemoteKey old = region->key();
  table_->revoke(*region);
  RegionTable::Use use;
  EXPECT_EQ(table_->acquire(request(old, 0, 1), use), Errc::revoked);
  table_->remove(*region);
  Region* next = value_or_throw(table_->add(memory_, {}));
  ASSERT_EQ(next->key().slot, old.slot);
  EXPECT_EQ(table_->acquire(request(old, 0, 1), use), Errc::revoked);
  EXPECT_EQ(table_->acquire(request(next->key(), 0, 1), use), Errc::ok);
}

TEST_F(RegionTableTest, RevocationAndAccessNeverCross) {
  // Whoever got access before the revocation is seen as a user after it; nobody gets it later.
  for (int round = 0; round < 300; ++round) {
    Region* region = value_or_throw(table_->add(memory_, {}));
    const RemoteKey key = region->key();
    std::atomic<bool> owner_is_sure{false};
    std::atomic<bool> violated{false};
    std::thread peer([&] {
      for (int i = 0; i < 200; ++i) {
        RegionTable::Use use;
        if (table_->acquire(request(key, 0, 8), use) != Errc::ok) return;
        if (owner_is_sure.load()) violated = true;
      }
    });
    table_->revoke(*region);
    while (region->uses() != 0) std::this_thread::yield();
    owner_is_sure = true;
    peer.join();
    EXPECT_FALSE(violated);
    table_->remove(*region);
  }
}

TEST_F(RegionTableTest, CoveringFindsOnlyWholeRanges) {
  Region* region = value_or_throw(table_->add(std::span<std::byte>(memory_).subspan(100, 100), {}));
  const std::span<const std::byte> all(memory_);
  EXPECT_EQ(table_->covering(all.subspan(100, 100)), region);
  EXPECT_EQ(table_->covering(all.subspan(150, 10)), region);
  EXPECT_EQ(table_->covering(all.subspan(150, 60)), nullptr);
  EXPECT_EQ(table_->covering(all.subspan(50, 10)), nullptr);
}

TEST_F(RegionTableTest, FullTableSaysItsLimit) {
  std::vector<std::byte> many(RegionTable::kMaxRegions + 1);
  for (std::uint32_t i = 0; i < RegionTable::kMaxRegions; ++i) {
    ASSERT_TRUE(table_->add(std::span<std::byte>(many).subspan(i, 1), {}));
  }
  const auto refused = table_->add(std::span<std::byte>(many).subspan(RegionTable::kMaxRegions, 1), {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::resource_exhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("16384"));
}

}  // namespace
}  // namespace dtr
