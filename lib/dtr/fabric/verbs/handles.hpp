// Verbs objects that destroy themselves. Each must go before what it was made from.
#pragma once

#include <utility>

#include "dtr/fabric/verbs/verbs_api.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// Calls one function of the table on what is held.
template <class T, int (VerbsApi::*Destroy)(T*) noexcept>
class Handle {
 public:
  Handle() = default;
  Handle(VerbsApi& api, T* object) noexcept : api_(&api), object_(object) {}
  Handle(Handle&& other) noexcept : api_(other.api_), object_(std::exchange(other.object_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      api_ = other.api_;
      object_ = std::exchange(other.object_, nullptr);
    }
    return *this;
  }
  ~Handle() { reset(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void reset() noexcept {
    if (object_ != nullptr) static_cast<void>((api_->*Destroy)(std::exchange(object_, nullptr)));
  }
  [[nodiscard]] T* get() const noexcept { return object_; }
  [[nodiscard]] T* operator->() const noexcept { return object_; }
  [[nodiscard]] explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  VerbsApi* api_ = nullptr;
  T* object_ = nullptr;
};

using Context = Handle<ibv_context, &VerbsApi::close_device>;
using ProtectionDomain = Handle<ibv_pd, &VerbsApi::dealloc_pd>;
using MemoryRegion = Handle<ibv_mr, &VerbsApi::dereg_mr>;
using CompletionChannel = Handle<ibv_comp_channel, &VerbsApi::destroy_comp_channel>;
using CompletionQueue = Handle<ibv_cq, &VerbsApi::destroy_cq>;
using SharedReceiveQueue = Handle<ibv_srq, &VerbsApi::destroy_srq>;
using QueuePair = Handle<ibv_qp, &VerbsApi::destroy_qp>;

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
