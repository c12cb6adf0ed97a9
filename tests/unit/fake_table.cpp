// The clock, and what is committed.
#include <algorithm>

#include "channel_key.hpp"
#include "fake_server.hpp"

namespace mq::fake {

namespace {

Table::ChannelId channel_of(const Row& row) {
  return {row.channel_name, row.channel_args};
}

}  // namespace

double FakeClock::dice() {
  if (dices.empty()) return static_cast<double>(random_() >> 11) * 0x1p-53;
  const double next = dices.front();
  dices.pop_front();
  return next;
}

Uuid Table::send(const Message& message) {
  Row row;
  static_cast<Message&>(row) = message;
  row.place = ++last_place_;
  row.id.bytes[0] = 1;
  for (int i = 0; i < 8; ++i) row.id.bytes[15 - i] = static_cast<std::uint8_t>(row.place >> (8 * i));
  row.channel_key = hash_collides ? 7 : channel_key(row.channel_name, row.channel_args);
  row.attempt_at = clock_.time + row.delay;
  if (row.expires != kNever) {
    row.expires_at = clock_.time + row.expires;
    if (!row.uncommitted) row.attempt_at = std::min(row.attempt_at, row.expires_at);
  }
  row.attempts_left = row.retries + 1;
  places[row.id] = row.place;
  if (row.ordered) ordered[channel_of(row)].insert(row.place);
  const Uuid id = row.id;
  rows.emplace(row.place, std::move(row));
  return id;
}

std::vector<Uuid> Table::send(int count, const Message& message) {
  std::vector<Uuid> ids;
  for (int i = 0; i < count; ++i) ids.push_back(send(message));
  return ids;
}

Row* Table::find(const Uuid& id) {
  const auto place = places.find(id);
  if (place == places.end()) return nullptr;
  const auto row = rows.find(place->second);
  return row == rows.end() ? nullptr : &row->second;
}

bool Table::is_head(const Row& row) const {
  return !row.ordered || *ordered.at(channel_of(row)).begin() == row.place;
}

bool Table::is_behind_another(const Row& row, const std::set<Uuid>& done) const {
  if (!row.ordered) return false;
  const std::set<std::int64_t>& channel = ordered.at(channel_of(row));
  return std::any_of(channel.begin(), channel.find(row.place),
                     [&](std::int64_t place) { return !done.contains(rows.at(place).id); });
}

bool Table::is_locked_by_another(const Row& row, const FakeTransaction& transaction) const {
  const auto lock = locks.find(row.id);
  return lock != locks.end() && lock->second != &transaction;
}

std::optional<Micros> Table::next_due(const Registry& registry, bool leased) const {
  std::optional<Micros> earliest;
  for (const auto& [place, row] : rows) {
    const Channel* channel = registry.find(row.channel_name);
    if (channel == nullptr || !channel->parked.empty() || row.blocks || !is_head(row)) continue;
    if ((channel->leased() && !leased) || row.attempt_at == kNever) continue;
    if (!earliest || row.attempt_at < *earliest) earliest = row.attempt_at;
  }
  return earliest;
}

std::optional<Micros> Table::next_expiry() const {
  std::optional<Micros> earliest;
  for (const auto& [place, row] : rows) {
    if (row.expires_at == kNever || row.uncommitted || row.blocks) continue;
    const Micros moment = row.attempt_at == kNever ? row.expires_at : std::max(row.expires_at, row.attempt_at);
    if (!earliest || moment < *earliest) earliest = moment;
  }
  return earliest;
}

void Table::bury(const Uuid& id, const std::string& reason, const std::string& sqlstate, bool charged, bool block) {
  Row* row = find(id);
  dead.push_back({id, reason, sqlstate, row->attempts + (charged ? 1 : 0)});
  row->lease = 0;
  if (block && row->ordered)
    row->blocks = true;
  else
    erase(id);
}

void Table::erase(const Uuid& id) {
  Row* row = find(id);
  if (row == nullptr) return;
  if (row->ordered) ordered.at(channel_of(*row)).erase(row->place);
  rows.erase(row->place);
}

void Table::clear() {
  rows.clear();
  ordered.clear();
}

bool Table::lease_is_alive(std::int64_t token) const {
  return std::any_of(leases.begin(), leases.end(), [&](const auto& lease) { return lease.second.token == token; });
}

int Table::handled(const Uuid& id) const {
  return static_cast<int>(std::count(effects.begin(), effects.end(), id));
}

int Table::died(const Uuid& id) const {
  return static_cast<int>(std::count_if(dead.begin(), dead.end(), [&](const Dead& letter) { return letter.id == id; }));
}

int Table::failed(const Uuid& id) const {
  return static_cast<int>(
      std::count_if(failures.begin(), failures.end(), [&](const FailedAttempt& attempt) { return attempt.id == id; }));
}

}  // namespace mq::fake
