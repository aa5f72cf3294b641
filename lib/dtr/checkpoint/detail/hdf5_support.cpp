#include "dtr/checkpoint/detail/hdf5_support.hpp"

#include <hdf5.h>

namespace dtr::inline v0 {
namespace checkpoint {

static_assert(std::is_same_v<hid_t, std::int64_t> && std::is_same_v<herr_t, int>);

QuietHdf5::QuietHdf5() noexcept {
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

QuietHdf5::~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

Error hdf5_error(const std::string& what) {
  std::string cause;
  // Innermost first: that is where the reason is.
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* target) -> herr_t {
    auto& text = *static_cast<std::string*>(target);
    if (text.empty() && entry->desc != nullptr) text = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &cause);
  return Error{.code = Errc::internal,
               .message = what + (cause.empty() ? "" : ": " + cause),
               .operation = "hdf5",
               .peer = -1,
               .path = {}};
}

namespace {

/// IEEE-like types that HDF5 has no name for. Positions are bits from the low end.
Hid small_float(std::size_t exponent_at, std::size_t exponent_bits, std::size_t bias) {
  Hid type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  const bool made = type && H5Tset_fields(type.get(), 15, exponent_at, exponent_bits, 0, exponent_at) >= 0 &&
                    H5Tset_ebias(type.get(), bias) >= 0 && H5Tset_precision(type.get(), 16) >= 0 &&
                    H5Tset_size(type.get(), 2) >= 0;
  return made ? std::move(type) : Hid();
}

}  // namespace

Hid hdf5_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case DType::f32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case DType::f16:
      return small_float(10, 5, 15);
    case DType::bf16:
      return small_float(7, 8, 127);
    case DType::i64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case DType::i32:
      return {H5Tcopy(H5T_STD_I32LE), H5Tclose};
    case DType::i16:
      return {H5Tcopy(H5T_STD_I16LE), H5Tclose};
    case DType::i8:
      return {H5Tcopy(H5T_STD_I8LE), H5Tclose};
    case DType::u64:
      return {H5Tcopy(H5T_STD_U64LE), H5Tclose};
    case DType::u32:
      return {H5Tcopy(H5T_STD_U32LE), H5Tclose};
    case DType::u16:
      return {H5Tcopy(H5T_STD_U16LE), H5Tclose};
    case DType::u8:
      return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
  }
  return {};
}

Hid link_creation() {
  Hid list(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  const bool made = list && H5Pset_create_intermediate_group(list.get(), 1) >= 0 &&
                    H5Pset_char_encoding(list.get(), H5T_CSET_UTF8) >= 0;
  return made ? std::move(list) : Hid();
}

Hid dataset_creation() {
  Hid list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const bool made = list && H5Pset_obj_track_times(list.get(), 0) >= 0;
  return made ? std::move(list) : Hid();
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
