#include "dtr/pushpull/views.hpp"

namespace dtr::inline v0 {

std::string_view to_string(Element element) noexcept {
  switch (element) {
    case Element::bytes:
      return "bytes";
    case Element::f32:
      return "f32";
    case Element::f64:
      return "f64";
    case Element::f16:
      return "f16";
    case Element::bf16:
      return "bf16";
    case Element::i32:
      return "i32";
    case Element::i64:
      return "i64";
  }
  return "?";
}

std::size_t size_of(Element element) noexcept {
  switch (element) {
    case Element::bytes:
      return 1;
    case Element::f16:
    case Element::bf16:
      return 2;
    case Element::f32:
    case Element::i32:
      return 4;
    case Element::f64:
    case Element::i64:
      return 8;
  }
  return 1;
}

}  // namespace dtr::inline v0
