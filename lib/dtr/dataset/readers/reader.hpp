// What every file format looks like from outside: a row of samples, all of one shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/dtype.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// Random access to the samples of a file (or of several, see open_dataset). Reading: any thread.
class SampleReader {
 public:
  struct Layout {
    std::string name{};  ///< for messages: the file, and what inside it
    std::uint64_t samples = 0;
    std::vector<std::uint64_t> shape{};  ///< of one sample; empty = a single element
    DType type = DType::u8;              ///< in the byte order of this machine, whatever the file has
    /// Samples are at hand one by one (memory, or one read at a known offset). Otherwise runs are much cheaper.
    bool random_access = true;
  };

  virtual ~SampleReader() = default;
  SampleReader(const SampleReader&) = delete;
  SampleReader& operator=(const SampleReader&) = delete;

  [[nodiscard]] const std::string& name() const noexcept { return layout_.name; }
  [[nodiscard]] std::uint64_t samples() const noexcept { return layout_.samples; }
  [[nodiscard]] std::span<const std::uint64_t> sample_shape() const noexcept { return layout_.shape; }
  [[nodiscard]] DType type() const noexcept { return layout_.type; }
  [[nodiscard]] bool random_access() const noexcept { return layout_.random_access; }
  [[nodiscard]] std::size_t sample_bytes() const noexcept { return sample_bytes_; }

  /// Samples [first, first + count), row-major and packed. `out` has exactly count * sample_bytes() bytes.
  /// Errors: out_of_range, invalid_argument (size of `out`), io_error, truncated, corrupt; all name the file.
  [[nodiscard]] Result<void> read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const;

 protected:
  /// Throws Exception: what check_layout says.
  explicit SampleReader(Layout layout);

 private:
  /// Arguments are checked and count > 0.
  [[nodiscard]] virtual Result<void> do_read(std::uint64_t first, std::uint64_t count,
                                             std::span<std::byte> out) const = 0;

  Layout layout_;
  std::size_t sample_bytes_;
};

using ReaderPtr = std::shared_ptr<const SampleReader>;

/// Bytes of all samples of a layout. Errors: corrupt, naming the file (a dimension of 0, or a size beyond 2^62 bytes).
[[nodiscard]] Result<std::uint64_t> check_layout(const SampleReader::Layout& layout);

}  // namespace dtr::inline v0
