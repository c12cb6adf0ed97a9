#include "pg/subtransactions.hpp"

#include "pg/guard.hpp"

namespace mq {

namespace {

std::vector<void (*)(const SubtransactionEnd&)>* ends = nullptr;  // never destroyed

void subtransaction_event(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void*) {
  if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB) return;
  for (auto* end : *ends) end({event == SUBXACT_EVENT_COMMIT_SUB, mine, parent});
}

}  // namespace

void at_subtransaction_end(void (*end)(const SubtransactionEnd&)) {
  if (ends == nullptr) {
    ends = new std::vector<void (*)(const SubtransactionEnd&)>();
    guard::call([] { RegisterSubXactCallback(subtransaction_event, nullptr); });
  }
  ends->push_back(end);
}

}  // namespace mq
