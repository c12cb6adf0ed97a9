# mq: builds, installs and tests the extension. `make help` lists what one can do.
#
# The targets test, demo, dist and distcheck are scripts under tests/ and need nothing
# but make: they install what is missing. The others are PGXS and need the
# server's development files, whose place PG_CONFIG tells.

## Targets:
##   make                build the extension (PG_CONFIG=/path/to/pg_config chooses the server;
##                         DEBUG=1 keeps debug information)
##   make install        install it into that server; DESTDIR= as usual
##   make uninstall      remove it again
##   make installcheck   pg_regress and isolation tests against a running server that has mq
##   make clean          remove everything that was built
##   make test           install what is missing, build, and test on a private throwaway server
##                         ONLY=unit|layout|spin|model|regress|isolation|tap|original|faults|crash|failover|dist|package  TESTS="names"
##                         MQ_ORIGINAL=path  a copy of the original schema, for the suite original
##   make test-model     the suite model for longer: STEPS=100000 in one session and as many in four, or in
##                         as many sessions as SESSIONS says, with a new seed or that of SEED
##   make fuzz           libFuzzer on what parses, FUZZ_SECONDS=60 for each target; TESTS="cron_line topics"
##                         some of them; FUZZ_MERGE=1  adds what reaches further to the corpus
##   make valgrind       a worker under valgrind's memcheck for a while
##   make test-cassert   regress, isolation, original and tap on a server built with assertions, from Debian's source;
##                         ONLY= and TESTS= as above
##   make test-ubsan     the same with mq under UBSan, on the server as it is
##   make test-faults    every kind of fault several times, audited; writes docs/reliability.md; half an hour
##                         KINDS="1 8"  some kinds; REPEAT=20  more often; SEED=7  as an earlier run
##   make test-memory        memory, files and locks over much work (half an hour): SCALE=0.1, PHASES="runs"
##   make test-crash-points  the suite crash: a process dies at each step of mq, in a build of its own, audited
##                         TESTS="settle claim_taken"  some steps
##   make test-failover  two nodes with Patroni and etcd, the primary killed under load, three times, and a switchover, audited;
##                         writes docs/reliability.md; seven minutes; SEED=7  as an earlier run
##   make test-package   the Debian package: built twice, installed, upgraded, tested and purged, in a copy of
##                         this machine's file system that is gone afterwards; as root
##   make test-versions  make test on PostgreSQL 15, 17 and 18, each in the Debian release that carries it, made by
##                         debootstrap in a directory that is gone afterwards; as root. VERSIONS="17 18"  some of them;
##                         VERSIONS_CACHE=directory  keeps the releases and objects there; ONLY, TESTS as for test
##   make report         an HTML page on the queue of a database, as psql's variables name it: PGDATABASE=shop
##                         REPORT=report.html  its file
##   make demo           the same for a demonstration; KEEP=1 leaves its server running
##                         APP=appview  another: an AT Protocol AppView, docs/recipes/appview.md
##   make demo-stop      stop and remove the servers that KEEP=1 left
##   make unit           build and run the unit tests here, under the sanitizers
##   make client         build the client of the original schema that t/020_client.pl plays
##   make bench          benchmarks of mq beside peers; an idle machine, an hour and a half
##                         WORKLOAD="W1 W7"  some of W1 to W22; SKIP="W8 W10"  all but these
##                         QUICK=1  one round, smaller, in less than a minute each; ROUNDS=9  more rounds
##                         BASE=commit  the release before; ORIGINAL=path  a copy of the original schema
##   make sbom           mq-VERSION.cdx.json, a bill of materials of the library (CycloneDX); on Debian; builds anew
##   make dist           mq-VERSION.zip for PGXN
##   make distcheck      install that archive with the pgxn client into a throwaway server
##   make format         clang-format over the C++ sources
##   make tidy           clang-tidy over the C++ sources

EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" extension/mq.control)

