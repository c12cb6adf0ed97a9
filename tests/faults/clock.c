/*
 * clock.c: the clock of a server whose clock is set (kinds_clock.py). A library to preload: it moves what the system says of the
 * time by the microseconds that stand in the file $MQ_TEST_CLOCK, from one reading to the next.
 *
 * The monotonic clock stays as it is, and timers run by it, as on a machine whose clock is set. A reading is one look at mapped
 * memory and one system call, so signal handlers may read the clock as well.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;	/* set once, before main() */

__attribute__((constructor)) static void
open_clock(void)
{
	const char *path = getenv("MQ_TEST_CLOCK");
	int			file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void	   *map;

	if (file < 0)
		abort();
	map = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (map == MAP_FAILED)
		abort();
	ahead = map;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int64_t		micros;

	if (syscall(SYS_clock_gettime, clock, now) != 0)
		return -1;
	if (ahead == NULL || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
		return 0;
	micros = now->tv_sec * INT64_C(1000000) + now->tv_nsec / 1000 + *ahead;
	now->tv_sec = micros / 1000000;
	now->tv_nsec = micros % 1000000 * 1000;
	return 0;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec precise;

	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	if (result != NULL)
		*result = precise.tv_sec;
	return precise.tv_sec;
}
