#include "inflight.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

namespace mq::inflight {

namespace {

// Relative to the data directory, which is the working directory of every server process.
constexpr const char* kPath = "pg_stat_tmp/mq_inflight";

// In the mapping of the file; set by open().
Mark* mine = nullptr;
Mark* leased_marks = nullptr;

}  // namespace

void open(int seat, int leased, int marks) {
  const int file = ::open(kPath, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  const auto needed = static_cast<off_t>(sizeof(Mark)) * marks;
  // A full disk must say so now, not with SIGBUS later.
  if (posix_fallocate(file, 0, needed) == 0) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(needed), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) {
      mine = static_cast<Mark*>(memory) + seat;
      leased_marks = static_cast<Mark*>(memory) + leased;
    }
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

void set_leased(int number, const Mark& mark) {
  if (leased_marks == nullptr) return;
  Mark& slot = leased_marks[number];
  slot.messages = mark.messages;
  slot.message = mark.message;
  slot.token = mark.token;
  slot.role = mark.role;
  std::atomic_signal_fence(std::memory_order_release);
  slot.database = mark.database;
}

void clear_leased(int number) {
  if (leased_marks != nullptr) leased_marks[number].database = InvalidOid;
}

Mark current() {
  return mine != nullptr ? *mine : Mark{};
}

std::vector<Mark> take_all(int marks) {
  std::vector<Mark> left;
  const int file = ::open(kPath, O_RDWR | O_CLOEXEC);
  if (file < 0) return left;
  for (int i = 0; i < marks; ++i) {
    Mark mark{};
    const auto at = static_cast<off_t>(sizeof(Mark)) * i;
    if (pread(file, &mark, sizeof mark, at) != sizeof mark) break;
    if (OidIsValid(mark.database) && mark.messages > 0) left.push_back(mark);
  }
  ::close(file);
  unlink(kPath);
  return left;
}

}  // namespace mq::inflight
