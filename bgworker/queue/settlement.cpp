#include "queue/settlement.hpp"

namespace mq {

bool keeps_failure(int attempt) {
  constexpr int kFirst = 5;
  return attempt <= kFirst || (attempt & (attempt - 1)) == 0;
}

}  // namespace mq
