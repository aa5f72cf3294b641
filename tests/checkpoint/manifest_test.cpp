#include "dtr/checkpoint/detail/manifest.hpp"

#include <gtest/gtest.h>

#include "checkpoint/checkpoint_support.hpp"
#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/names.hpp"

namespace dtr {
namespace {

using checkpoint::decode_manifest;
using checkpoint::encode_manifest;
using checkpoint::Manifest;

/// The part of rank `rank` of two: rows of a 4 x 3 matrix "m" of i16, and a tensor of its own.
Manifest part(int rank) {
  Manifest manifest;
  manifest.step = 40;
  manifest.world = 2;
  manifest.files = {{.rank = rank, .size = 5000, .structure = 0x0123456789abcdef}};
  const auto first = static_cast<std::uint64_t>(rank) * 2;
  manifest.tensors.push_back(
      {.info = {.name = "m", .dtype = DType::i16, .global_shape = {4, 3}},
       .shards = {{.file = 0, .box = {{first, 0}, {2, 3}}, .position = 2048, .length = 12, .pieces = {7}}}});
  manifest.tensors.push_back({.info = {.name = "own/" + std::to_string(rank), .dtype = DType::f64, .global_shape = {}},
                              .shards = {{.file = 0, .box = {}, .position = 4000, .length = 8, .pieces = {8}}}});
  return manifest;
}

Manifest whole() { return checkpoint::merge_manifests({part(0), part(1)}).value(); }

/// The text with `from` replaced once and the checksum made to fit again: what only a bug or malice could write.
std::string forged(const std::string& from, const std::string& to) {
  std::string text = encode_manifest(whole());
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const auto line_end = text.find('\n') + 1;
  const auto digits = text.find("xxh3:") + 5;
  text.replace(digits, 16, checkpoint::to_hex(checkpoint::checksum(std::string_view(text).substr(line_end))));
  return text;
}

TEST(ManifestTest, WhatIsEncodedDecodesToTheSame) {
  const auto manifest = whole();
  const auto text = encode_manifest(manifest);
  const auto back = decode_manifest(text);
  ASSERT_TRUE(back) << back.error().to_string();
  EXPECT_EQ(encode_manifest(*back), text);
  EXPECT_EQ(back->step, 40U);
  EXPECT_EQ(back->world, 2);
  ASSERT_NE(back->find("m"), nullptr);
  EXPECT_EQ(back->find("m")->shards.size(), 2U);
  EXPECT_EQ(back->find("m")->shards[1].box, (Box{{2, 0}, {2, 3}}));
  EXPECT_EQ(back->find("own/1")->info.dtype, DType::f64);
  EXPECT_EQ(back->find("nothing"), nullptr);
}

TEST(ManifestTest, EveryFlippedBitIsDetected) {
  const auto text = encode_manifest(whole());
  for (std::size_t byte = 0; byte < text.size(); ++byte) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      auto broken = text;
      broken[byte] = static_cast<char>(broken[byte] ^ (1U << bit));
      const auto decoded = decode_manifest(broken);
      ASSERT_FALSE(decoded) << "byte " << byte << " bit " << bit;
      ASSERT_EQ(decoded.error().code, Errc::corrupt);
    }
  }
}

TEST(ManifestTest, EveryTruncationAndExtensionIsDetected) {
  const auto text = encode_manifest(whole());
  for (std::size_t size = 0; size < text.size(); ++size) {
    ASSERT_FALSE(decode_manifest(std::string_view(text).substr(0, size))) << size;
  }
  EXPECT_FALSE(decode_manifest(text + " "));
  EXPECT_FALSE(decode_manifest(text + text));
}

