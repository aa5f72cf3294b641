#include "dtr/fabric/verbs/verbs_api.hpp"

#include <cerrno>
#include <cstring>

#include <dlfcn.h>

// These names are macros or inline functions around the library's symbols; here the symbols are meant.
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_get_device_list

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kLibrary = "libibverbs.so.1";

/// The library is never unloaded: its drivers keep state beyond our objects.
class LoadedVerbs final : public VerbsApi {
 public:
  /// Empty, or the first symbol that is missing.
  std::string resolve(void* library) {
    std::string missing;
    const auto get = [&](auto& call, const char* name) {
      void* symbol = ::dlsym(library, name);
      if (symbol == nullptr && missing.empty()) missing = name;
      std::memcpy(&call, &symbol, sizeof call);
    };
    get(get_device_list_, "ibv_get_device_list");
    get(free_device_list_, "ibv_free_device_list");
    get(get_device_name_, "ibv_get_device_name");
    get(open_device_, "ibv_open_device");
    get(close_device_, "ibv_close_device");
    get(query_device_, "ibv_query_device");
    get(query_port_, "ibv_query_port");
    get(query_gid_ex_, "_ibv_query_gid_ex");
    get(get_async_event_, "ibv_get_async_event");
    get(ack_async_event_, "ibv_ack_async_event");
    get(alloc_pd_, "ibv_alloc_pd");
    get(dealloc_pd_, "ibv_dealloc_pd");
    get(reg_mr_iova2_, "ibv_reg_mr_iova2");
    get(reg_dmabuf_mr_, "ibv_reg_dmabuf_mr");
    get(dereg_mr_, "ibv_dereg_mr");
    get(create_comp_channel_, "ibv_create_comp_channel");
    get(destroy_comp_channel_, "ibv_destroy_comp_channel");
    get(create_cq_, "ibv_create_cq");
    get(destroy_cq_, "ibv_destroy_cq");
    get(get_cq_event_, "ibv_get_cq_event");
    get(ack_cq_events_, "ibv_ack_cq_events");
    get(create_srq_, "ibv_create_srq");
    get(destroy_srq_, "ibv_destroy_srq");
    get(create_qp_, "ibv_create_qp");
    get(modify_qp_, "ibv_modify_qp");
    get(query_qp_, "ibv_query_qp");
    get(destroy_qp_, "ibv_destroy_qp");
    return missing;
  }

