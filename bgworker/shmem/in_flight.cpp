#include "shmem/in_flight.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <string>

#include "pg/guard.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/elog.h"
}

namespace mq::in_flight {

namespace {

// Relative to the data directory, which is the working directory of every server process.
constexpr const char* kPath = "pg_stat_tmp/mq_calls";
constexpr const char* kOldPath = "pg_stat_tmp/mq_inflight";  // of 0.1.0, which notes no ends

// Both point into the mapped file. map() sets `all`; open() and open_session() set the other.
Record* all = nullptr;
Record* leased_records = nullptr;
// The signal handlers write to these. open() and open_parallel() set it before they install them,
// and begin() when a leased call begins.
Record* volatile mine = nullptr;
volatile std::int64_t my_token = 0;
volatile std::sig_atomic_t panicked = false;  // set by on_log()

emit_log_hook_type log_hook_before = nullptr;
struct sigaction quit_before, terminate_before;

bool map(int records) {
  const int file = ::open(kPath, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return false;
  const auto needed = static_cast<off_t>(sizeof(Record)) * records;
  // A full disk has to fail here: later it would raise SIGBUS at a write to the memory.
  if (posix_fallocate(file, 0, needed) == 0) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(needed), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) all = static_cast<Record*>(memory);
  }
  ::close(file);
  return all != nullptr;
}

// Called by signal handlers, and at exit. A child that a handler has forked notes nothing.
void note_end(std::int32_t end) {
  if (mine == nullptr || getpid() != MyProcPid || mine->database == InvalidOid || mine->token != my_token) return;
  if (mine->end == kRunning) mine->end = end;
}

bool is_own(const siginfo_t* info) {
  return info->si_code > 0 || info->si_pid == MyProcPid;  // from the kernel, or from itself
}

void go_on(const struct sigaction& before, int signal, siginfo_t* info, void* context) {
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  }
}

void on_quit(int signal, siginfo_t* info, void* context) {
  note_end(is_own(info) ? kSignal + signal : kTold);
  go_on(quit_before, signal, info, context);
}

void on_terminate(int signal, siginfo_t* info, void* context) {
  if (info->si_pid == PostmasterPid) note_end(kTold);
  go_on(terminate_before, signal, info, context);
}

// SA_RESETHAND has set the default action again, so the signal that is raised here ends the process
// when this function returns. The abort of a PANIC is not noted, since the handler need not have
// caused it: the WAL could not be written, say.
void on_crash(int signal, siginfo_t* info, void*) {
  if (!is_own(info)) {
    note_end(kTold);
  } else if (signal != SIGABRT || !panicked) {
    note_end(kSignal + signal);
  }
  (void)raise(signal);
}

void on_log(ErrorData* error) {
  if (error->elevel >= PANIC) panicked = true;
  if (log_hook_before != nullptr) log_hook_before(error);
}

void on_exit_in_order(int, Datum) {
  note_end(kExited);
}

void catch_signal(int signal, void (*handler)(int, siginfo_t*, void*), int flags, struct sigaction* before) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | flags;
  sigemptyset(&action.sa_mask);
  (void)sigaction(signal, &action, before);
}

// Catches the signals of a crash, but not SIGFPE, which the server makes an error of. The signal
// handlers run on a stack of their own, since the process may have none left.
void catch_crashes() {
  static char bytes[64 * 1024];
  stack_t stack = {};
  if (sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_DISABLE) != 0) {
    stack.ss_sp = bytes;
    stack.ss_size = sizeof bytes;
    stack.ss_flags = 0;
    (void)sigaltstack(&stack, nullptr);
  }
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGTRAP}) {
    struct sigaction now;
    if (sigaction(signal, nullptr, &now) != 0 || (now.sa_flags & SA_SIGINFO) != 0 || now.sa_handler != SIG_DFL)
      continue;  // another library in this process catches it
    catch_signal(signal, on_crash, static_cast<int>(SA_RESETHAND) | SA_ONSTACK, nullptr);
  }
  log_hook_before = emit_log_hook;
  emit_log_hook = on_log;
}

}  // namespace

void open(int slot, int leased, int records) {
  if (!map(records)) return;
  mine = all + slot;
  leased_records = all + leased;
  clear();
  catch_signal(SIGQUIT, on_quit, SA_RESTART, &quit_before);
  catch_crashes();
}

bool open_session(int leased, int records) {
  if (!map(records)) return false;
  leased_records = all + leased;
  catch_signal(SIGQUIT, on_quit, SA_RESTART, &quit_before);
  catch_signal(SIGTERM, on_terminate, SA_RESTART, &terminate_before);
  catch_crashes();
  guard::call([] { before_shmem_exit(on_exit_in_order, Datum{0}); });
  return true;
}

void begin(int number, std::int64_t token) {
  Record& record = leased_records[number];
  if (record.token != token) return;
  mine = nullptr;
  my_token = token;
  mine = &record;
  if (record.end == kEntered) record.end = kRunning;
}

void open_parallel(int index, int records) {
  if (!map(records)) return;
  my_token = all[index].token;
  mine = all + index;
  catch_crashes();
}

void set(const Uuid& message, std::size_t messages, Oid role) {
  if (mine == nullptr) return;
  mine->message = message;
  mine->messages = static_cast<std::int32_t>(messages);
  mine->role = role;
  mine->end = kRunning;
  std::atomic_signal_fence(std::memory_order_release);
  mine->database = MyDatabaseId;
}

void clear() {
  if (mine != nullptr) mine->database = InvalidOid;
}

void set_leased(int number, const Record& record) {
  if (leased_records == nullptr) return;
  Record& slot = leased_records[number];
  slot.messages = record.messages;
  slot.message = record.message;
  slot.token = record.token;
  slot.role = record.role;
  slot.end = record.end;
  std::atomic_signal_fence(std::memory_order_release);
  slot.database = record.database;
}

void clear_leased(int number) {
  if (leased_records != nullptr) leased_records[number].database = InvalidOid;
}

Record leased(int number) {
  return leased_records != nullptr ? leased_records[number] : Record{};
}

bool was_told(int number) {
  const Record record = leased(number);
  return record.database != InvalidOid && record.end == kTold;
}

Record current() {
  return mine != nullptr ? *mine : Record{};
}

std::vector<Unfinished> take_all(int records, bool same_postmaster) {
  unlink(kOldPath);
  const int file = ::open(kPath, O_RDWR | O_CLOEXEC);
  if (file < 0) return {};
  std::string bytes(sizeof(Record) * static_cast<std::size_t>(records), '\0');
  const ssize_t size = pread(file, bytes.data(), bytes.size(), 0);
  ::close(file);
  unlink(kPath);
  return unfinished_calls({bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))}, same_postmaster);
}

}  // namespace mq::in_flight
