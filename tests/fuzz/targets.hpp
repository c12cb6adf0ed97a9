// Fuzz targets: what reads texts and numbers that others have written, each as a function of any bytes. A
// target aborts where a property does not hold; the sanitizers see the rest.
//
// `make fuzz` has libFuzzer look for bytes (fuzzer.cpp). The unit test FuzzCorpus plays those in
// corpus/NAME/, and changes them at random.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mq::fuzz {

struct Target {
  const char* name;
  void (*run)(std::span<const std::uint8_t> bytes);
};

std::span<const Target> targets();

}  // namespace mq::fuzz
