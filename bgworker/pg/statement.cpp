#include "pg/statement.hpp"

#include <exception>
#include <string>
#include <utility>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/planner_scope.hpp"
#include "pg/row_locks.hpp"

extern "C" {
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

SpiConnection::SpiConnection(bool nonatomic) {
  guard::call([&] { SPI_connect_ext(nonatomic ? SPI_OPT_NONATOMIC : 0); });
}

SpiConnection::~SpiConnection() {
  // After an error the rollback that follows closes the connection.
  if (open_ && std::uncaught_exceptions() == 0) SPI_finish();
}

void SpiConnection::finish() {
  open_ = false;
  SPI_finish();
}

namespace {

// A statement of mq is about to start. Set by Statement::run(); cleared by the start, or at the end
// of run() if nothing has started.
bool ours_starts = false;

struct StartScope {
  StartScope() { ours_starts = true; }
  ~StartScope() { ours_starts = false; }
};

// Lives while a statement of mq is run: its generic plan is chosen, whatever the session's plan_cache_mode
// is. Over when the plan starts, so triggers see the session's setting; without the library's hooks at the
// end.
class GenericPlan {
 public:
  GenericPlan() : before_(plan_cache_mode), outer_(std::exchange(choosing, this)) {
    plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
  }
  ~GenericPlan() { end(); }
  GenericPlan(const GenericPlan&) = delete;
  GenericPlan& operator=(const GenericPlan&) = delete;

  static void is_chosen() {
    if (choosing != nullptr) choosing->end();
  }

 private:
  void end() {
    if (choosing != this) return;
    plan_cache_mode = before_;
    choosing = outer_;
  }

  static inline GenericPlan* choosing = nullptr;
  const int before_;
  GenericPlan* const outer_;
};

bool has_code_of_others(Oid table, int checks) {
  return guard::call([&] {
    Relation relation = RelationIdGetRelation(table);
    if (relation == nullptr) return false;
    const TupleConstr* constraints = RelationGetDescr(relation)->constr;
    const bool has = relation->trigdesc != nullptr || (constraints != nullptr && constraints->num_check > checks);
    RelationClose(relation);
    return has;
  });
}

bool runs_code_of_others() {
  const Extension& extension = Extension::get();
  const auto has = [&](const char* table, int checks) { return has_code_of_others(extension.relation(table), checks); };
  return has("mq_msgs", 0) || has("mq_dead", 1) || has("mq_failures", 0);
}

// Each statement of mq has a snapshot of its own: it waits for a row that another session changes
// meanwhile and looks at it again, whatever isolation level the caller's transaction has. If that
// level forbids something, mq's own code says so.
//
// That does not go with code of others in the statement (triggers that an application has put on
// mq's tables, checks). It would take new snapshots at the lower level, and the server would keep
// the last one for the rest of the caller's transaction. So with such code the caller's level
// stays, and a row that changes meanwhile raises 40001 as in any statement.
struct IsolationScope {
  IsolationScope() = default;
  ~IsolationScope() { XactIsoLevel = saved; }
  void enter() const {
    if (lowers) XactIsoLevel = XACT_READ_COMMITTED;
  }
  IsolationScope(const IsolationScope&) = delete;
  IsolationScope& operator=(const IsolationScope&) = delete;
  const int saved = XactIsoLevel;
  const bool lowers = IsolationUsesXactSnapshot() && !runs_code_of_others();
};

constexpr std::string_view kNoPredecessor = "'00000000-0000-0000-0000-000000000000'";

// Replaces what statement.hpp lists. A dollar before anything else belongs to a parameter.
std::string expand(std::string_view text, std::string_view schema, bool avoids_held_rows) {
  std::string result;
  for (;;) {
    const std::size_t at = text.find('$');
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    switch (at + 1 < text.size() ? text[at + 1] : '\0') {
      case 'S':
        result += schema;
        break;
      case 'H':
        result += "(m.after_message_id IS NULL OR m.after_message_id = ";
        result += kNoPredecessor;
        result += ')';
        break;
      case 'N':
        result += kNoPredecessor;
        break;
      case 'L':
        result += avoids_held_rows ? "UPDATE" : "NO KEY UPDATE";
        break;
      default:
        result += text.substr(at, 2);
    }
    text.remove_prefix(std::min(at + 2, text.size()));
  }
}

}  // namespace

bool Statement::take_start() {
  if (!ours_starts) return false;
  GenericPlan::is_chosen();
  ours_starts = false;
  return true;
}

void Statement::prepare() {
  const Extension& extension = Extension::get();
  if (plan_ != nullptr && generation_ == extension.generation() && (!locks_ || avoiding_ == row_locks::avoiding()))
    return;
  if (plan_ != nullptr) {
    SPIPlanPtr old = plan_;
    plan_ = nullptr;
    guard::call([&] { SPI_freeplan(old); });
  }
  avoiding_ = row_locks::avoiding();
  const std::string text = expand(text_, extension.quoted_schema(), avoiding_);
  const char* sql = text.c_str();
  const int count = count_;
  Oid* types = types_.data();
  try {
    plan_ = guard::call([&] {
      SPIPlanPtr plan = SPI_prepare_cursor(sql, count, types, CURSOR_OPT_GENERIC_PLAN);
      if (plan == nullptr) elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
      SPI_keepplan(plan);
      return plan;
    });
  } catch (const Error& error) {
    // The catalog may lack a table or a column until ALTER EXTENSION mq UPDATE.
    if (error.sqlstate.starts_with("42") && !extension.is_updated()) throw extension.needs_update();
    throw;
  }
  // A rule DO INSTEAD NOTHING leaves no query. Such a plan depends on no table, so it would outlive the
  // rule: the next run makes it anew.
  const auto* source = static_cast<const CachedPlanSource*>(linitial(SPI_plan_get_plan_sources(plan_)));
  generation_ = source->query_list == NIL ? 0 : extension.generation();
}

namespace {

// Makes the generic plan, if there is none or it is no longer valid. Triggers that the statement fires are
// planned later, as their session wants it. Their tables cannot change before it runs, since making the
// plan has locked them.
void make_plan(SPIPlanPtr plan) {
  const PlannerScope planner;
  guard::call([&] {
    CachedPlan* made = SPI_plan_get_cached_plan(plan);
    if (made != nullptr) ReleaseCachedPlan(made, CurrentResourceOwner);
  });
}

}  // namespace

Rows Statement::run(std::span<const Param> params, Snapshot snapshot) {
  prepare();
  Datum values[kMostParams];
  char nulls[kMostParams];
  std::size_t n = 0;
  for (const Param& param : params) {
    values[n] = param.value;
    nulls[n++] = param.null ? 'n' : ' ';
  }
  SPIPlanPtr plan = plan_;
  const StartScope scope;
  make_plan(plan);
  const GenericPlan generic;
  const IsolationScope isolation;
  guard::call([&] {
    Snapshot used = snapshot != nullptr ? snapshot : GetLatestSnapshot();
    isolation.enter();  // not before: a transaction's first snapshot is taken at its own level
    const int code = SPI_execute_snapshot(plan, values, nulls, used, InvalidSnapshot, false, true, 0);
    if (code < 0) elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(code));
  });
  return {SPI_tuptable, SPI_processed};
}

