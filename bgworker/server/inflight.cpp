#include "inflight.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

namespace mq::inflight {

namespace {

// Relative to the data directory, which is the working directory of every server process.
constexpr const char* kPath = "pg_stat_tmp/mq_inflight";

Mark* mine = nullptr;  // in the mapping of the file; set by open()

}  // namespace

void open(int seat) {
  const int file = ::open(kPath, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  const auto needed = static_cast<off_t>(sizeof(Mark)) * (seat + 1);
  const off_t size = lseek(file, 0, SEEK_END);
  // Written, not truncated to size: a full disk must say so now, not with SIGBUS later.
  bool enough = size >= needed;
  if (!enough) {
    const std::vector<char> zeros(static_cast<std::size_t>(needed - size));
    enough = pwrite(file, zeros.data(), zeros.size(), size) == static_cast<ssize_t>(zeros.size());
  }
  if (enough) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(needed), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) mine = static_cast<Mark*>(memory) + seat;
  }
  ::close(file);
  clear();
}

void set(const Uuid& message, std::size_t messages) {
  if (mine == nullptr) return;
  mine->message = message;
  mine->messages = static_cast<std::int32_t>(messages);
  std::atomic_signal_fence(std::memory_order_release);
  mine->database = MyDatabaseId;
}

void clear() {
  if (mine != nullptr) mine->database = InvalidOid;
}

Mark current() {
  return mine != nullptr ? *mine : Mark{};
}

std::vector<Mark> take_all(int seats) {
  std::vector<Mark> left;
  const int file = ::open(kPath, O_RDWR | O_CLOEXEC);
  if (file < 0) return left;
  for (int seat = 0; seat < seats; ++seat) {
    Mark mark{};
    const auto at = static_cast<off_t>(sizeof(Mark)) * seat;
    if (pread(file, &mark, sizeof mark, at) != sizeof mark) break;
    if (OidIsValid(mark.database) && mark.messages > 0) left.push_back(mark);
  }
  ::close(file);
  unlink(kPath);
  return left;
}

}  // namespace mq::inflight