EXTENSION = extension/mq
UPGRADES = $(patsubst extension/upgrade/%,extension/mq--%,$(wildcard extension/upgrade/*.sql))
DATA_built = extension/mq--$(EXTVERSION).sql $(UPGRADES)

MODULE_big = mq
PGFILEDESC = "mq - message queue with native background workers"

# From the top of the house to its bottom: a file includes its own folder and those that follow.
FOLDERS = api worker leased handlers queue stats shmem pg
# What needs no server: compiled without its headers, and tested on its own.
PURE = $(patsubst %,bgworker/%.cpp, \
  $(addprefix worker/,dispatch pace pool) $(addprefix leased/,begin executor pq_session) \
  $(addprefix handlers/,policy registry) $(addprefix queue/,backoff cron_line settlement topics topological undeliverable uuid wall_clock) stats/histogram \
  $(addprefix shmem/,channel_key in_flight_record limit_table low_water_marks pool_state rate throttle) $(addprefix pg/,clean_text format packed trouble validate))
SOURCES = $(sort $(wildcard $(FOLDERS:%=bgworker/%/*.cpp)))
PURE_OBJS = $(PURE:.cpp=.o)
SERVER_OBJS = $(patsubst %.cpp,%.o,$(filter-out $(PURE),$(SOURCES)))
OBJS = bgworker/mq.o $(PURE_OBJS) $(SERVER_OBJS)

REGRESS = $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
ISOLATION = $(sort $(patsubst tests/isolation/specs/%.spec,%,$(wildcard tests/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(srcdir)/tests/isolation
EXTRA_CLEAN = build $(OBJS:.o=.d) mq-$(EXTVERSION).zip mq-$(EXTVERSION).cdx.json

# A warning is an error in a checkout; a release must build with compilers to come.
WERROR ?= $(if $(wildcard .git),-Werror)
# For instance SANITIZE=undefined: the module itself under a sanitizer.
SANITIZE ?=
MQ_SANITIZE = $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)
# Steps at which the suite crash has a process end, see bgworker/pg/crash_point.hpp. Not for a server in use.
CRASH_POINTS ?=
MQ_CRASH_POINTS = $(if $(CRASH_POINTS),-DMQ_CRASH_POINTS)
# Debug information is twenty times the library. DEBUG=1 leaves what the server's own flags ask for.
DEBUG ?=
MQ_DEBUG = $(if $(DEBUG)$(SANITIZE),,-g0)
# Further flags of both compilers, for packagers.
MQ_FLAGS ?=
# The compiler lists the headers that a file is made of. A bill of materials needs those of the system, too.
SBOM ?=
MQ_DEPENDS = $(if $(SBOM),-MD,-MMD) -MP
# The last is a flag of the server itself from 16 on.
MQ_CXXSTD = -std=c++20 -Wall -Wextra -Wshadow=compatible-local
MQ_CXXFLAGS = $(MQ_CXXSTD) $(WERROR)

# Only what is marked PGDLLEXPORT leaves the library; servers before 16 leave the mark empty.
PG_CPPFLAGS = '-DPGDLLEXPORT=__attribute__((visibility("default")))' '-DMQ_VERSION="$(EXTVERSION)"' -Ibgworker $(MQ_CRASH_POINTS)
PG_CFLAGS = $(WERROR) -Wno-declaration-after-statement -fvisibility=hidden $(MQ_DEBUG) $(MQ_SANITIZE) $(MQ_FLAGS)
PG_CXXFLAGS = $(MQ_CXXFLAGS) -Wno-register -fvisibility=hidden $(MQ_DEBUG) $(MQ_SANITIZE) $(MQ_FLAGS)
SHLIB_LINK_INTERNAL = $(libpq)
SHLIB_LINK = -lstdc++ $(MQ_SANITIZE) -Wl,--version-script=build/exports

# The bitcode rules do not know our C++ flags.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

.DEFAULT_GOAL := all
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
.PHONY: all install uninstall installcheck
all install uninstall installcheck:
	@echo "No PostgreSQL server development files: '$(PG_CONFIG) --pgxs' names none." >&2
	@echo "Install postgresql-server-dev-NN or set PG_CONFIG. ('make test' and 'make demo' install what they need.)" >&2
	@exit 1
.PHONY: clean
clean:
	rm -rf mq.so $(DATA_built) $(OBJS) $(EXTRA_CLEAN)
endif

# --- the extension script ---------------------------------------------------------------

SQL_PARTS = $(sort $(wildcard extension/parts/*.sql))

# The directory is a prerequisite so that a removed part is noticed.
extension/mq--$(EXTVERSION).sql: $(SQL_PARTS) extension/parts extension/mq.control
	cat $(SQL_PARTS) >$@.tmp && mv $@.tmp $@

# A line '-- replace NAME.sql' in an upgrade script stands for that part, whose functions replace those that are there:
# what changes with each version is written once.
$(UPGRADES): extension/mq--%: extension/upgrade/% $(SQL_PARTS)
	awk '$$1 == "--" && $$2 == "replace" { part = "extension/parts/" $$3; \
	       while ((got = (getline line <part)) > 0) { sub(/^CREATE (FUNCTION|PROCEDURE|VIEW)/, "CREATE OR REPLACE&", line); \
	         sub(/^CREATE OR REPLACECREATE/, "CREATE OR REPLACE", line); print line } \
	       if (got < 0) exit 1; close(part); next } { print }' $< >$@.tmp && mv $@.tmp $@

# --- the library ------------------------------------------------------------------------

# What is pure is compiled without the server's include path, so with a server header it does not compile. The
# server's own headers are exempt from our warnings.
PURE_CPPFLAGS = $(filter-out -I%,$(CPPFLAGS)) -Ibgworker -I$(includedir)
SERVER_CPPFLAGS = $(patsubst -I$(includedir_internal),-isystem $(includedir_internal), \
  $(patsubst -I$(includedir_server),-isystem $(includedir_server),$(CPPFLAGS)))

$(PURE_OBJS): %.o: %.cpp build/flags
	$(CXX) $(CXXFLAGS) $(PURE_CPPFLAGS) $(MQ_DEPENDS) -c -o $@ $<

$(SERVER_OBJS): %.o: %.cpp build/flags
	$(CXX) $(CXXFLAGS) $(SERVER_CPPFLAGS) $(MQ_DEPENDS) -c -o $@ $<

bgworker/mq.o: %.o: %.c build/flags
	$(CC) $(CFLAGS) $(CFLAGS_SL) $(CPPFLAGS) $(MQ_DEPENDS) -c -o $@ $<

# A removed source file asks for a new link.
mq.so: build/exports $(wildcard $(FOLDERS:%=bgworker/%))

# Templates of the standard library are visible whatever the flags say; nothing of C++ may leave.
build/exports:
	@mkdir -p build
	echo '{ local: _Z*; };' >$@

# Other flags or another server ask for a new build. make -n, which cannot know, does as if they were those of the
# last one: tests/run/server.sh counts by it.
.PHONY: FORCE
build/flags: $(if $(findstring n,$(firstword -$(MAKEFLAGS))),,FORCE)
	@mkdir -p build
	@echo $(call quote,$(CC) $(CXX) $(CFLAGS) $(CXXFLAGS) $(CPPFLAGS) $(MQ_DEPENDS) $(VERSION)) | \
	  cmp -s - $@ || echo $(call quote,$(CC) $(CXX) $(CFLAGS) $(CXXFLAGS) $(CPPFLAGS) $(MQ_DEPENDS) $(VERSION)) >$@
quote = '$(subst ','\'',$(1))'

-include $(wildcard $(OBJS:.o=.d))

# --- bill of materials ------------------------------------------------------------------

# What is in the library, by Debian's packages. SBOM=file writes one with any build; a packager's `make install` has it.
.PHONY: sbom
ifeq ($(SBOM),)
sbom:
	@$(MAKE) --no-print-directory SBOM=mq-$(EXTVERSION).cdx.json sbom
else
sbom all install: $(SBOM)
$(SBOM): mq.so tests/run/sbom.py
	python3 tests/run/sbom.py $(EXTVERSION) >$@.tmp && mv $@.tmp $@
endif

# --- unit tests -------------------------------------------------------------------------

# What is pure once more, under the sanitizers. The fuzz targets too: a test plays their corpus.
FUZZ_TARGETS = $(filter-out tests/fuzz/fuzzer.cpp,$(sort $(wildcard tests/fuzz/*.cpp)))
UNIT = build/unit/mq_unit
UNIT_OBJS = $(patsubst %.cpp,build/unit/%.o,$(PURE) $(sort $(wildcard tests/unit/*.cpp)) $(FUZZ_TARGETS))
UNIT_CXXFLAGS = $(MQ_CXXFLAGS) -g -O0 -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=all
UNIT_CPPFLAGS = -Ibgworker -Itests/unit -Itests/fuzz -I$(shell $(PG_CONFIG) --includedir)
UNIT_LIBS = -L$(shell $(PG_CONFIG) --libdir) -lgtest -lgtest_main -lpq -lpthread

build/unit/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(UNIT_CXXFLAGS) $(UNIT_CPPFLAGS) -MMD -MP -c -o $@ $<

$(UNIT): $(UNIT_OBJS) $(wildcard tests/unit)
	$(CXX) $(UNIT_CXXFLAGS) -o $@ $(UNIT_OBJS) $(UNIT_LIBS)

-include $(wildcard $(UNIT_OBJS:.o=.d))

.PHONY: unit unit-build
unit-build: $(UNIT)
unit: $(UNIT)
	$(UNIT)

# The fuzz targets with libFuzzer, which comes with clang; see tests/run/fuzz.sh.
FUZZ = build/fuzz/mq_fuzz
FUZZ_OBJS = $(patsubst %.cpp,build/fuzz/%.o,$(FUZZ_TARGETS) tests/fuzz/fuzzer.cpp $(patsubst %,bgworker/%.cpp, \
  $(addprefix queue/,backoff cron_line topics topological uuid wall_clock) $(addprefix pg/,clean_text format packed validate) \
  $(addprefix shmem/,channel_key in_flight_record rate) stats/histogram))
FUZZ_CXXFLAGS = $(filter-out -Wshadow=compatible-local,$(MQ_CXXFLAGS)) -Wshadow-uncaptured-local -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all

build/fuzz/%.o: %.cpp
	@mkdir -p $(@D)
	clang++ $(FUZZ_CXXFLAGS) -fsanitize=fuzzer-no-link,address,undefined $(UNIT_CPPFLAGS) -MMD -MP -c -o $@ $<

$(FUZZ): $(FUZZ_OBJS)
	clang++ -fsanitize=fuzzer,address,undefined -o $@ $(FUZZ_OBJS)

-include $(wildcard $(FUZZ_OBJS:.o=.d))

.PHONY: fuzz-build
fuzz-build: $(FUZZ)

# For tests/run/layout.sh: compiles PROBE as a pure file; and says what is where.
.PHONY: pure-probe layout
pure-probe:
	$(CXX) $(CXXFLAGS) $(PURE_CPPFLAGS) -fsyntax-only -x c++ $(PROBE)
layout:
	@echo folders $(FOLDERS)
	@echo pure $(PURE)

# --- client -----------------------------------------------------------------------------

# A program that knows the original schema's statements and nothing else, for tests/t/020_client.pl.
CLIENT = build/client/mq_client
CLIENT_OBJS = $(patsubst %.cpp,build/client/%.o,$(sort $(wildcard tests/client/*.cpp)))
CLIENT_CXXFLAGS = $(MQ_CXXFLAGS) -g -O1 -pthread

build/client/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CLIENT_CXXFLAGS) -I$(shell $(PG_CONFIG) --includedir) -MMD -MP -c -o $@ $<

$(CLIENT): $(CLIENT_OBJS) $(wildcard tests/client)
	$(CXX) $(CLIENT_CXXFLAGS) -o $@ $(CLIENT_OBJS) -L$(shell $(PG_CONFIG) --libdir) -lpq

-include $(wildcard $(CLIENT_OBJS:.o=.d))

.PHONY: client
client: $(CLIENT)

# --- scripts ----------------------------------------------------------------------------

# A PG_CONFIG that the user did not choose is left for the scripts to find.
RUN = exec env -u MAKEFLAGS -u MFLAGS ONLY='$(ONLY)' TESTS='$(TESTS)' KEEP='$(KEEP)' APP='$(APP)' \
  SANITIZE='$(SANITIZE)' STEPS='$(STEPS)' SEED='$(SEED)' SESSIONS='$(SESSIONS)' FUZZ_SECONDS='$(FUZZ_SECONDS)' FUZZ_MERGE='$(FUZZ_MERGE)' \
  PG_CONFIG='$(if $(filter file,$(origin PG_CONFIG)),,$(PG_CONFIG))'

.PHONY: help test report test-model test-faults test-memory test-crash-points test-failover test-package test-versions test-ubsan test-cassert fuzz valgrind demo demo-stop bench dist distcheck format tidy
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

test:
	@$(RUN) tests/run/test.sh

test-model: STEPS = 100000
test-model:
	@$(RUN) ONLY=model tests/run/test.sh

test-package:
	@$(RUN) ONLY=package tests/run/test.sh

test-versions:
	@$(RUN) VERSIONS='$(VERSIONS)' VERSIONS_CACHE='$(VERSIONS_CACHE)' tests/run/versions.sh

fuzz:
	@$(RUN) tests/run/fuzz.sh

valgrind:
	@$(RUN) tests/run/valgrind.sh

test-ubsan: SANITIZE = undefined
test-ubsan:
	@$(RUN) ONLY='$(or $(ONLY),regress isolation original tap)' tests/run/test.sh

test-cassert:
	@$(RUN) tests/run/cassert.sh

test-faults:
	@$(RUN) KINDS='$(KINDS)' REPEAT='$(REPEAT)' SEED='$(SEED)' tests/faults/run.sh

test-memory:
	@$(RUN) SCALE='$(SCALE)' PHASES='$(PHASES)' tests/memory/run.sh

test-crash-points:
	@$(RUN) ONLY=crash tests/run/test.sh

test-failover:
	@$(RUN) ONLY=failover FAILOVER_DOCUMENT='$(CURDIR)/docs/reliability.md' tests/run/test.sh

REPORT = report.html
report:
	@psql -X -q -o '$(REPORT)' -f tools/report.sql
	@echo 'written: $(REPORT)'

demo:
	@$(RUN) tests/demo/demo.sh

demo-stop:
	@$(RUN) tests/demo/stop.sh

bench:
	@$(RUN) tests/bench/run.sh

dist:
	@tests/run/dist.sh mq-$(EXTVERSION)

distcheck:
	@$(RUN) ONLY=dist tests/run/test.sh

# Not mq.c, which is indented as the server is.
FORMATTED = $(foreach dir,bgworker $(FOLDERS:%=bgworker/%) tests/unit tests/fuzz,$(wildcard $(dir)/*.h $(dir)/*.[ch]pp))
format:
	clang-format -i $(FORMATTED)

tidy:
	clang-tidy --quiet $(PURE) -- $(MQ_CXXSTD) $(PURE_CPPFLAGS)
	clang-tidy --quiet $(filter-out $(PURE),$(SOURCES)) -- $(MQ_CXXSTD) -Wno-register $(SERVER_CPPFLAGS)
