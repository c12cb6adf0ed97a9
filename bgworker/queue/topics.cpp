#include "queue/topics.hpp"

#include <cstdint>
#include <map>
#include <vector>

#include "pg/format.hpp"
#include "pg/validate.hpp"

namespace mq::topics {

namespace {

std::vector<std::string_view> words_of(std::string_view topic) {
  std::vector<std::string_view> words;
  for (std::size_t from = 0;;) {
    const std::size_t dot = topic.find('.', from);
    words.push_back(topic.substr(from, dot - from));
    if (dot == std::string_view::npos) return words;
    from = dot + 1;
  }
}

std::vector<std::string_view> check_words(std::string_view field, std::string_view text) {
  check::name(field, text);
  if (text.empty()) check::fail(field, text, "must not be empty");
  std::vector<std::string_view> words = words_of(text);
  for (const std::string_view word : words)
    if (word.empty()) check::fail(field, text, "must be words with dots between; one is empty");
  if (words.size() > kMostWords)
    check::fail(field, text, mq::format("must not have more than {} words; this has {}", kMostWords, words.size()));
  return words;
}

class Walk {
 public:
  Walk(std::string_view topic, const Look& look) : words_(words_of(topic)), look_(look) {}

  // `prefix`: so many words of patterns, each with a dot behind it, that match the first `at` words of the topic.
  void go_below(const std::string& prefix, std::size_t words, std::size_t at) {
    if (words == kMostWords) return;  // a row that was written by hand
    const std::string any = prefix + '#';
    for (std::size_t end = words_.size() + 1; end-- > at;) visit(any, words + 1, end);
    if (at == words_.size()) return;
    visit(prefix + '*', words + 1, at + 1);
    visit(prefix + std::string(words_[at]), words + 1, at + 1);
  }

 private:
  struct Node {
    std::uint64_t seen = 0;  // how many words of the topic it was visited with, a bit for each
    bool known = false;
    bool goes_on = false;  // patterns begin with it and a dot
  };

  // `key`: so many words of patterns that match the first `at` words of the topic.
  void visit(const std::string& key, std::size_t words, std::size_t at) {
    static_assert(kMostWords < 64);
    Node& node = nodes_[key];
    const std::uint64_t bit = std::uint64_t{1} << at;
    if ((node.seen & bit) != 0) return;
    node.seen |= bit;
    const bool whole = at == words_.size();
    if (whole || !node.known) node.goes_on = look_(key, whole);
    node.known = true;
    if (node.goes_on) go_below(key + '.', words, at);
  }

  const std::vector<std::string_view> words_;
  const Look& look_;
  std::map<std::string, Node> nodes_;
};

}  // namespace

void check_topic(std::string_view field, std::string_view topic) {
  check_words(field, topic);
  if (topic.find_first_of("*#") != std::string_view::npos)
    check::fail(field, topic, "must not have * or #, which are for the patterns of subscriptions");
}

void check_pattern(std::string_view field, std::string_view pattern) {
  for (const std::string_view word : check_words(field, pattern))
    if (word.size() > 1 && word.find_first_of("*#") != std::string_view::npos)
      check::fail(field, pattern, "must have * or # as a whole word only");
}

void match(std::string_view topic, const Look& look) {
  Walk(topic, look).go_below("", 0, 0);
}

}  // namespace mq::topics
