// mq_progress: a handler says how far it is. Handlers call it through mq.c; mq_telling_calls() reads it,
// for mq_workers. The file owns no state: what was said is in shared memory (shmem/progress.hpp).

#include <cmath>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/current_call.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/progress.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
}

namespace mq {

namespace {

void check_fraction(float fraction) {
  if (fraction >= 0 && fraction <= 1) return;  // NaN is neither
  check::fail("fraction",
              std::isnan(fraction)   ? "NaN"
              : std::isinf(fraction) ? (fraction > 0 ? "Infinity" : "-Infinity")
                                     : mq::format("{}", fraction),
              "must be from 0 to 1");
}

void check_note(std::string_view note) {
  if (note.size() > shared::kNoteBytes)
    check::fail("note", mq::format("{} bytes", note.size()),
                mq::format("must have at most {} bytes", shared::kNoteBytes));
}

void progress(const std::optional<float>& fraction, const std::optional<std::string_view>& note) {
  std::int64_t token = 0;
  if (!in_call()) {
    const auto handled = shared::handled_here();
    if (!handled)
      throw Error("55000", "mq_progress must be called by a handler", "It says how far the handler's call is.");
    token = handled->token;
  }
  shared::note_progress(fraction, note, token);
}

// Whether the caller may see the channel and the message of a call: as in mq_workers.
bool shows_message(const shared::TellingCall& call) {
  if (call.database == MyDatabaseId) return true;
  const char* name = call.channel_name.data();
  const auto bytes = static_cast<int>(call.channel_name.size());
  return guard::call([&] {
    return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) &&
           pg_verify_mbstr(GetDatabaseEncoding(), name, bytes, true);
  });
}

// A note is the user's data, as a payload is: it is for those who may read the payloads of this database, and
// for members of the role that the handler runs as.
bool shows_note(const shared::TellingCall& call) {
  if (!call.progress.note) return false;
  const char* note = call.progress.note->data();
  const auto bytes = static_cast<int>(call.progress.note->size());
  if (call.database != MyDatabaseId &&
      !guard::call([&] { return pg_verify_mbstr(GetDatabaseEncoding(), note, bytes, true); }))
    return false;
  const Oid messages = call.database == MyDatabaseId ? Extension::msgs() : InvalidOid;
  return guard::call([&] {
    return has_privs_of_role(GetUserId(), call.role) ||
           (OidIsValid(messages) && pg_class_aclcheck(messages, GetUserId(), ACL_SELECT) == ACLCHECK_OK);
  });
}

Param database_name(Oid database) {
  const char* name = guard::call([&] { return get_database_name(database); });
  return name != nullptr ? Param(text_datum(name)) : Param();
}

const char* kind_of(const shared::TellingCall& call) {
  switch (call.kind) {
    case shared::TellingCall::kWorker:
      return "worker";
    case shared::TellingCall::kLeased:
      return "leased";
    default:
      return "mq_run";
  }
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_progress_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    std::optional<float> fraction;
    std::optional<std::string_view> note;
    if (!PG_ARGISNULL(0)) fraction = PG_GETARG_FLOAT4(0) + 0.0F;  // no -0
    if (!PG_ARGISNULL(1)) note = mq::text_view(PG_GETARG_DATUM(1));
    if (fraction) mq::check_fraction(*fraction);
    if (note) mq::check_note(*note);
    mq::progress(fraction, note);
    return Datum{0};
  });
}

extern "C" Datum mq_telling_calls_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::TellingCall& call : mq::shared::telling_calls()) {
      const bool worker = call.kind == mq::shared::TellingCall::kWorker;
      const bool shown = !worker && mq::shows_message(call);
      result.add({Int32GetDatum(call.pid), mq::text_datum(mq::kind_of(call)), mq::database_name(call.database),
                  shown ? mq::Param(mq::text_datum(call.channel_name)) : mq::Param(),
                  shown ? mq::Param(mq::uuid_datum(call.message)) : mq::Param(),
                  worker ? mq::Param() : mq::Param(TimestampTzGetDatum(call.since)),
                  call.progress.fraction ? mq::Param(Float4GetDatum(*call.progress.fraction)) : mq::Param(),
                  mq::shows_note(call) ? mq::Param(mq::text_datum(*call.progress.note)) : mq::Param()});
    }
    return Datum{0};
  });
}
