// THE table: a setting exists if and only if it has a row here. After a change run the tests of base with
// DTR_TEST_UPDATE=1 to renew docs/configuration.md.
#include <cctype>

#include "dtr/base/config.hpp"
#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {

namespace {

using enum SettingType;
using enum SettingUnit;

constexpr double kKiB = 1024;
constexpr double kMiB = 1024 * kKiB;
constexpr double kGiB = 1024 * kMiB;
constexpr double kTiB = 1024 * kGiB;
constexpr double kDayMs = 24.0 * 3600 * 1000;

std::string cpu_list_complaint(std::string_view value) {
  const auto cpus = parse_cpu_list(value);
  return cpus ? std::string() : cpus.error().message;
}

std::string power_of_two_complaint(std::string_view value) {
  const auto number = std::stoull(std::string(value));
  return (number & (number - 1)) == 0 ? std::string() : "it has to be a power of two";
}

// clang-format off
constexpr Setting kSettings[] = {
    {.key = "log.level", .environment = "DTR_LOG", .type = choice, .initial = "warn", .choices = "trace debug info warn error off",
     .help = "Least important log lines that are written."},
    {.key = "log.file", .type = text,
     .help = "File that log lines are appended to, besides stderr; `{rank}` is replaced."},

    {.key = "transport.allow", .environment = "DTR_TRANSPORT", .type = list, .choices = "shm tcp verbs",
     .help = "Transports that peers may be reached by; empty = all. Loopback to oneself always stays."},
    {.key = "host.id", .type = text,
     .help = "Name of this rank's host; ranks with equal names share memory. Empty = found out. Different names on one machine make it several hosts for tests."},

    {.key = "progress.mode", .environment = "DTR_PROGRESS", .type = choice, .initial = "thread", .choices = "thread inline",
     .help = "Who moves data along: a thread of the Runtime, or the calls to progress() and the waits."},
    {.key = "progress.spin_us", .type = integer, .unit = microseconds, .initial = "-1", .minimum = -1, .maximum = 10e6,
     .help = "How long a waiting caller, and the progress thread, poll before they sleep. -1 = automatic: 50 us, where more than one rank wants a CPU giving it away between looks; for the thread 20 us, or 0 there."},
    {.key = "progress.affinity", .type = text,
     .help = "CPUs for the progress thread, as 0-3,8; empty = any.", .complaint = cpu_list_complaint},

    {.key = "timeout.operation_ms", .environment = "DTR_TIMEOUT_MS", .type = integer, .unit = milliseconds, .initial = "30000", .minimum = 1, .maximum = kDayMs,
     .help = "Deadline of an operation or a close for which the caller gives none."},
    {.key = "timeout.connect_ms", .type = integer, .unit = milliseconds, .initial = "10000", .minimum = 1, .maximum = kDayMs,
     .help = "Longest time to connect to a peer, the handshake included."},
    {.key = "timeout.barrier_ms", .type = integer, .unit = milliseconds, .initial = "60000", .minimum = 1, .maximum = kDayMs,
     .help = "Deadline of a barrier for which the caller gives none; its time-out names who is missing."},
    {.key = "timeout.finalize_ms", .type = integer, .unit = milliseconds, .initial = "10000", .minimum = 1, .maximum = kDayMs,
     .help = "Longest time that the end of a Runtime, and of all services on it, waits for peers that do not answer."},

    {.key = "failure.detect_ms", .type = integer, .unit = milliseconds, .initial = "5000", .minimum = 10, .maximum = kDayMs,
     .help = "Within this time after a peer's death its operations end with peer_failed."},
    {.key = "runtime.heartbeat_interval_ms", .type = integer, .unit = milliseconds, .initial = "1000", .minimum = 10, .maximum = kDayMs,
     .help = "Time between two signs of life that ranks give those who watch them; at most half of the time-out. Rank 0's counts for all.", .key_aliases = "coordinator.heartbeat_interval_ms"},
    {.key = "runtime.heartbeat_timeout_ms", .type = integer, .unit = milliseconds, .initial = "30000", .minimum = 20, .maximum = kDayMs,
     .help = "A rank that was silent for this time is declared failed on all others, at most two intervals later. Rank 0's counts for all.", .key_aliases = "coordinator.heartbeat_timeout_ms"},
    {.key = "runtime.watch_width", .type = integer, .initial = "64", .minimum = 1, .maximum = 1024,
     .help = "How many ranks below it each rank watches, beside the one above it. Rank 0's counts for all."},
    {.key = "runtime.address", .type = text,
     .help = "Read and not used: peers are found through MPI and there is no coordinator process. Accepted so that files with a `[coordinator]` section load.", .key_aliases = "coordinator.address"},

    {.key = "tcp.bind_address", .type = text,
     .help = "Address, or name of a network interface, to listen on and connect from; empty = chosen.", .environment_aliases = "MC_TCP_BIND_ADDRESS"},
    {.key = "tcp.port", .type = integer, .initial = "0", .minimum = 0, .maximum = 65535,
     .help = "Port to listen on; 0 = any free one."},
    {.key = "tcp.socket_buffer_bytes", .type = integer, .unit = bytes, .initial = "0", .minimum = 0, .maximum = kGiB,
     .help = "Send and receive buffer of each socket; 0 = as the kernel tunes it."},
    {.key = "tcp.eager_bytes", .type = integer, .unit = bytes, .initial = "66560", .minimum = 64, .maximum = kMiB,
     .help = "Largest small message over tcp, where a packet costs more than the copies of its contents; less than `fabric.eager_bytes` counts as that."},
    {.key = "tcp.handshake_timeout_ms", .type = integer, .unit = milliseconds, .initial = "5000", .minimum = 1, .maximum = kDayMs,
     .help = "A connection that has not proved itself by then is closed."},
    {.key = "tcp.max_pending_handshakes", .type = integer, .initial = "128", .minimum = 1, .maximum = 65536,
     .help = "Connections that may be unproved at one time; beyond it the oldest is closed."},

    {.key = "shm.ring_bytes", .type = integer, .unit = bytes, .initial = "262144", .minimum = 4 * kKiB, .maximum = kGiB,
     .help = "Ring for small messages, one for each sender and receiver that talk; a power of two.", .complaint = power_of_two_complaint},
    {.key = "shm.cma", .type = choice, .initial = "auto", .choices = "auto on off",
     .help = "Copies between processes by process_vm_readv and writev for memory that is not managed: `auto` = where the kernel allows it, `on` = an Error where it does not, `off` = always the bounce ring."},

    {.key = "verbs.devices", .type = text,
     .help = "RDMA devices to use, best first, as mlx5_0,mlx5_1:2 (device, or device and port); empty = every active port."},
    {.key = "verbs.gid_index", .type = integer, .initial = "-1", .minimum = -1, .maximum = 1023,
     .help = "Entry of the GID table to connect from; -1 = by rule: RoCE v2, routable, in one subnet with the peer.", .environment_aliases = "MC_GID_INDEX"},
    {.key = "verbs.eager_world", .type = integer, .initial = "8", .minimum = 0, .maximum = 1024,
     .help = "Up to so many ranks queue pairs to all are made at the start; beyond it when a peer is first used."},
    {.key = "verbs.send_queue", .type = integer, .initial = "256", .minimum = 8, .maximum = 65536,
     .help = "Work requests that one queue pair holds; a power of two.", .complaint = power_of_two_complaint},
    {.key = "verbs.credits", .type = integer, .initial = "32", .minimum = 2, .maximum = 4096,
     .help = "Messages and notifications under way to one peer over one rail; the receives kept for it are some more."},
    {.key = "verbs.slice_bytes", .type = integer, .unit = bytes, .initial = "1048576", .minimum = 4 * kKiB, .maximum = kGiB,
     .help = "A larger transfer is cut into slices of this size, which go over all rails."},
    {.key = "verbs.message_pool_bytes", .type = integer, .unit = bytes, .initial = "16777216", .minimum = kMiB, .maximum = kTiB,
     .help = "Registered memory for copies of small messages under way."},

    {.key = "memory.pool_bytes", .type = integer, .unit = bytes, .initial = "33554432", .minimum = kMiB, .maximum = 64 * kTiB,
     .help = "First piece of the pool of registered memory."},
    {.key = "memory.pool_max_bytes", .type = integer, .unit = bytes, .initial = "68719476736", .minimum = kMiB, .maximum = 64 * kTiB,
     .help = "Size up to which the pool grows."},

    {.key = "fabric.eager_bytes", .type = integer, .unit = bytes, .initial = "4352", .minimum = 64, .maximum = kMiB,
     .help = "Largest small message, 4 KiB and what libdtr adds to it; the same on all ranks. Over tcp `tcp.eager_bytes`, if that is more."},
    {.key = "fabric.hold_bytes", .type = integer, .unit = bytes, .initial = "67108864", .minimum = kKiB, .maximum = kTiB,
     .help = "Messages kept for a port that nobody has opened yet."},

    {.key = "messages.thresholds", .type = text,
     .help = "File that says which way messages of which size go, as `dtr_info --calibrate` writes it; empty = built in."},
    {.key = "messages.slot_count", .type = integer, .initial = "8", .minimum = 2, .maximum = 4096,
     .help = "Pieces of larger messages under way from one sender."},
    {.key = "messages.slot_bytes", .type = integer, .unit = bytes, .initial = "65536", .minimum = 4 * kKiB, .maximum = 64 * kMiB,
     .help = "Largest piece. A receiver has `messages.slot_count` of this size for each rank that sends it larger messages, taken when the first one comes."},

    {.key = "transfer.timeout_s", .environment = "DTR_TRANSFER_TIMEOUT", .type = real, .unit = seconds, .initial = "30", .minimum = 0.001, .maximum = 86400,
     .help = "Deadline of one-sided transfers for which the caller gives none (Runtime::transfer_deadline). While it is not set, 1 s more for each GB.", .environment_aliases = "MC_TRANSFER_TIMEOUT"},
    {.key = "pushpull.slots", .type = integer, .initial = "2", .minimum = 1, .maximum = 64,
     .help = "Receive slots of each worker and key: pushes under way before the server releases the first."},

    {.key = "checkpoint.path", .type = text, .initial = "checkpoints",
     .help = "Folder that holds the steps, or the prefix in the bucket."},
    {.key = "checkpoint.interval_steps", .type = integer, .initial = "1000", .minimum = 1, .maximum = 1e12,
     .help = "Steps from one checkpoint to the next, for loops that ask CheckpointManager::due(). dtr_train takes it, where it is set, without --checkpoint-every."},
    {.key = "checkpoint.keep_last_n", .type = integer, .initial = "5", .minimum = 1, .maximum = 1e6,
     .help = "Complete steps that are kept; older ones are deleted after a commit."},
    {.key = "checkpoint.compression", .type = choice, .initial = "none", .choices = "none gzip zstd",
     .help = "gzip (deflate) is read by every HDF5 tool, zstd needs its filter."},
    {.key = "checkpoint.staging_bytes", .type = integer, .unit = bytes, .initial = "0", .minimum = 0, .maximum = kTiB,
     .help = "Memory that save_async copies into, taken at the start; 0 = what one save needs, taken when it comes."},
    {.key = "checkpoint.writers", .type = integer, .initial = "2", .minimum = 1, .maximum = 256,
     .help = "Threads of a rank that checksum, compress and write."},

    {.key = "dataset.default_shard_size", .type = integer, .initial = "10000", .minimum = 1, .maximum = 1e12,
     .help = "Samples in a shard where the description of a dataset does not say."},
    {.key = "dataset.prefetch_shards", .type = integer, .initial = "2", .minimum = 0, .maximum = 1024,
     .help = "Shards that a loader reads ahead where it reads whole shards (shuffled HDF5, CSV, folders of many files); 0 = none."},

    {.key = "storage.backend", .type = choice, .initial = "local", .choices = "local s3",
     .help = "Where checkpoints are kept. `s3` is read, and an Error where a checkpoint is made: object storage belongs to a later version."},
    {.key = "storage.bucket", .type = text, .help = "s3: the bucket. Not used while storage.backend is local, the only one of this version."},
    {.key = "storage.region", .type = text, .help = "s3: the region that requests are signed for. Not used while storage.backend is local, the only one of this version."},
    {.key = "storage.endpoint", .type = text, .help = "s3: URL of the service; empty = the region's own. Not used while storage.backend is local, the only one of this version."},

    {.key = "metrics.file", .environment = "DTR_METRICS", .type = text,
     .help = "File for metrics in Prometheus text; empty = none. `{rank}` is replaced, else the rank is put before the extension."},
    {.key = "metrics.interval_s", .environment = "DTR_METRICS_INTERVAL", .type = real, .unit = seconds, .initial = "10", .minimum = 0.01, .maximum = 86400,
     .help = "Time between two writes of metrics.file.", .environment_aliases = "MC_TE_METRIC_INTERVAL_SECONDS"},
    {.key = "trace.file", .environment = "DTR_TRACE", .type = text,
     .help = "File for a trace in Chrome's JSON; empty = none. `{rank}` is replaced, else the rank is put before the extension. `scripts/merge-traces.py` makes one of all ranks."},
};
// clang-format on

}  // namespace

std::span<const Setting> settings() noexcept { return kSettings; }

std::string environment_name(const Setting& setting) {
  if (!setting.environment.empty()) return std::string(setting.environment);
  std::string name = "DTR_";
  for (const char c : setting.key) {
    name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

}  // namespace dtr::inline v0
