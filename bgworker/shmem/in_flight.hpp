// In-flight records: which message each call of a handler was given, and how the process that ran
// the call ended. They are a small file that is mapped into memory. A record costs no WAL and no
// system call, and survives a crash of the server. The next start of the server reads the records.
//
// Each worker slot has a record, and each leased call. No lock covers them:
//   the worker                    writes its own record, and those of its leased calls
//   the session of a leased call  notes that the call runs, and that it exits in order
//   both, and parallel workers    note from signal handlers how their process ends
//
// The file is in pg_stat_tmp, which base backups leave out: a copy of the server has no record.
#pragma once

#include <cstdint>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/in_flight_record.hpp"

namespace mq::in_flight {

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

// For the start of the server: returns the calls that did not end, and removes the file. See unfinished_calls().
std::vector<Unfinished> take_all(int records, bool same_postmaster);

}  // namespace mq::in_flight
