#include "shmem/listeners.hpp"

#include <cstring>

#include "pg/guard.hpp"
#include "shmem/consumers.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/xact.h"
#include "storage/ipc.h"
}

namespace mq::listeners {

namespace {

bool counted = false;           // this session counts in shared memory
bool counted_before = false;    // it did when this transaction began
bool unlisten_pending = false;  // this transaction gave up all channels, and no LISTEN came after

void count(bool listens) {
  if (listens == counted) return;
  counted = listens;
  if (listens)
    shared::add_listener();
  else
    shared::remove_listener();
}

void transaction_event(XactEvent event, void*) {
  if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT) return;
  if (event == XACT_EVENT_ABORT) count(counted_before);
  if (event == XACT_EVENT_COMMIT && unlisten_pending) count(false);
  unlisten_pending = false;
  counted_before = counted;
}

void session_ends(int, Datum) {
  count(false);
  counted_before = false;
}

void register_callbacks() {
  static bool registered = false;
  if (registered) return;
  registered = true;
  RegisterXactCallback(transaction_event, nullptr);
  before_shmem_exit(session_ends, 0);
}

}  // namespace

void listen(const char* channel) {
  if (!shared::available() || strncmp(channel, "mq", 2) != 0) return;
  guard::call([] { register_callbacks(); });
  unlisten_pending = false;
  count(true);
}

void unlisten_all() {
  if (counted && GetCurrentTransactionNestLevel() == 1) unlisten_pending = true;
}

}  // namespace mq::listeners
