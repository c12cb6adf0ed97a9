// FuzzCorpus: plays the inputs in tests/fuzz/corpus on the fuzz targets, and inputs made of them at random.
// Looks for them in MQ_FUZZ_CORPUS, or from the top of the checkout. A target that finds something wrong aborts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "targets.hpp"

namespace mq::fuzz {
namespace {

using Input = std::vector<std::uint8_t>;

std::vector<Input> corpus_of(const std::string& name) {
  const char* corpus = std::getenv("MQ_FUZZ_CORPUS");
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(corpus != nullptr ? corpus : "tests/fuzz/corpus") / name))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<Input> inputs;
  for (const auto& file : files) {
    std::ifstream stream(file, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  return inputs;
}

class FuzzCorpus : public testing::TestWithParam<Target> {};

TEST_P(FuzzCorpus, Holds) {
  const std::vector<Input> inputs = corpus_of(GetParam().name);
  ASSERT_FALSE(inputs.empty());
  for (const Input& input : inputs) GetParam().run(input);
  std::mt19937 random(1);
  const auto below = [&](std::size_t most) { return random() % std::max<std::size_t>(most, 1); };
  for (int i = 0; i < 3000; ++i) {
    Input input = inputs[below(inputs.size())];
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) {
      const std::size_t at = below(input.size());
      switch (below(4)) {
        case 0:
          if (!input.empty()) input[at] = static_cast<std::uint8_t>(random());
          break;
        case 1:
          input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(random()));
          break;
        case 2:
          if (!input.empty()) input.erase(input.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        default: {
          const Input& other = inputs[below(inputs.size())];
          input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size())), other.end());
        }
      }
    }
    GetParam().run(input);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, testing::ValuesIn(targets().begin(), targets().end()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace mq::fuzz
