#include "queue/wait_paths.hpp"

#include <cstdint>
#include <map>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "pg/locks.hpp"
#include "pg/statement.hpp"
#include "queue/uuid.hpp"

namespace mq {

namespace {

// Part of an ordered channel: what is before `last`, and behind the sequence number `above`.
struct Part {
  Uuid last;
  std::int64_t last_seq, above;
};

class Paths {
 public:
  explicit Paths(const Uuid& end) : end_(end) {}

  bool reach(std::span<const Uuid> from) {
    add(from);
    while (!reached_.contains(end_) && !fresh_.empty()) {
      const std::vector<Uuid> step = std::exchange(fresh_, {});
      add_prerequisites(step);
      add_before(step);
    }
    return reached_.contains(end_);
  }

 private:
  void add(std::span<const Uuid> messages) {
    for (const Uuid& id : messages)
      if (reached_.insert(id).second) fresh_.push_back(id);
  }

  void add(const Rows& rows) {
    std::vector<Uuid> ids;
    for (std::size_t i = 0; i < rows.size(); ++i) ids.push_back(uuid_of(rows.get(i, 1)));
    add(ids);
  }

  void add_prerequisites(const std::vector<Uuid>& step) {
    static Statement find("SELECT q.prerequisite FROM $S.mq_prerequisites q WHERE q.dependent = ANY ($1)",
                          {UUIDARRAYOID});
    add(find.run({uuid_array(step)}));
  }

  // Those before them in their channels that wait for others themselves, and the end.
  void add_before(const std::vector<Uuid>& step) {
    static Statement find(
        "SELECT o.id FROM unnest($1, $2) AS p (last, above) JOIN $S.mq_msgs m ON m.id = p.last"
        "  JOIN $S.mq_msgs o ON o.channel_key = m.channel_key AND o.channel_name = m.channel_name"
        "   AND o.channel_args = m.channel_args AND o.seq < m.seq AND o.seq > p.above AND o.after_message_id IS NOT "
        "NULL"
        " WHERE o.due_at IS NOT NULL OR o.id = $3",
        {UUIDARRAYOID, INT8ARRAYOID, UUIDOID});
    const std::vector<Part> parts = parts_of(step);
    if (parts.empty()) return;
    std::vector<Uuid> last;
    ArrayParam above(INT8OID, parts.size());
    for (const Part& part : parts) {
      last.push_back(part.last);
      above.add(Int64GetDatum(part.above));
    }
    add(find.run({uuid_array(last), above.datum(), uuid_datum(end_)}));
  }

  // Each channel is looked at from where the step before has come to.
  std::vector<Part> parts_of(const std::vector<Uuid>& step) {
    static Statement find(
        "SELECT m.id, m.channel_name, m.channel_args, m.seq FROM $S.mq_msgs m"
        " WHERE m.id = ANY ($1) AND m.after_message_id IS NOT NULL",
        {UUIDARRAYOID});
    const Rows rows = find.run({uuid_array(step)});
    std::map<std::pair<std::string, std::string>, Part> parts;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::pair<std::string, std::string> channel(text_view(rows.get(i, 2)), text_view(rows.get(i, 3)));
      const std::int64_t seq = DatumGetInt64(rows.get(i, 4));
      const auto looked = looked_at_.find(channel);
      const std::int64_t above = looked == looked_at_.end() ? INT64_MIN : looked->second;
      if (seq <= above) continue;
      const auto [part, is_new] = parts.try_emplace(channel, Part{uuid_of(rows.get(i, 1)), seq, above});
      if (!is_new && seq > part->second.last_seq) part->second = {uuid_of(rows.get(i, 1)), seq, above};
    }
    std::vector<Part> found;
    for (const auto& [channel, part] : parts) {
      looked_at_[channel] = part.last_seq - 1;
      found.push_back(part);
    }
    return found;
  }

  const Uuid end_;
  std::unordered_set<Uuid, UuidHash> reached_;
  std::vector<Uuid> fresh_;  // reached by the last step
  std::map<std::pair<std::string, std::string>, std::int64_t> looked_at_;
};

}  // namespace

bool wait_for_message(std::span<const Uuid> messages, const Uuid& message) {
  locks::lock_wait_paths();
  return Paths(message).reach(messages);
}

}  // namespace mq
