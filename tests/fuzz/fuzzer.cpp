// The program that libFuzzer runs, for the target that MQ_FUZZ_TARGET names. `make fuzz` builds it; see
// tests/run/fuzz.sh. Without the variable it lists the targets.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "targets.hpp"

namespace {
const mq::fuzz::Target* target = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* name = std::getenv("MQ_FUZZ_TARGET");
  for (const mq::fuzz::Target& known : mq::fuzz::targets()) {
    if (name == nullptr) std::puts(known.name);
    if (name != nullptr && std::string_view(name) == known.name) target = &known;
  }
  if (target == nullptr && name != nullptr) std::fprintf(stderr, "MQ_FUZZ_TARGET: there is no target \"%s\"\n", name);
  if (target == nullptr) std::exit(name == nullptr ? 0 : 1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  target->run({bytes, size});
  return 0;
}