std::string_view text_view(Datum datum) {
  auto* stored = (struct varlena*)DatumGetPointer(datum);
  const bool plain = !VARATT_IS_EXTERNAL(stored) && !VARATT_IS_COMPRESSED(stored);
  struct varlena* text = plain ? stored : guard::call([&] {
    if (!VARATT_IS_EXTERNAL_ONDISK(stored)) return pg_detoast_datum_packed(stored);
    // The statement that returned the datum is over, and so is its snapshot. After an error the
    // rollback pops this one.
    PushActiveSnapshot(GetTransactionSnapshot());
    struct varlena* fetched = pg_detoast_datum_packed(stored);
    PopActiveSnapshot();
    return fetched;
  });
  return {VARDATA_ANY(text), static_cast<std::size_t>(VARSIZE_ANY_EXHDR(text))};
}

Datum text_datum(std::string_view text) {
  return guard::call(
      [&] { return PointerGetDatum(cstring_to_text_with_len(text.data(), static_cast<int>(text.size()))); });
}

Datum uuid_datum(const Uuid& id) {
  return guard::call([&] {
    auto* copy = static_cast<pg_uuid_t*>(palloc(sizeof(pg_uuid_t)));
    memcpy(copy->data, id.bytes.data(), UUID_LEN);
    return UUIDPGetDatum(copy);
  });
}

Uuid uuid_of(Datum datum) {
  Uuid id;
  memcpy(id.bytes.data(), DatumGetUUIDP(datum)->data, UUID_LEN);
  return id;
}

Datum interval_datum(Micros micros) {
  return guard::call([&] {
    auto* interval = static_cast<Interval*>(palloc0(sizeof(Interval)));
    interval->time = micros;
    return IntervalPGetDatum(interval);
  });
}

Micros micros_of_interval(Datum datum) {
  const Interval* interval = DatumGetIntervalP(datum);
  Micros micros = 0;
  Micros days = 0;
  if (__builtin_mul_overflow(Micros{interval->month}, Micros{30}, &days) ||
      __builtin_add_overflow(days, Micros{interval->day}, &days) ||
      __builtin_mul_overflow(days, Micros{USECS_PER_DAY}, &micros) ||
      __builtin_add_overflow(micros, Micros{interval->time}, &micros))
    return interval->month < 0 ? PG_INT64_MIN : PG_INT64_MAX;
  return micros;
}

ArrayParam::ArrayParam(Oid type, std::size_t expected) : type_(type) {
  values_.reserve(expected);
  nulls_.reserve(expected);
}

Datum ArrayParam::datum() const {
  auto* values = const_cast<Datum*>(values_.data());
  auto* nulls = reinterpret_cast<bool*>(const_cast<char*>(nulls_.data()));
  const auto count = static_cast<int>(values_.size());
  static_assert(sizeof(bool) == 1);
  return guard::call([&] {
    int16 length = 0;
    bool by_value = false;
    char align = 0;
    get_typlenbyvalalign(type_, &length, &by_value, &align);
    int dimensions[1] = {count};
    int lower[1] = {1};
    if (count == 0) return PointerGetDatum(construct_empty_array(type_));
    return PointerGetDatum(construct_md_array(values, nulls, 1, dimensions, lower, type_, length, by_value, align));
  });
}

Datum uuid_array(std::span<const Uuid> ids) {
  ArrayParam array(UUIDOID, ids.size());
  for (const Uuid& id : ids) array.add(uuid_datum(id));
  return array.datum();
}

}  // namespace mq
