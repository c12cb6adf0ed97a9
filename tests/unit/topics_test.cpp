#include "queue/topics.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "pg/error.hpp"

namespace mq::topics {
namespace {

template <typename Validate>
std::string error_of(Validate check) {
  try {
    check();
  } catch (const Error& error) {
    return error.sqlstate + " " + error.message + ": " + error.detail;
  }
  return "";
}

std::string topic_error(const std::string& topic) {
  return error_of([&] { check_topic("topic", topic); });
}

std::string pattern_error(const std::string& pattern) {
  return error_of([&] { check_pattern("topic", pattern); });
}

// A sorted set of patterns that answers as the index does, and counts what it is asked.
struct Patterns {
  std::set<std::string> all;
  std::map<std::string, int> looks = {};
  int wholes = 0;

  std::set<std::string> match(const std::string& topic) {
    std::set<std::string> found;
    looks.clear();
    wholes = 0;
    std::map<std::string, int> taken;
    topics::match(topic, [&](const std::string& key, bool whole) {
      ++looks[key];
      if (whole) ++taken[key];
      if (whole && all.contains(key)) found.insert(key);
      const std::string below = key + '.';
      const auto next = all.lower_bound(below);
      return next != all.end() && next->starts_with(below);
    });
    for (const auto& [key, times] : taken) EXPECT_EQ(times, 1) << key;
    for (const auto& [key, times] : looks) EXPECT_LE(times, 2) << key;
    return found;
  }

  std::size_t steps() const {
    std::size_t sum = 0;
    for (const auto& [key, times] : looks) sum += static_cast<std::size_t>(times);
    return sum;
  }
};

// What the words mean, word by word.
bool matches(const std::vector<std::string>& pattern, std::size_t p, const std::vector<std::string>& topic,
             std::size_t t) {
  if (p == pattern.size()) return t == topic.size();
  if (pattern[p] == "#")
    return matches(pattern, p + 1, topic, t) || (t < topic.size() && matches(pattern, p, topic, t + 1));
  return t < topic.size() && (pattern[p] == "*" || pattern[p] == topic[t]) && matches(pattern, p + 1, topic, t + 1);
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ".") + word;
  return text;
}

TEST(Topics, AreWordsWithDotsBetween) {
  for (const char* good : {"a", "orders", "orders.eu.created", "a b.C-d_e", "\xc3\xbc.1", "a.\n"}) {
    EXPECT_EQ(topic_error(good), "");
    EXPECT_EQ(pattern_error(good), "");
  }
  EXPECT_EQ(topic_error(""), "22023 invalid topic: \"\": topic must not be empty.");
  for (const char* bad : {".", "a.", ".a", "a..b", "..", "a.b."}) {
    const std::string error =
        "22023 invalid topic: \"" + std::string(bad) + "\": topic must be words with dots between; one is empty.";
    EXPECT_EQ(topic_error(bad), error);
    EXPECT_EQ(pattern_error(bad), error);
  }
}

TEST(Topics, HaveNoWildcardsAndPatternsHaveThemAsWords) {
  for (const char* pattern : {"*", "#", "a.*", "*.a.#", "#.#", "a.*.*.#.b"}) {
    EXPECT_EQ(pattern_error(pattern), "");
    EXPECT_EQ(topic_error(pattern), "22023 invalid topic: \"" + std::string(pattern) +
                                        "\": topic must not have * or #, which are for the patterns of subscriptions.");
  }
  for (const char* bad : {"a*", "*a", "**", "##", "a.b#c", "#*", "a.*x.b"})
    EXPECT_EQ(pattern_error(bad),
              "22023 invalid topic: \"" + std::string(bad) + "\": topic must have * or # as a whole word only.");
  EXPECT_NE(topic_error("a*"), "");
}

TEST(Topics, HaveALimit) {
  std::string most = "a";
  for (std::size_t i = 1; i < kMostWords; ++i) most += ".a";
  EXPECT_EQ(topic_error(most), "");
  EXPECT_NE(topic_error(most + ".a").find("topic must not have more than 32 words; this has 33."), std::string::npos);
  EXPECT_NE(pattern_error(most + ".#").find("topic must not have more than 32 words; this has 33."), std::string::npos);
  EXPECT_EQ(topic_error(std::string(1024, 'a')), "");
  EXPECT_NE(topic_error(std::string(1025, 'a')).find("topic must not be longer than 1024 bytes; this has 1025."),
            std::string::npos);
}

TEST(Topics, MatchByWords) {
  Patterns patterns{{"a",     "a.b", "a.b.c", "*",     "*.b", "a.*", "*.*", "#",   "a.#",   "#.b", "a.#.b",
                     "a.b.#", "#.#", "a.*.#", "*.#.*", "b",   "ab",  "a.c", "a-b", "a.b-c", "a.b!"}};
  EXPECT_EQ(patterns.match("a"), (std::set<std::string>{"a", "*", "#", "a.#", "#.#"}));
  EXPECT_EQ(patterns.match("a.b"), (std::set<std::string>{"a.b", "*.b", "a.*", "*.*", "#", "a.#", "#.b", "a.#.b",
                                                          "a.b.#", "#.#", "a.*.#", "*.#.*"}));
  EXPECT_EQ(patterns.match("a.b.c"), (std::set<std::string>{"a.b.c", "#", "a.#", "a.b.#", "#.#", "a.*.#", "*.#.*"}));
  EXPECT_EQ(patterns.match("a-b"), (std::set<std::string>{"a-b", "*", "#", "#.#"}));
  EXPECT_EQ(patterns.match("a.x.b"), (std::set<std::string>{"#", "a.#", "#.b", "a.#.b", "#.#", "a.*.#", "*.#.*"}));
  EXPECT_TRUE(Patterns{}.match("a.b").empty());
}

TEST(Topics, MatchAsTheWordsMean) {
  std::mt19937 random(11);
  const std::vector<std::string> words{"a", "b", "c", "*", "#", "#", "ab", "a-"};
  const auto draw = [&](std::size_t most, std::size_t kinds) {
    std::vector<std::string> drawn(1 + random() % most);
    for (std::string& word : drawn) word = words[random() % kinds];
    return drawn;
  };
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<std::string>> all;
    Patterns patterns;
    for (int i = 0; i < 60; ++i) patterns.all.insert(joined(all.emplace_back(draw(6, words.size()))));
    for (int i = 0; i < 20; ++i) {
      const std::vector<std::string> topic = draw(6, 3);
      std::set<std::string> expected;
      for (const auto& pattern : all)
        if (matches(pattern, 0, topic, 0)) expected.insert(joined(pattern));
      EXPECT_EQ(patterns.match(joined(topic)), expected) << joined(topic);
    }
  }
}

