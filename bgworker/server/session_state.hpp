// What transactional handlers leave in their worker's session, beyond their transaction: session-level advisory locks,
// temporary objects, prepared statements, cursors WITH HOLD, the values of currval and lastval. After each batch in
// which a handler was called the session is cleaned as DISCARD ALL would; settings are undone after each call
// (handler_call.cpp), and plans stay, ours among them. What the server does not know of (dblink's connections,
// variables of PL/Perl and PL/Python, C statics, the seed of random()) stays.
#pragma once

namespace mq {

class SessionState {
 public:
  // A handler is called in this process.
  static void note_call();
  // Before the end of a transaction, which forgets whether temporary objects were used in it.
  void before_end();
  // Outside of a transaction. Throws nothing: what was committed is committed. What could not be cleaned is logged, and
  // is_clean() then tries again; no handler must be called until it has succeeded.
  void clean();
  bool is_clean();

 private:
  bool temporary_ = false;  // objects in pg_temp
  bool dirty_ = false;
};

}  // namespace mq
