// Notices a second thread inside of an object that belongs to one at a time.
#pragma once

#include <atomic>
#include <string>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace pushpull {

class OneThread {
 public:
  class Visit {
   public:
    explicit Visit(OneThread& door) noexcept : door_(door), alone_(!door.inside_.test_and_set()) {}
    ~Visit() {
      if (alone_) door_.inside_.clear();
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

    [[nodiscard]] Result<void> check(const char* operation) const {
      if (alone_) return {};
      return fail(Errc::invalid_argument, "another thread is inside of this object; it takes one at a time", operation);
    }

   private:
    OneThread& door_;
    const bool alone_;
  };

 private:
  std::atomic_flag inside_{};
};

}  // namespace pushpull
}  // namespace dtr::inline v0
