// Topics: what a topic and a pattern are, and which patterns match a topic. Pure; subscribers.cpp and
// api/topics.cpp call it. No state.
//
// A topic is words with dots between. In a pattern the word * stands for one word, and the word # for
// any number of words, none included, as in a topic exchange of AMQP 0-9-1.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace mq::topics {

inline constexpr std::size_t kMostWords = 32;  // of a topic or pattern

// Throw 22023, naming the field, if the text is no topic, or no pattern.
void check_topic(std::string_view field, std::string_view topic);
void check_pattern(std::string_view field, std::string_view pattern);

// Looks for patterns among those that there are: returns whether any begins with `key` and a dot. If
// `whole`, a pattern that equals `key` matches.
using Look = std::function<bool(const std::string& key, bool whole)>;

// Finds the patterns that match the topic. The patterns are a tree of words, of which it looks only at
// what matches the beginning of the topic. No key is looked at more than twice, and only once with
// `whole`. So its steps are at most the words of the topic times the part of the tree that matches.
void match(std::string_view topic, const Look& look);

}  // namespace mq::topics
