#include "dtr/storage/hdf5_lock.hpp"

namespace dtr::inline v0 {
namespace storage {

std::unique_lock<std::mutex> hdf5_lock() {
  static std::mutex mutex;
  return std::unique_lock(mutex);
}

}  // namespace storage
}  // namespace dtr::inline v0
