// In-flight records: which message each call of a handler was given, and how the process that ran
// the call ended. They are a small file that is mapped into memory. A record costs no WAL and no
// system call, and survives a crash of the server. The next start of the server reads the records.
//
// Each worker slot has a record, and each leased call. No lock covers them:
//   the worker                    writes its own record, and those of its leased calls
//   the session of a leased call  notes that the call runs
//   both, and parallel workers    note from signal handlers how their process ends
//
// `end` says how far the call has come. In a call the first end that is noted stands.
//   kEntered      the call has not begun, as far as the record tells
//   kRunning      the call runs. A process that is killed by SIGKILL leaves this behind
//   kTold         the process was told to end: by another process's SIGQUIT, by the postmaster's
//                 SIGTERM, or by another process's signal of a crash (SIGSEGV, say)
//   kSignal + n   the process brought signal n upon itself
//
// The file is in pg_stat_tmp, which base backups leave out: a copy of the server has no record.
#pragma once

#include <cstdint>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

namespace mq::in_flight {

inline constexpr std::int32_t kEntered = 0;
inline constexpr std::int32_t kRunning = 1;
inline constexpr std::int32_t kTold = 2;
inline constexpr std::int32_t kSignal = 1000;

struct Record {
  Oid database;            // InvalidOid: no call runs
  std::int32_t messages;   // of the call; of a leased call: how many leased calls ran together
  Uuid message;            // the first one of the call
  std::int64_t token = 0;  // of the lease; 0: no leased call
  Oid role = InvalidOid;   // the call runs as this role
  std::int32_t end = kEntered;
};

// For a worker: maps the file of `records` records and begins to catch the signals that end the
// process. The worker's own record is at index `slot`; those of leased calls begin at index
// `leased`. Without the file (the disk is full, say) no records are kept.
void open(int slot, int leased, int records);
// A handler is called as `role` with so many messages, of which `message` is the first.
void set(const Uuid& message, std::size_t messages, Oid role);
// The handler has returned.
void clear();
// The worker's record of the leased call `number`, as shared::enter_lease() numbers it.
void set_leased(int number, const Record& record);
void clear_leased(int number);
// Whether the session of the leased call was told to end.
bool was_told(int number);
Record leased(int number);
// The record of the call in this process; its database is InvalidOid where there is none.
Record current();

// For the session of leased calls. open_session() maps the file and catches signals; false: there
// is no file. begin() says that the call with this number and token runs now. It does nothing if
// the record is another lease's by now.
bool open_session(int leased, int records);
void begin(int number, std::int64_t token);
// For a parallel worker of a call. The record at `index` is its leader's. The parallel worker notes
// its own crash only.
void open_parallel(int index, int records);

// For the start of the server: returns the records of calls that did not end, and removes the file.
std::vector<Record> take_all(int records);

}  // namespace mq::in_flight
