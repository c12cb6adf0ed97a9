// LightweightLock: holds one of the server's lightweight locks for a scope. No error may be raised
// meanwhile.
#pragma once

#include "pg/postgres.hpp"

extern "C" {
#include "storage/lwlock.h"
}

namespace mq {

class LightweightLock {
 public:
  LightweightLock(LWLock* lock, LWLockMode mode) : lock_(lock) { LWLockAcquire(lock_, mode); }
  ~LightweightLock() { LWLockRelease(lock_); }
  LightweightLock(const LightweightLock&) = delete;
  LightweightLock& operator=(const LightweightLock&) = delete;

 private:
  LWLock* const lock_;
};

}  // namespace mq