TEST(Topics, LookOnlyAtWhatMatchesTheBeginning) {
  Patterns patterns{{"orders.eu.created", "orders.*.created", "orders.#"}};
  patterns.match("orders.eu.created");
  const std::size_t before = patterns.steps();
  for (int i = 0; i < 100'000; ++i)
    patterns.all.insert("unrelated." + std::to_string(i) + (i % 2 == 0 ? ".#" : ".*.created"));
  EXPECT_EQ(patterns.match("orders.eu.created"),
            (std::set<std::string>{"orders.eu.created", "orders.*.created", "orders.#"}));
  EXPECT_EQ(patterns.steps(), before);
}

TEST(Topics, StayBoundedWhateverThePatterns) {
  const auto repeated = [](const std::string& word, std::size_t times) {
    return joined(std::vector<std::string>(times, word));
  };
  Patterns patterns{{repeated("#", kMostWords), repeated("#", kMostWords - 1) + ".b",
                     "#.a.#.a.#.a.#.a.#.a.#.a.#.a.#.a.#.b", "#.*.#.*.#.*.#.*.#.*.#.*.#.*.#.b",
                     repeated("*", kMostWords)}};
  EXPECT_EQ(patterns.match(repeated("a", kMostWords)),
            (std::set<std::string>{repeated("#", kMostWords), repeated("*", kMostWords)}));
  // At most two looks for each beginning of a pattern, and for each of the three words that could follow it.
  std::set<std::string> beginnings{""};
  for (const std::string& pattern : patterns.all)
    for (std::size_t i = 0; i <= pattern.size(); ++i)
      if (i == pattern.size() || pattern[i] == '.') beginnings.insert(pattern.substr(0, i));
  EXPECT_LE(patterns.steps(), 2 * 3 * beginnings.size());
}

TEST(Topics, EndAtPatternsThatWereWrittenByHand) {
  std::string endless = "#";
  for (int i = 0; i < 100'000; ++i) endless += ".#";
  Patterns patterns{{"", ".", "..", "a.", ".a", "a..b", "#a", "a*.b", endless, "a.#"}};
  EXPECT_EQ(patterns.match("a.b"), std::set<std::string>{"a.#"});
  EXPECT_LT(patterns.steps(), 500U);
}

}  // namespace
}  // namespace mq::topics