  ibv_device** get_device_list(int* count) noexcept override { return get_device_list_(count); }
  void free_device_list(ibv_device** list) noexcept override { free_device_list_(list); }
  const char* get_device_name(ibv_device* device) noexcept override { return get_device_name_(device); }
  ibv_context* open_device(ibv_device* device) noexcept override { return open_device_(device); }
  int close_device(ibv_context* context) noexcept override { return close_device_(context); }
  int query_device(ibv_context* context, ibv_device_attr* attributes) noexcept override {
    return query_device_(context, attributes);
  }
  int query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attributes) noexcept override {
    std::memset(attributes, 0, sizeof *attributes);  // the library may know fewer fields than the header
    return query_port_(context, port, attributes);
  }
  int query_gid(ibv_context* context, std::uint8_t port, std::uint32_t index, ibv_gid_entry* entry) noexcept override {
    return query_gid_ex_(context, port, index, entry, 0, sizeof *entry);
  }
  int get_async_event(ibv_context* context, ibv_async_event* event) noexcept override {
    return get_async_event_(context, event) == 0 ? 0 : errno;
  }
  void ack_async_event(ibv_async_event* event) noexcept override { ack_async_event_(event); }

  ibv_pd* alloc_pd(ibv_context* context) noexcept override { return alloc_pd_(context); }
  int dealloc_pd(ibv_pd* pd) noexcept override { return dealloc_pd_(pd); }
  ibv_mr* reg_mr(ibv_pd* pd, void* address, std::size_t length, unsigned access) noexcept override {
    return reg_mr_iova2_(pd, address, length, reinterpret_cast<std::uintptr_t>(address), access);
  }
  ibv_mr* reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                        unsigned access) noexcept override {
    return reg_dmabuf_mr_(pd, offset, length, iova, fd, static_cast<int>(access));
  }
  int dereg_mr(ibv_mr* mr) noexcept override { return dereg_mr_(mr); }

  ibv_comp_channel* create_comp_channel(ibv_context* context) noexcept override {
    return create_comp_channel_(context);
  }
  int destroy_comp_channel(ibv_comp_channel* channel) noexcept override { return destroy_comp_channel_(channel); }
  ibv_cq* create_cq(ibv_context* context, int entries, void* user, ibv_comp_channel* channel,
                    int vector) noexcept override {
    return create_cq_(context, entries, user, channel, vector);
  }
  int destroy_cq(ibv_cq* cq) noexcept override { return destroy_cq_(cq); }
  int poll_cq(ibv_cq* cq, int entries, ibv_wc* completions) noexcept override {
    return ibv_poll_cq(cq, entries, completions);
  }
  int req_notify_cq(ibv_cq* cq, int solicited_only) noexcept override { return ibv_req_notify_cq(cq, solicited_only); }
  int get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** user) noexcept override {
    return get_cq_event_(channel, cq, user) == 0 ? 0 : errno;
  }
  void ack_cq_events(ibv_cq* cq, unsigned count) noexcept override { ack_cq_events_(cq, count); }

  ibv_srq* create_srq(ibv_pd* pd, ibv_srq_init_attr* attributes) noexcept override {
    return create_srq_(pd, attributes);
  }
  int destroy_srq(ibv_srq* srq) noexcept override { return destroy_srq_(srq); }
  int post_srq_recv(ibv_srq* srq, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept override {
    return ibv_post_srq_recv(srq, first, bad);
  }

  ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) noexcept override { return create_qp_(pd, attributes); }
  int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) noexcept override {
    return modify_qp_(qp, attributes, mask);
  }
  int query_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask, ibv_qp_init_attr* initial) noexcept override {
    return query_qp_(qp, attributes, mask, initial);
  }
  int destroy_qp(ibv_qp* qp) noexcept override { return destroy_qp_(qp); }
  int post_send(ibv_qp* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept override {
    return ibv_post_send(qp, first, bad);
  }

 private:
  decltype(&ibv_get_device_list) get_device_list_ = nullptr;
  decltype(&ibv_free_device_list) free_device_list_ = nullptr;
  decltype(&ibv_get_device_name) get_device_name_ = nullptr;
  decltype(&ibv_open_device) open_device_ = nullptr;
  decltype(&ibv_close_device) close_device_ = nullptr;
  decltype(&ibv_query_device) query_device_ = nullptr;
  int (*query_port_)(ibv_context*, std::uint8_t, ibv_port_attr*) = nullptr;
  decltype(&_ibv_query_gid_ex) query_gid_ex_ = nullptr;
  decltype(&ibv_get_async_event) get_async_event_ = nullptr;
  decltype(&ibv_ack_async_event) ack_async_event_ = nullptr;
  decltype(&ibv_alloc_pd) alloc_pd_ = nullptr;
  decltype(&ibv_dealloc_pd) dealloc_pd_ = nullptr;
  decltype(&ibv_reg_mr_iova2) reg_mr_iova2_ = nullptr;
  decltype(&ibv_reg_dmabuf_mr) reg_dmabuf_mr_ = nullptr;
  decltype(&ibv_dereg_mr) dereg_mr_ = nullptr;
  decltype(&ibv_create_comp_channel) create_comp_channel_ = nullptr;
  decltype(&ibv_destroy_comp_channel) destroy_comp_channel_ = nullptr;
  decltype(&ibv_create_cq) create_cq_ = nullptr;
  decltype(&ibv_destroy_cq) destroy_cq_ = nullptr;
  decltype(&ibv_get_cq_event) get_cq_event_ = nullptr;
  decltype(&ibv_ack_cq_events) ack_cq_events_ = nullptr;
  decltype(&ibv_create_srq) create_srq_ = nullptr;
  decltype(&ibv_destroy_srq) destroy_srq_ = nullptr;
  decltype(&ibv_create_qp) create_qp_ = nullptr;
  decltype(&ibv_modify_qp) modify_qp_ = nullptr;
  decltype(&ibv_query_qp) query_qp_ = nullptr;
  decltype(&ibv_destroy_qp) destroy_qp_ = nullptr;
};

}  // namespace

