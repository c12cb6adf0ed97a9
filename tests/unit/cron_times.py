#!/usr/bin/python3
"""Writes tests/unit/cron_times.hpp: 200 cron lines with their next ten times in UTC, as another implementation of cron
has them. Needs Debian's python3-croniter, and only where the table is to be made anew:

    tests/unit/cron_times.py >tests/unit/cron_times.hpp

Left out are lines on which implementations of cron differ: a day field that begins with * and has a step, beside
another restricted day field (mq goes by Vixie cron there, and cron_line_test.cpp tests it), and steps behind a single
value.
"""
import datetime
import random

from croniter import croniter

LINES = """
* * * * *|*/5 * * * *|*/7 * * * *|0 * * * *|30 * * * *|59 23 * * *|0 0 * * *|0 0 1 1 *|0 0 1 * *|0 0 * * 0|0 0 * * 7
0 0 29 2 *|0 0 31 * *|0 0 30 * *|0 0 31 1,3,5 *|15 14 1 * *|0 22 * * 1-5|23 0-23/2 * * *|5 4 * * sun|0 0,12 1 */2 *
0 4 8-14 * *|0 0 1,15 * 3|0 0 1 * 1|0 0 13 * 5|0 0 13 * fri|*/15 9-17 * * mon-fri|0 9 * jan-mar mon|0 0 29 2 1
10-20 3 * * *|10-50/10 3 * * *|0,30 8-10,16-18 * * *|5,10,15 * * * *|0 0 1 dec *|0 0 * feb *|59 23 31 12 *|0 0 1 1 1
* 0 * * *|* * 1 * *|* * * 1 *|* * * * 1|*/59 * * * *|*/30 */6 * * *|0 */12 * * *|0 0 */10 * *|0 0 * */5 *|0 0 * * */3
0 0 28-31 * *|0 0 31 12 *|1 1 1 1 *|0 12 * * SAT,SUN|0 12 * JAN,JUL *|0 6-18/3 * * 1-6/2|45 23 28 2 *|0 0 30 4,6,9,11 *
0 0 1-7 * 1|0 0 29-31 2-4 *|2-58/8 1-23/11 * * *|0 5 1,10-12,31 * *|0 5 * * 0,6|0 5 * * 6-7|0 5 * 11-12 5-7
"""


def random_lines(count):
    chance = random.Random(20)

    def field(least, most, star):
        if chance.random() < star:
            return "*"
        kind = chance.randrange(4)
        if kind == 0:
            return str(chance.randint(least, most))
        if kind == 1:
            return ",".join(map(str, sorted(chance.sample(range(least, most + 1), chance.randint(2, 3)))))
        first, last = sorted(chance.sample(range(least, most + 1), 2))
        if kind == 2:
            return f"{first}-{last}"
        return f"{first}-{last}/{chance.randint(1, max(1, (most - least) // 3))}"

    lines = []
    while len(lines) < count:
        # Days up to 28, so that each line has times.
        line = " ".join([field(0, 59, 0.2), field(0, 23, 0.3), field(1, 28, 0.5), field(1, 12, 0.6), field(0, 6, 0.5)])
        if line not in lines:
            lines.append(line)
    return lines


def main():
    fixed = [line for row in LINES.strip().split("\n") for line in row.split("|")]
    lines = fixed + random_lines(200 - len(fixed))
    # From a day in February croniter 1.3.5 leaves out 1 March for these.
    not_from_february = ["0 0 */10 * *", "0 5 1,10-12,31 * *"]
    starts = ["2026-11-30 12:00", "2027-02-27 23:59", "2027-12-31 23:58", "2028-02-28 00:00", "2031-07-04 10:17",
              "2095-03-01 00:00"]
    print("// Made by tests/unit/cron_times.py with another implementation of cron: lines with their next ten times in UTC.")
    print("#pragma once\n")
    print("// clang-format off")
    print("struct CronTimes {\n  const char *line, *after, *times[10];\n};")
    print("inline constexpr CronTimes kCronTimes[] = {")
    for number, line in enumerate(lines):
        after = starts[0] if line in not_from_february else starts[number % len(starts)]
        times = croniter(line, datetime.datetime.strptime(after, "%Y-%m-%d %H:%M"))
        ten = [times.get_next(datetime.datetime).strftime("%Y-%m-%d %H:%M") for _ in range(10)]
        print(f'    {{"{line}", "{after}",')
        print("     {" + ",\n      ".join(", ".join(f'"{t}"' for t in ten[i:i + 5]) for i in (0, 5)) + "}},")
    print("};\n// clang-format on")


main()
