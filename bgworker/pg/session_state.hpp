// SessionState: what transactional handlers leave in their worker's session beyond their
// transaction. That is session-level advisory locks, temporary objects, prepared statements,
// cursors WITH HOLD, and the values of currval and lastval. After each batch in which a handler was
// called the session is cleaned as DISCARD ALL would, but plans stay, mq's among them, and settings
// are undone after each call (handlers/call.cpp). What the server does not know of stays (dblink's
// connections, variables of PL/Perl and PL/Python, C statics, the seed of random()). WorkerSession
// owns the object; all state is this process's.
#pragma once

namespace mq {

class SessionState {
 public:
  // A handler is called in this process.
  static void note_call();
  // Called before a transaction ends, which makes the server forget the use of temporary objects.
  void before_end();
  // Called outside of a transaction. Throws nothing, since what was committed stays so. Logs what
  // could not be cleaned; is_clean() then tries again. Until that is true no handler may be called.
  void clean();
  bool is_clean();

 private:
  bool temporary_ = false;  // there may be objects in pg_temp
  bool dirty_ = false;      // the session has yet to be cleaned
};

}  // namespace mq
