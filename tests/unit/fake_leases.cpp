#include "fake_leases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace mq::fake {

// --- Backends ---

FakeSession* Backends::find(int backend) {
  const auto found = sessions.find(backend);
  return found == sessions.end() ? nullptr : found->second;
}

Micros Backends::ready_at(const std::vector<Socket>& sockets) {
  Micros ready = kNever;
  for (const Socket& socket : sockets) {
    const FakeSession* session = find(socket.descriptor);
    EXPECT_NE(session, nullptr) << "a worker waits for a socket that is closed";
    if (session != nullptr) ready = std::min(ready, session->next_event());
  }
  return ready;
}

// --- FakeSession ---

FakeSession::FakeSession(Backends& backends)
    : backends_(backends), backend_(++backends.last_backend), until_(backends.clock.steady() + backends.connect_takes) {
  backends_.sessions[backend_] = this;
  ++backends_.opened;
  if (backends_.refuses_all) pending_ = backends_.refuses_all;
  if (backends_.sessions.size() > backends_.most_sessions) pending_ = Error("53300", "too many connections for role");
  if (backends_.refusals.empty()) return;
  pending_ = backends_.refusals.front();
  backends_.refusals.pop_front();
}

FakeSession::~FakeSession() {
  backends_.sessions.erase(backend_);
}

HandlerSession::State FakeSession::poll() {
  if (state_ == State::kBroken || state_ == State::kIdle || backends_.clock.steady() < until_) return state_;
  if (state_ == State::kConnecting) {
    state_ = pending_ ? State::kBroken : State::kIdle;
    error_ = pending_;
    pending_.reset();
  } else {
    finish();
  }
  return state_;
}

Micros FakeSession::next_event() const {
  if (state_ == State::kBroken) return 0;
  return state_ == State::kIdle ? kNever : until_;
}

void FakeSession::run(const LeasedCall& call) {
  EXPECT_EQ(state_, State::kIdle) << "a call for a session that is not idle";
  messages_.resize(call.parameter->size() / sizeof(Uuid));
  std::memcpy(messages_.data(), call.parameter->data(), call.parameter->size());
  backends_.calls.push_back(messages_);
  error_.reset();
  breaks_ = stubborn_ = false;
  state_ = State::kBusy;
  until_ = backends_.clock.steady();
  for (const Uuid& id : messages_) {
    Row* row = backends_.table.find(id);
    if (row == nullptr) continue;
    EXPECT_GT(row->lease, 0) << "a handler runs without a lease";
    EXPECT_FALSE(backends_.table.locks.contains(id)) << "a handler runs before its lease is committed";
    EXPECT_FALSE(backends_.table.is_behind_another(*row, {})) << "place " << row->place << " overtakes";
    EXPECT_GT(row->expires_at, backends_.clock.time) << "place " << row->place << " has expired";
    EXPECT_LE(row->attempts, row->retries + 1) << "place " << row->place << " has no attempt left";
    for (const auto& [backend, other] : backends_.sessions)
      if (other != this && other->is_running())
        for (const Uuid& theirs : other->messages()) {
          const Row* running = backends_.table.find(theirs);
          EXPECT_NE(theirs, id) << "place " << row->place << " runs twice at once";
          EXPECT_FALSE(running != nullptr && running->ordered && row->ordered &&
                       running->channel_name == row->channel_name && running->channel_args == row->channel_args)
              << "two of an ordered channel at once";
        }
    until_ += row->script.cost;
    breaks_ = breaks_ || row->attempts <= row->script.breaks;
    stubborn_ = stubborn_ || row->script.stubborn;
  }
  pending_ = outcome();
  const auto running = std::count_if(backends_.sessions.begin(), backends_.sessions.end(),
                                     [](const auto& one) { return one.second->is_running(); });
  backends_.most_running = std::max(backends_.most_running, static_cast<int>(running));
}

std::optional<Error> FakeSession::outcome() {
  std::optional<Error> error;
  Table& table = backends_.table;
  for (const Uuid& id : messages_) {
    Row* row = table.find(id);
    if (row == nullptr) continue;
    const Script& script = row->script;
    if (table.conflicts[id] < script.conflicts) {
      ++table.conflicts[id];
      error = Error("40001", "could not serialize access");
    } else if (!error && (row->attempts <= script.failures || (script.fails_in_company && messages_.size() > 1) ||
                          (script.flaky > 0 && backends_.clock.dice() < script.flaky))) {
      error = Error(script.sqlstate, "the script says so");
    }
  }
  return error;
}

// The handler's own transaction ends; what it wished for is settled in it.
void FakeSession::finish() {
  const std::vector<Uuid> messages = std::exchange(messages_, {});
  if (breaks_) {
    breaks_ = false;
    state_ = State::kBroken;
    error_ = Error("08006", "server closed the connection unexpectedly");
    return;
  }
  state_ = State::kIdle;
  error_ = std::exchange(pending_, std::nullopt);
  if (error_) return;
  for (const Uuid& id : messages) {
    ++backends_.finished[id];
    Row* row = backends_.table.find(id);
    if (row == nullptr || row->lease == 0 || backends_.table.snoozes[id] >= row->script.snoozes) continue;
    ++backends_.table.snoozes[id];
    row->lease = 0;
    row->attempt_at = std::min(backends_.clock.time + kSnooze, row->expires_at);
    --row->attempts;
    ++row->attempts_left;
  }
}

void FakeSession::clean() {
  EXPECT_EQ(state_, State::kIdle);
  messages_.clear();
  error_.reset();
  if (backends_.cleans_badly) pending_ = Error("XX000", "cannot discard");
  state_ = State::kBusy;
  until_ = backends_.clock.steady() + backends_.clean_takes;
}