Result<std::shared_ptr<VerbsApi>> load_verbs() {
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return fail(Errc::unsupported, std::string(kLibrary) + " cannot be loaded: " + ::dlerror(), "open verbs");
  }
  auto loaded = std::make_shared<LoadedVerbs>();
  if (const std::string missing = loaded->resolve(library); !missing.empty()) {
    return fail(Errc::unsupported, std::string(kLibrary) + " is too old: it has no " + missing, "open verbs");
  }
  return loaded;
}

const char* to_words(ibv_wc_status status) noexcept {
  switch (status) {
    case IBV_WC_SUCCESS:
      return "success";
    case IBV_WC_LOC_LEN_ERR:
      return "local length error";
    case IBV_WC_LOC_QP_OP_ERR:
      return "local queue pair operation error";
    case IBV_WC_LOC_EEC_OP_ERR:
      return "local EE context operation error";
    case IBV_WC_LOC_PROT_ERR:
      return "local protection error";
    case IBV_WC_WR_FLUSH_ERR:
      return "flushed: the queue pair was in error";
    case IBV_WC_MW_BIND_ERR:
      return "memory window bind error";
    case IBV_WC_BAD_RESP_ERR:
      return "bad response";
    case IBV_WC_LOC_ACCESS_ERR:
      return "local access error";
    case IBV_WC_REM_INV_REQ_ERR:
      return "remote invalid request";
    case IBV_WC_REM_ACCESS_ERR:
      return "remote access error";
    case IBV_WC_REM_OP_ERR:
      return "remote operation error";
    case IBV_WC_RETRY_EXC_ERR:
      return "transport retries exceeded: no acknowledgement";
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return "receiver-not-ready retries exceeded";
    case IBV_WC_LOC_RDD_VIOL_ERR:
      return "local RDD violation";
    case IBV_WC_REM_INV_RD_REQ_ERR:
      return "remote invalid RD request";
    case IBV_WC_REM_ABORT_ERR:
      return "remote aborted";
    case IBV_WC_INV_EECN_ERR:
      return "invalid EE context number";
    case IBV_WC_INV_EEC_STATE_ERR:
      return "invalid EE context state";
    case IBV_WC_FATAL_ERR:
      return "fatal device error";
    case IBV_WC_RESP_TIMEOUT_ERR:
      return "response timeout";
    case IBV_WC_GENERAL_ERR:
      return "general error";
    case IBV_WC_TM_ERR:
      return "tag matching error";
    case IBV_WC_TM_RNDV_INCOMPLETE:
      return "tag matching rendezvous incomplete";
  }
  return "unknown completion status";
}

const char* to_words(ibv_event_type event) noexcept {
  switch (event) {
    case IBV_EVENT_CQ_ERR:
      return "completion queue error";
    case IBV_EVENT_QP_FATAL:
      return "queue pair fatal error";
    case IBV_EVENT_QP_REQ_ERR:
      return "queue pair invalid request";
    case IBV_EVENT_QP_ACCESS_ERR:
      return "queue pair access error";
    case IBV_EVENT_COMM_EST:
      return "communication established";
    case IBV_EVENT_SQ_DRAINED:
      return "send queue drained";
    case IBV_EVENT_PATH_MIG:
      return "path migrated";
    case IBV_EVENT_PATH_MIG_ERR:
      return "path migration failed";
    case IBV_EVENT_DEVICE_FATAL:
      return "device fatal error";
    case IBV_EVENT_PORT_ACTIVE:
      return "port active";
    case IBV_EVENT_PORT_ERR:
      return "port down";
    case IBV_EVENT_LID_CHANGE:
      return "LID changed";
    case IBV_EVENT_PKEY_CHANGE:
      return "partition keys changed";
    case IBV_EVENT_SM_CHANGE:
      return "subnet manager changed";
    case IBV_EVENT_SRQ_ERR:
      return "shared receive queue error";
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      return "shared receive queue limit reached";
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return "last receive of a queue pair reached";
    case IBV_EVENT_CLIENT_REREGISTER:
      return "client reregistration wanted";
    case IBV_EVENT_GID_CHANGE:
      return "GID table changed";
    case IBV_EVENT_WQ_FATAL:
      return "work queue fatal error";
  }
  return "unknown event";
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