TEST(ManifestTest, AFieldThatContradictsTheOthersIsRefusedEvenUnderARightChecksum) {
  struct Forgery {
    std::string from, to, word;
  };
  for (const auto& forgery : std::vector<Forgery>{
           {"\"world\":2", "\"world\":0", "world"},
           {"\"world\":2", "\"world\":-2", "world"},
           {"\"world\":2", "\"world\":1", "file name"},
           {"\"world\":2", "\"world\":99999999999", "world"},
           {"rank_00000.h5", "../rank_00000.h5", "file name"},
           {"rank_00000.h5", "rank_0.h5", "file name"},
           {"rank_00001.h5", "rank_00000.h5", "rank order"},
           {"\"step\":40", "\"stop\":40", "step"},
           {"\"step\":40", "\"step\":\"40\"", "step"},
           {"\"piece_bytes\":4194304", "\"piece_bytes\":0", "piece_bytes"},
           {"\"piece_bytes\":4194304", "\"piece_bytes\":18446744073709551615", "piece_bytes"},
           {"\"piece_bytes\":4194304", "\"piece_bytes\":4", "number of checksums"},
           {"\"dtype\":\"i16\"", "\"dtype\":\"i17\"", "dtype"},
           {"\"dtype\":\"i16\"", "\"dtype\":\"i32\"", "length"},
           {"\"shape\":[4,3]", "\"shape\":[4]", "box"},
           {"\"shape\":[4,3]", "\"shape\":[3,3]", "box"},
           {"\"shape\":[4,3]", "\"shape\":{}", "shape"},
           {"\"offset\":[2,0]", "\"offset\":[18446744073709551615,0]", "box"},
           {"\"position\":2048", "\"position\":4999", "leaves its file"},
           {"\"position\":2048", "\"position\":18446744073709551615", "leaves its file"},
           {"\"file\":0", "\"file\":2", "no such file"},
           {"\"pieces\":[\"0000000000000007\"]", "\"pieces\":[]", "number of checksums"},
           {"0000000000000007", "000000000000000G", "hexadecimal"},
           {"\"name\":\"m\"", "\"name\":\"z\"", "order"},
           {"\"format\":\"libdtr checkpoint\"", "\"format\":\"other\"", "format"},
           {"\"tensors\":[", "\"tensors\":[[[[", "JSON"},
       }) {
    const auto decoded = decode_manifest(forged(forgery.from, forgery.to));
    ASSERT_FALSE(decoded) << forgery.to;
    EXPECT_EQ(decoded.error().code, Errc::corrupt) << forgery.to;
    EXPECT_NE(decoded.error().message.find(forgery.word), std::string::npos)
        << forgery.to << ": " << decoded.error().message;
  }
}

TEST(ManifestTest, ALaterFormatVersionIsUnsupportedNotCorrupt) {
  const auto decoded = decode_manifest(forged("\"version\":1", "\"version\":2"));
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::unsupported);
}

TEST(ManifestTest, PartsThatOverlapAreRefusedWithBothRanks) {
  auto second = part(1);
  second.tensors[0].shards[0].box.offset[0] = 1;
  const auto merged = checkpoint::merge_manifests({part(0), second});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().code, Errc::overlap);
  EXPECT_EQ(merged.error().message, "tensor 'm': box [0:2, 0:3] of rank 0 overlaps box [1:3, 0:3] of rank 1");
}

TEST(ManifestTest, AHoleInATensorIsRefused) {
  const auto merged = checkpoint::merge_manifests({part(0)});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().code, Errc::invalid_argument);
  EXPECT_EQ(merged.error().message, "tensor 'm' of shape [4, 3] is not whole: the ranks hold 6 of its elements");
}

TEST(ManifestTest, RanksThatDisagreeAboutATensorAreNamed) {
  auto second = part(1);
  second.tensors[0].info.dtype = DType::u16;
  const auto merged = checkpoint::merge_manifests({part(0), second});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().message, "tensor 'm' is i16[4, 3] on rank 0 and u16[4, 3] on rank 1");
}

TEST(ManifestTest, ATensorOnOneRankMayNotBeAFolderOnAnother) {
  auto second = part(1);
  second.tensors[1].info.name = "own/0/deeper";
  const auto merged = checkpoint::merge_manifests({part(0), second});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().message, "'own/0' is a tensor and also the folder of 'own/0/deeper'");
}

TEST(NamesTest, EachStepHasOneSpelling) {
  EXPECT_EQ(checkpoint::step_name(1000), "step_000001000");
  EXPECT_EQ(checkpoint::step_name(12345678901), "step_12345678901");
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{999999999}, std::uint64_t{1000000000}, UINT64_MAX}) {
    EXPECT_EQ(checkpoint::parse_step_name(checkpoint::step_name(step)), step);
  }
  for (const auto* name : {"", "step_", "step_1", "step_0000000001", "step_00000000x", "step_-00000001",
                           "xstep_000000001", "step_000000001.tmp", "step_99999999999999999999"}) {
    EXPECT_FALSE(checkpoint::parse_step_name(name)) << name;
  }
}

TEST(NamesTest, OnlyOurOwnGarbageIsGarbage) {
  EXPECT_TRUE(checkpoint::is_temporary_name(checkpoint::temporary_name(7, "ab-1")));
  EXPECT_TRUE(checkpoint::is_trash_name(checkpoint::trash_name(7, "ab-1")));
  for (const auto* name : {".", "..", ".tmp-", ".step_1.tmp-a", "step_000000007", "step_000000007.tmp-a", ".bashrc",
                           ".step_000000007.tmp-a/../../x", ".trash"}) {
    EXPECT_FALSE(checkpoint::is_temporary_name(name)) << name;
    EXPECT_FALSE(checkpoint::is_trash_name(name)) << name;
  }
}

}  // namespace
}  // namespace dtr
