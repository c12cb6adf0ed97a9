#include "worker/dispatch.hpp"

#include <algorithm>
#include <utility>

#include "handlers/policy.hpp"
#include "pg/crash_point.hpp"

namespace mq {

void Dispatcher::run(std::span<const Claimed> messages, std::span<const Handler* const> handlers) {
  messages_ = messages;
  handlers_ = handlers;
  outcomes_.assign(messages.size(), Outcome::kUntouched);
  failures_.clear();
  dispositions_.clear();
  spans_.assign(messages.size(), Span());
  expired_.clear();
  throttled_.clear();
  granted_.assign(messages.size(), !caller_.may_refuse());
  run_range(0, messages.size(), messages.size());
}

bool Dispatcher::run_range(std::size_t first, std::size_t last, std::size_t most) {
  std::size_t piece = last - first;
  for (std::size_t i = first; i < last;) {
    if (exhausted()) return false;
    const std::size_t end = std::min(last, i + piece);
    const Attempt tried = attempt(i, end, most);
    if (tried.cancelled) continue;
    if (tried.cut != 0) {
      ++resolving_;
      const bool done = run_range(i, tried.cut, most);
      --resolving_;
      if (!done) return false;
      i = tried.cut;
      continue;
    }
    if (!tried.failed()) {
      if (tried.reached < end || cut_short_) return false;
      i = end;
      piece = std::min(last - first, piece * 2);
      continue;
    }
    ++resolving_;
    const bool resolved = resolve(i, tried, most, {&messages_[tried.reached], error_, duration_});
    --resolving_;
    if (!resolved) return false;
    i = tried.failed_end;
    piece = std::max<std::size_t>(1, piece / 2);
  }
  return true;
}

bool Dispatcher::resolve(std::size_t first, const Attempt& tried, std::size_t most, const Failure& failure) {
  if (tried.reached > first && !run_range(first, tried.reached, most)) return false;
  const bool collided = tried.felt || (!tried.yielded && tried.is_shared && failure.error.is_of_sharing());
  if (tried.yielded || collided) {
    for (std::size_t i = tried.reached; i < tried.failed_end; ++i)
      if (!skipped(i)) outcomes_[i] = collided ? Outcome::kCollided : Outcome::kYielded;
    return false;
  }
  if (tried.failed_end - tried.reached > 1) {
    const std::size_t half = (tried.failed_end - tried.reached + 1) / 2;
    return run_range(tried.reached, tried.reached + half, half) &&
           run_range(tried.reached + half, tried.failed_end, half);
  }
  if (skipped(tried.reached)) return true;  // a message before it held up the channel this time
  const bool conflict = failure.error.is_conflict();
  outcomes_[tried.reached] = conflict ? Outcome::kConflict : Outcome::kFailed;
  failures_.push_back(failure);
  return !conflict;
}

// How far a call from `first` on may reach; `first`: it may not begin. Asks for each message once in a batch: if it
// asked again before a repeated call, there might never be room for the calls that find out which message fails.
std::size_t Dispatcher::may_begin(std::size_t first, std::size_t last) {
  const auto end = granted_.begin() + static_cast<std::ptrdiff_t>(last);
  if (std::find(granted_.begin() + static_cast<std::ptrdiff_t>(first), end, 0) == end) return last;
  std::vector<const Claimed*> asked;
  for (std::size_t i = first; i < last; ++i)
    if (granted_[i] == 0) asked.push_back(&messages_[i]);
  std::size_t left = caller_.may_begin(asked);
  for (std::size_t i = first; i < last; ++i) {
    if (granted_[i] != 0) continue;
    if (left == 0) return i;
    --left;
    granted_[i] = 1;
  }
  return last;
}

Dispatcher::Attempt Dispatcher::attempt(std::size_t first, std::size_t last, std::size_t most) {
  transaction_.set_savepoint();
  MQ_CRASH_POINT(dispatch_begins);
  now_ = clock_.now();
  std::size_t i = first;
  while (i < last) {
    if (skipped(i)) {
      ++i;
      continue;
    }
    if (i > first && exhausted()) break;
    if (expired(i)) {
      outcomes_[i] = Outcome::kExpired;
      expired_.push_back(i++);
      continue;
    }
    const std::size_t end = may_begin(i, call_end(i, last, most));
    if (end == i) {
      outcomes_[i] = Outcome::kThrottled;
      throttled_.push_back(i++);
      continue;
    }
    MQ_CRASH_POINT(dispatch_granted);
    call_.clear();
    for (std::size_t k = i; k < end; ++k) call_.push_back(&messages_[k]);
    const Micros started = now_;
    const bool is_shared = began_;
    try {
      caller_.call(*handlers_[i], call_, call_.size() < messages_.size());
      note_dispositions(i, end);
    } catch (const Cancelled& cancelled) {
      now_ = clock_.now();
      transaction_.rollback_to_savepoint();
      dispositions_.erase(dispositions_.lower_bound(first), dispositions_.lower_bound(end));
      note_cancelled(i, end, cancelled.messages);
      began_ = true;
      return {.reached = i, .cancelled = true};
    } catch (const Yielded& yielded) {
      now_ = clock_.now();
      transaction_.rollback_to_savepoint();
      dispositions_.erase(dispositions_.lower_bound(first), dispositions_.lower_bound(end));
      duration_ = now_ - started;
      began_ = true;
      yielded_in_conflict_ = yielded.conflicted;
      return {.reached = i, .failed_end = end, .yielded = true, .felt = yielded.felt};
    } catch (const Error& error) {
      now_ = clock_.now();
      MQ_CRASH_POINT(dispatch_failed);
      transaction_.rollback_to_savepoint();
      MQ_CRASH_POINT(dispatch_undone);
      dispositions_.erase(dispositions_.lower_bound(first), dispositions_.lower_bound(end));
      error_ = error;
      duration_ = now_ - started;
      began_ = true;
      return {.reached = i, .failed_end = end, .is_shared = is_shared};
    }
    began_ = true;
    MQ_CRASH_POINT(dispatch_called);
    now_ = clock_.now();
    const Micros share = (now_ - started) / static_cast<Micros>(end - i);
    for (std::size_t k = i; k < end; ++k) spans_[k] = {started, share, now_};
    note_results(i, caller_.results());
    if (const std::size_t cut = cut_of(i, end); cut != 0) {
      transaction_.rollback_to_savepoint();
      dispositions_.erase(dispositions_.lower_bound(first), dispositions_.lower_bound(end));
      return {i, 0, cut};
    }
    i = end;
    cut_short_ = caller_.has_changed(messages_.subspan(end));
    if (cut_short_) break;
  }
  MQ_CRASH_POINT(dispatch_releases);
  if (transaction_.release_savepoint()) ++savepoints_;
  MQ_CRASH_POINT(dispatch_released);
  for (std::size_t k = first; k < i; ++k)
    if (!skipped(k)) {
      const auto disposition = dispositions_.find(k);
      outcomes_[k] = disposition == dispositions_.end()                 ? Outcome::kHandled
                     : disposition->second.kind == Disposition::kSnooze ? Outcome::kSnoozed
                                                                        : Outcome::kDiscarded;
    }
  return {i, 0, 0};
}

std::size_t Dispatcher::call_end(std::size_t first, std::size_t last, std::size_t most) const {
  std::size_t end = first + 1;
  if (handlers_[first]->shape != Shape::kBatch) return end;
  while (end < last && end - first < most && handlers_[end] == handlers_[first] && !skipped(end) && !expired(end))
    ++end;
  return end;
}

void Dispatcher::note_results(std::size_t first, std::span<const void* const> results) {
  if (results.empty()) return;
  results_.resize(messages_.size());
  std::copy(results.begin(), results.end(), results_.begin() + static_cast<std::ptrdiff_t>(first));
}

// Where none is named all are, so that the same call is not made again for ever.
void Dispatcher::note_cancelled(std::size_t first, std::size_t last, const std::vector<Uuid>& cancelled) {
  for (std::size_t i = first; i < last; ++i)
    if (cancelled.empty() || std::find(cancelled.begin(), cancelled.end(), messages_[i].id) != cancelled.end())
      outcomes_[i] = Outcome::kCancelled;
}

void Dispatcher::note_dispositions(std::size_t first, std::size_t last) {
  for (Disposition& disposition : caller_.dispositions())
    for (std::size_t i = first; i < last; ++i)
      if (messages_[i].id == disposition.id) dispositions_.insert_or_assign(i, disposition);
}

std::size_t Dispatcher::cut_of(std::size_t first, std::size_t last) const {
  for (std::size_t i = first; i < last; ++i) {
    if (!messages_[i].ordered || !stops_channel(i)) continue;
    for (std::size_t k = i + 1; k < last; ++k)
      if (messages_[k].ordered && same_channel(messages_[i], messages_[k])) return i + 1;
  }
  return 0;
}

bool Dispatcher::expired(std::size_t i) const {
  return messages_[i].expires_at <= now_;
}

bool Dispatcher::stops_channel(std::size_t i) const {
  const auto disposition = dispositions_.find(i);
  if (disposition == dispositions_.end()) return false;
  return disposition->second.kind == Disposition::kSnooze || handlers_[i]->block_on_dead;
}

bool Dispatcher::skipped(std::size_t i) const {
  if (outcomes_[i] != Outcome::kUntouched) return true;
  if (!messages_[i].ordered) return false;
  if (std::any_of(failures_.begin(), failures_.end(), [&](const Failure& failure) {
        return failure.message->ordered && same_channel(*failure.message, messages_[i]);
      }))
    return true;
  if (std::any_of(expired_.begin(), expired_.end(), [&](std::size_t e) {
        return e < i && messages_[e].ordered && same_channel(messages_[e], messages_[i]);
      }))
    return true;
  if (std::any_of(throttled_.begin(), throttled_.end(), [&](std::size_t t) {
        return t < i && messages_[t].ordered && same_channel(messages_[t], messages_[i]);
      }))
    return true;
  return std::any_of(dispositions_.begin(), dispositions_.lower_bound(i), [&](const auto& disposition) {
    return stops_channel(disposition.first) && messages_[disposition.first].ordered &&
           same_channel(messages_[disposition.first], messages_[i]);
  });
}

bool Dispatcher::exhausted() const {
  if (savepoints_ >= kMostSavepoints) return true;
  return began_ && (caller_.should_yield() || (resolving_ == 0 && now_ >= limits_.slice_end));
}

}  // namespace mq