void FakeSession::cancel() {
  if (!is_running() || stubborn_) return;
  pending_ = Error("57014", "canceling statement due to user request");
  until_ = backends_.clock.steady();
}

void FakeSession::lose(const Error& error) {
  state_ = State::kBroken;
  messages_.clear();
  error_ = error;
}

// --- FakeLeaseStore ---

std::unique_ptr<HandlerSession> FakeLeaseStore::open(int) {
  if (!room) return nullptr;
  EXPECT_LT(backends_.sessions.size(), 1000U);
  return std::make_unique<FakeSession>(backends_);
}

bool FakeLeaseStore::is_ours(int backend) {
  return backends_.find(backend) != nullptr && !backends_.another_server;
}

void FakeLeaseStore::cancel(int backend) {
  ++backends_.cancels;
  if (FakeSession* session = backends_.find(backend)) session->cancel();
}

void FakeLeaseStore::terminate(int backend) {
  ++backends_.terminations;
  if (FakeSession* session = backends_.find(backend))
    session->lose(Error("57P01", "terminating connection due to administrator command"));
}

int FakeLeaseStore::running_on(std::string_view channel_name) {
  const auto& leases = backends_.table.leases;
  return static_cast<int>(std::count_if(leases.begin(), leases.end(),
                                        [&](const auto& lease) { return lease.second.channel_name == channel_name; }));
}

int FakeLeaseStore::due(std::string_view channel_name, Micros now, int limit) {
  EXPECT_TRUE(session_.transaction.is_open());
  const auto& rows = backends_.table.rows;
  const auto due = std::count_if(rows.begin(), rows.end(), [&](const auto& row) {
    return row.second.channel_name == channel_name && row.second.attempt_at <= now && !row.second.blocks &&
           backends_.table.is_head(row.second);
  });
  return std::min(limit, static_cast<int>(due));
}

int FakeLeaseStore::enter(const Entry& entry) {
  EXPECT_TRUE(session_.transaction.is_open());
  const std::string name(entry.first.channel_name);
  if (entry.handler.max_workers > 0 && running_on(name) >= entry.handler.max_workers) return -1;
  const int number = ++backends_.table.last_lease;
  backends_.table.leases[number] = {entry.token, name};
  companies.push_back(entry.company);
  mine_.insert(number);
  return number;
}

void FakeLeaseStore::leave(int number) {
  EXPECT_EQ(mine_.erase(number), 1U) << "left a call that was not entered";
  backends_.table.leases.erase(number);
}

void FakeLeaseStore::abandon() {
  for (const int number : mine_) backends_.table.leases.erase(number);
  mine_.clear();
}

std::int64_t FakeLeaseStore::new_token() {
  return ++backends_.table.last_token;
}

void FakeLeaseStore::lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) {
  if (on_begin) std::exchange(on_begin, nullptr)();
  if (!lease_errors.empty()) {
    const Error error = lease_errors.front();
    lease_errors.pop_front();
    throw error;
  }
  Table& table = backends_.table;
  for (const Claimed* message : messages)
    session_.transaction.at_commit([&table, id = message->id, token, until] {
      Row* row = table.find(id);
      EXPECT_GE(row->attempts_left, 1) << "leased without an attempt left";
      row->attempt_at = until;
      row->lease = token;
      ++row->attempts;
      --row->attempts_left;
    });
}

void FakeLeaseStore::renew(const std::vector<std::int64_t>& tokens, Micros until) {
  if (!renew_errors.empty()) {
    const Error error = renew_errors.front();
    renew_errors.pop_front();
    throw error;
  }
  EXPECT_TRUE(session_.transaction.is_open());
  renewals.push_back(backends_.clock.time);
  for (auto& [place, row] : backends_.table.rows)
    if (row.lease > 0 && std::find(tokens.begin(), tokens.end(), row.lease) != tokens.end() &&
        !backends_.table.is_locked_by_another(row, session_.transaction))
      row.attempt_at = std::max(row.attempt_at, until);
}

bool FakeLeaseStore::reclaim(std::int64_t token, Batch& batch) {
  bool all = true;
  for (const auto& [place, row] : backends_.table.rows) {
    if (row.lease != token) continue;
    if (backends_.table.is_locked_by_another(row, session_.transaction)) {
      all = false;
      continue;
    }
    session_.queue.append(row, batch);
    Claimed& message = batch.back();
    message.held = false;
    message.lease = token;
    --message.attempts;
    ++message.attempts_left;
  }
  return all;
}

std::vector<std::int64_t> FakeLeaseStore::orphans(std::size_t limit) {
  std::vector<std::int64_t> tokens;
  for (const auto& [place, row] : backends_.table.rows)
    if (row.lease > 0 && !backends_.table.lease_is_alive(row.lease) && tokens.size() < limit &&
        std::find(tokens.begin(), tokens.end(), row.lease) == tokens.end())
      tokens.push_back(row.lease);
  return tokens;
}

LeasedCall FakeLeaseStore::call_of(const Handler& handler, const std::vector<const Claimed*>& messages) {
  std::string ids;
  for (const Claimed* message : messages) {
    if (unspeakable.contains(message->id)) throw Error("54000", "invalid memory alloc request size");
    ids.append(reinterpret_cast<const char*>(message->id.bytes.data()), sizeof(Uuid));
  }
  EXPECT_TRUE(handler.shape == Shape::kBatch || messages.size() == 1);
  return {handler.function, 0, ids, false, handler.timeout};
}

}  // namespace mq::fake
