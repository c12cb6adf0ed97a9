#include "pg/row_locks.hpp"

#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/postgres.hpp"

extern "C" {
#include "storage/proc.h"
#include "utils/guc.h"
}

namespace mq::row_locks {

namespace {

constexpr const char* kHeld =
    "rows of messages that were to be removed are locked by other sessions, or were changed by them";

bool in_worker = false;   // set by never_wait()
bool in_handler = false;  // set by InHandler
bool avoids = false;      // set by transaction_begins() for the transaction, and by Removal
bool removing = false;    // set by Removal
bool found_held = false;  // since the transaction began; set by Removal::run()
Micros avoid_until = 0;   // set by transaction_begins()

}  // namespace

void never_wait() {
  in_worker = true;
}

void transaction_begins(Micros now) {
  if (found_held) avoid_until = now + kAvoidFor;
  found_held = false;
  avoids = in_worker && now < avoid_until && now >= avoid_until - kAvoidFor;
}

InHandler::InHandler() {
  in_handler = true;
}

InHandler::~InHandler() {
  in_handler = false;
}

bool never_waits() {
  return in_worker && !in_handler;
}

void lock_to_write(const char* table, const char* refused) {
  if (!never_waits() || locks::try_table(Extension::get().relation(table), RowExclusiveLock)) return;
  throw Error("55P03", mq::format("the table {} is locked by another session, so {}", table, refused));
}

bool avoiding() {
  return avoids;
}

ShortWaits::ShortWaits(Where where) : before_(LockTimeout) {
  if (before_ > 0 && before_ <= kMostWait) return;
  if (in_worker) {
    LockTimeout = kMostWait;
  } else if (where == Where::kAnywhere) {
    // As a setting: what triggers set meanwhile must not have the session keep this one.
    nest_level_ = NewGUCNestLevel();
    const std::string most = std::to_string(kMostWait);
    guard::call([&] {
      (void)set_config_option("lock_timeout", most.c_str(), PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
                              false);
    });
  }
}

ShortWaits::~ShortWaits() {
  if (nest_level_ > 0)
    AtEOXact_GUC(false, nest_level_);
  else
    LockTimeout = before_;
}

Removal::Removal(bool avoid) : before_(removing), avoided_before_(avoids) {
  removing = in_worker && !in_handler;
  avoids = avoids || avoid;
}

Removal::~Removal() {
  removing = before_;
  avoids = avoided_before_;
}

Removal::Limit::Limit() : before_(LockTimeout) {
  if (!removing || avoids || (before_ > 0 && before_ < kMostWait)) return;
  LockTimeout = kMostWait;
  set_ = true;
}

Removal::Limit::~Limit() {
  LockTimeout = before_;
}

Error Removal::Limit::explain(const Error& error) const {
  if (!set_ || error.sqlstate != "55P03") return error;
  found_held = true;
  return {"55P03", kHeld};
}

Error lost() {
  found_held = true;
  return {"55P03", kHeld};
}

bool was_held(const Error& error) {
  return found_held && error.sqlstate == "55P03" && error.message == kHeld;
}

}  // namespace mq::row_locks
