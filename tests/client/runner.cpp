#include "runner.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace client {

namespace {

constexpr Micros kLongestWait = std::chrono::minutes(1);
constexpr Micros kSleepAtMost = std::chrono::hours(24);
constexpr Micros kFirstPause = std::chrono::milliseconds(50);  // after a poll that failed

}  // namespace

CurrentJob::CurrentJob(Runner& runner, Session& its_session, Polled message, Clock::time_point asked,
                       std::uint64_t serial)
    : id(*message.id),
      name(*message.name),
      json(message.json),
      bytes(message.bytes),
      retry_backoff(*message.retry_backoff),
      asked_at(asked),
      started_at(Clock::now()),
      session(its_session),
      runner_(runner),
      serial_(serial) {}

void CurrentJob::complete() {
  remove(session, id);
  runner_.stop_keeping_alive(serial_);
}

void CurrentJob::checkpoint(const Checkpoint& checkpoint) {
  client::checkpoint(session, id, checkpoint);
}

int CurrentJob::kept_alive() const {
  return runner_.kept_alive(serial_);
}

void Registry::operator()(CurrentJob& job) const {
  const auto found = jobs_.find(job.name);
  if (found == jobs_.end()) throw std::runtime_error("unknown job " + job.name);
  found->second(job);
}

Runner::Runner(RunnerOptions options)
    : options_(std::move(options)), listener_(options_.conninfo), wakeup_(eventfd(0, EFD_NONBLOCK)) {
  if (wakeup_ < 0) throw std::runtime_error("no eventfd");
  listen(listener_, options_.channel_names);
  threads_.emplace_back([this] { poll_jobs(); });
  threads_.emplace_back([this] { keep_jobs_alive(); });
  for (int i = 0; i < options_.max_concurrency; ++i) threads_.emplace_back([this] { run_jobs(); });
}

Runner::~Runner() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  notify();
  work_changed_.notify_all();
  leases_changed_.notify_all();
  threads_.clear();
  close(wakeup_);
}

int Runner::polls() const {
  const std::lock_guard lock(mutex_);
  return polls_;
}

bool Runner::resting() const {
  const std::lock_guard lock(mutex_);
  return resting_;
}

int Runner::most_running() const {
  const std::lock_guard lock(mutex_);
  return most_running_;
}

std::vector<std::string> Runner::errors() const {
  const std::lock_guard lock(mutex_);
  return errors_;
}

std::vector<std::string> Runner::failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}

void Runner::notify() const {
  eventfd_write(wakeup_, 1);
}

void Runner::poll_jobs() {
  std::optional<Session> session;
  int failed = 0;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const int running = running_;
    lock.unlock();
    Micros wait = kLongestWait;
    std::string error;
    try {
      if (!session) session.emplace(options_.conninfo);
      if (running < options_.min_concurrency) wait = poll_and_dispatch(*session, options_.max_concurrency - running);
      failed = 0;
    } catch (const std::exception& e) {
      error = e.what();
      wait = kFirstPause * (1 << std::min(failed++, 8));
    }
    try {
      wait_for_notification(wait);
    } catch (const std::exception& e) {
      error = e.what();
    }
    lock.lock();
    if (!error.empty()) errors_.push_back(error);
  }
}

// Returns how long there is nothing to be had. What was not committed in time nobody may have any more.
Micros Runner::poll_and_dispatch(Session& session, int batch_size) {
  const Clock::time_point asked_at = Clock::now();
  std::vector<Polled> polled = poll(session, options_.channel_names, batch_size);

  Ids expired;
  for (const Polled& message : polled)
    if (message.id && message.is_committed == false) expired.push_back(*message.id);
  if (!expired.empty()) remove(session, expired);

  std::optional<Micros> wait;
  const std::lock_guard lock(mutex_);
  ++polls_;
  resting_ = std::none_of(polled.begin(), polled.end(), [](const Polled& message) { return message.id.has_value(); });
  for (Polled& message : polled) {
    if (message.wait_time) {
      const Micros its = std::max(*message.wait_time, Micros(0));
      wait = wait ? std::min(*wait, its) : its;
    }
    if (!message.id || message.is_committed != true || !message.name || !message.retry_backoff) continue;
    const std::uint64_t serial = ++serial_;
    if (options_.keep_alive) {
      const Micros length = *message.retry_backoff;
      leases_.emplace(serial, Lease{*message.id, length, Clock::now() + length / 2});
    }
    waiting_.push_back({std::move(message), asked_at, serial});
    most_running_ = std::max(most_running_, ++running_);
  }
  work_changed_.notify_all();
  leases_changed_.notify_all();
  return wait.value_or(kLongestWait);
}

// Until the server or one of our own threads notifies us, or the time is over.
void Runner::wait_for_notification(Micros longest) {
  if (listener_.notifications() > 0) return;
  std::array<pollfd, 2> sources{{{listener_.socket(), POLLIN, 0}, {wakeup_, POLLIN, 0}}};
  const auto limit = std::chrono::ceil<std::chrono::milliseconds>(std::min(longest, kSleepAtMost));
  ::poll(sources.data(), sources.size(), static_cast<int>(limit.count()));
  eventfd_t count = 0;
  eventfd_read(wakeup_, &count);
  listener_.notifications();
}

void Runner::run_jobs() {
  std::optional<Session> session;
  std::unique_lock lock(mutex_);
  for (;;) {
    work_changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    std::string failure;
    try {
      if (!session) session.emplace(options_.conninfo);
      CurrentJob job(*this, *session, std::move(next.message), next.asked_at, next.serial);
      options_.job(job);
    } catch (const std::exception& e) {
      failure = e.what();
      session.reset();  // with the transaction that may be open
    }
    stop_keeping_alive(next.serial);
    lock.lock();
    if (!failure.empty()) failures_.push_back(failure);
    if (running_-- == options_.min_concurrency) notify();
  }
}

void Runner::keep_jobs_alive() {
  std::optional<Session> session;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto next = std::min_element(leases_.begin(), leases_.end(), [](const auto& a, const auto& b) {
      return a.second.renew_at < b.second.renew_at;
    });
    if (next == leases_.end()) {
      leases_changed_.wait(lock);
      continue;
    }
    if (Clock::now() < next->second.renew_at) {
      leases_changed_.wait_until(lock, Clock::time_point(next->second.renew_at));
      continue;
    }
    const std::uint64_t serial = next->first;
    const Id id = next->second.id;
    const Micros length = next->second.length * 2;
    lock.unlock();
    std::string error;
    try {
      if (!session) session.emplace(options_.conninfo);
      keep_alive(*session, id, length);
    } catch (const std::exception& e) {
      error = e.what();
    }
    lock.lock();
    if (!error.empty()) errors_.push_back(error);
    const auto lease = leases_.find(serial);
    if (lease == leases_.end()) continue;
    if (!error.empty()) {
      leases_.erase(lease);
    } else {
      lease->second.length = length;
      lease->second.renew_at = Clock::now() + length / 2;
      ++lease->second.renewed;
    }
  }
}

void Runner::stop_keeping_alive(std::uint64_t serial) {
  const std::lock_guard lock(mutex_);
  leases_.erase(serial);
}

int Runner::kept_alive(std::uint64_t serial) const {
  const std::lock_guard lock(mutex_);
  const auto lease = leases_.find(serial);
  return lease == leases_.end() ? 0 : lease->second.renewed;
}

}  // namespace client
