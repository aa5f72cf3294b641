// The one table of verbs calls that libdtr uses. Behind it stands libibverbs, loaded when it is first asked for, so
// that the same binary runs where rdma-core is absent; tests put a software NIC there.
#pragma once

#include <memory>
#include <string>

#include <infiniband/verbs.h>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// Calls have the meaning, and give the errors, of the ibv_ function of the same name (rdma-core's manual pages):
/// pointers are nullptr with errno set, integers are 0 or an errno, poll_cq is a count or negative.
class VerbsApi {
 public:
  virtual ~VerbsApi() = default;

  virtual ibv_device** get_device_list(int* count) noexcept = 0;
  virtual void free_device_list(ibv_device** list) noexcept = 0;
  virtual const char* get_device_name(ibv_device* device) noexcept = 0;
  virtual ibv_context* open_device(ibv_device* device) noexcept = 0;
  virtual int close_device(ibv_context* context) noexcept = 0;
  virtual int query_device(ibv_context* context, ibv_device_attr* attributes) noexcept = 0;
  virtual int query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attributes) noexcept = 0;
  /// ENODATA: the entry is empty. EINVAL: there are no more.
  virtual int query_gid(ibv_context* context, std::uint8_t port, std::uint32_t index,
                        ibv_gid_entry* entry) noexcept = 0;
  virtual int get_async_event(ibv_context* context, ibv_async_event* event) noexcept = 0;
  virtual void ack_async_event(ibv_async_event* event) noexcept = 0;

  virtual ibv_pd* alloc_pd(ibv_context* context) noexcept = 0;
  virtual int dealloc_pd(ibv_pd* pd) noexcept = 0;
  virtual ibv_mr* reg_mr(ibv_pd* pd, void* address, std::size_t length, unsigned access) noexcept = 0;
  virtual ibv_mr* reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                                unsigned access) noexcept = 0;
  virtual int dereg_mr(ibv_mr* mr) noexcept = 0;

  virtual ibv_comp_channel* create_comp_channel(ibv_context* context) noexcept = 0;
  virtual int destroy_comp_channel(ibv_comp_channel* channel) noexcept = 0;
  virtual ibv_cq* create_cq(ibv_context* context, int entries, void* user, ibv_comp_channel* channel,
                            int vector) noexcept = 0;
  virtual int destroy_cq(ibv_cq* cq) noexcept = 0;
  virtual int poll_cq(ibv_cq* cq, int entries, ibv_wc* completions) noexcept = 0;
  virtual int req_notify_cq(ibv_cq* cq, int solicited_only) noexcept = 0;
  virtual int get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** user) noexcept = 0;
  virtual void ack_cq_events(ibv_cq* cq, unsigned count) noexcept = 0;

  virtual ibv_srq* create_srq(ibv_pd* pd, ibv_srq_init_attr* attributes) noexcept = 0;
  virtual int destroy_srq(ibv_srq* srq) noexcept = 0;
  virtual int post_srq_recv(ibv_srq* srq, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept = 0;

  virtual ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) noexcept = 0;
  virtual int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) noexcept = 0;
  virtual int query_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask, ibv_qp_init_attr* initial) noexcept = 0;
  virtual int destroy_qp(ibv_qp* qp) noexcept = 0;
  virtual int post_send(ibv_qp* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept = 0;
};

/// libibverbs of this machine. Errors: unsupported, naming the library or the call that is not there.
[[nodiscard]] Result<std::shared_ptr<VerbsApi>> load_verbs();

/// "remote access error": a completion's status in words.
[[nodiscard]] const char* to_words(ibv_wc_status status) noexcept;
/// "port down": an asynchronous event in words.
[[nodiscard]] const char* to_words(ibv_event_type event) noexcept;

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
