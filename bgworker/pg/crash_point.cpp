#include "pg/crash_point.hpp"

#ifdef MQ_CRASH_POINTS

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "pg/error.hpp"
#include "pg/postgres.hpp"

namespace mq::crash_point {

namespace {

constexpr const char* kOrders = "mq_crash_points";  // in the data directory, where each process of the server is
constexpr std::size_t kMostOrders = 4096;           // bytes

struct Description {
  const char* name;
  const char* ways;
};

constexpr Description kPoints[] = {
#define X(point, processes, ways) {#point, ways},
    MQ_CRASH_POINT_LIST(X)
#undef X
};

struct Order {
  char point[64];
  char way[16];
  char where[16];
  long pass;
};

// No palloc, nothing with a destructor: a point may be passed where nothing may fail.
bool find_order(const char* point, Order& order) {
  char text[kMostOrders + 1];
  const int file = open(kOrders, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t size = read(file, text, kMostOrders);
  close(file);
  text[size < 0 ? 0 : size] = '\0';
  const bool is_worker = MyBackendType == B_BG_WORKER;
  for (const char* line = text; line != nullptr && *line != '\0';) {
    if (sscanf(line, "%63s %15s %15s %ld", order.point, order.way, order.where, &order.pass) == 4 &&
        strcmp(order.point, point) == 0 &&
        (strcmp(order.where, "any") == 0 || strcmp(order.where, is_worker ? "worker" : "client") == 0))
      return true;
    line = strchr(line, '\n');
    if (line != nullptr) ++line;
  }
  return false;
}

// Appends to a file beside the orders, and returns where its end is then; -1: it cannot.
off_t append(const char* suffix, const char* text, std::size_t size) {
  char path[128];
  snprintf(path, sizeof path, "%s.%s", kOrders, suffix);
  const int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file < 0) return -1;
  const bool written = write(file, text, size) == static_cast<ssize_t>(size);
  const off_t end = written ? lseek(file, 0, SEEK_CUR) : -1;
  close(file);
  return end;
}

// A child sends it: a SIGTERM that a process sends to itself is taken for one of its handler's.
void be_terminated() {
  const pid_t mine = getpid();
  const pid_t child = fork();
  if (child == 0) {
    (void)kill(mine, SIGTERM);
    _exit(0);
  }
  while (child > 0 && waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

void passed(Point point) {
  const Description& description = kPoints[static_cast<int>(point)];
  Order order;
  if (!find_order(description.name, order) || strstr(description.ways, order.way) == nullptr) return;
  if (append(description.name, ".", 1) != order.pass) return;
  char line[128];
  const int size = snprintf(line, sizeof line, "%s %d\n", description.name, static_cast<int>(getpid()));
  (void)append("fired", line, static_cast<std::size_t>(size));
  if (strcmp(order.way, "kill") == 0) {
    (void)kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  if (strcmp(order.way, "term") == 0) {
    be_terminated();
    return;
  }
  throw Error("58030", std::string("crash point ") + description.name);
}

}  // namespace mq::crash_point

#endif
