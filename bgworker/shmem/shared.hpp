// Shared memory: which worker works where, and which waits for work. mq.c sets it up when the
// library is preloaded. Without that the functions do nothing and return an empty result, and
// workers and consumers find messages by polling.
//
//   databases  an entry for each database that the launcher knows of, or that was announced
//   pools      an entry for each (database, role) that workers are wanted for. Workers that have
//              read the handlers write it, and the launcher does
//   row_claims which rows the batches of workers handle without a row lock (row_claims.hpp)
//   slots      an entry for each worker. The launcher reserves it, the worker takes it when it
//              starts and frees it when it ends. The launcher frees it if the worker never started
//
// A worker slot is such an entry. A database slot is one of the mq.max_workers
// of a database; a draining worker has none.
//
// One lightweight lock covers all of it, with the exceptions that layout.hpp lists. Code that holds
// the lock raises no server error.
#pragma once

namespace mq::shared {

bool available();  // the library was preloaded

}  // namespace mq::shared
